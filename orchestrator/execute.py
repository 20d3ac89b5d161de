"""Ray Tune over the trials that are left to do. Tune schedules; the ledger remembers."""

import contextlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from analysis.records import Manifest, committed_steps, get_json, manifest_key
from analysis.storage import Storage
from orchestrator.branches import Branch
from orchestrator.ledger import trial_storage
from orchestrator.placement import need_of
from orchestrator.ray_cluster import alive_nodes, last_line
from orchestrator.retries import Budget
from orchestrator.shared_storage import shared_probe
from orchestrator.trainable import STOP_SWEEP
from trainers.spec import Layout, TrialSpec

#: A micro-batch is not halved more often than this before it is one sequence.
MOST_HALVINGS = 32


def as_begun(sweep: Storage, spec: TrialSpec) -> TrialSpec:
    """The trial with as many workers as it was begun with: it goes on in the layout that it has a
    checkpoint of, whatever the sweep file says by now."""
    trial = trial_storage(sweep, spec.id)
    steps = committed_steps(trial.list("checkpoints"))
    try:
        layout = Manifest.from_json(trial.get(manifest_key(steps[-1]))).layout
        begun = Layout.model_validate(layout)
    except (IndexError, FileNotFoundError, ValueError):
        return spec  # no checkpoint, or none that can be read: the trainer says so
    if begun.device != spec.layout.device:
        return spec  # refused by the trainer
    kept = {"workers": begun.workers, "cpus_per_worker": begun.cpus_per_worker}
    kept["zero_stage"] = begun.zero_stage
    return spec.model_copy(update={"layout": spec.layout.model_copy(update=kept)})


def run_trials(
    sweep: Storage,
    trials: Sequence[TrialSpec],
    limit: int | None,
    retries: Budget,
    branches: Mapping[str, Branch],
    wait_for_nodes: bool = False,
) -> dict[str, str]:
    """Train every trial, at most `limit` side by side; one that fails or is preempted is tried
    again as often as `retries` says. Those that `branches` names begin where they branch off,
    once their trunk is over.

    Returns the error by trial id of those that used up their retries. Blocks until all is over,
    for as long as no node has room for what is left.
    """
    errors: dict[str, str] = {}
    left = list(trials)
    with shared_probe(sweep) as probe:
        while left:
            failed, again = _round(sweep, left, limit, retries, branches, wait_for_nodes, probe)
            errors |= failed
            left = [spec for spec in left if spec.id in again]
    return errors


def _round(
    sweep: Storage,
    trials: Sequence[TrialSpec],
    limit: int | None,
    retries: Budget,
    branches: Mapping[str, Branch],
    wait_for_nodes: bool,
    probe: str,
) -> tuple[dict[str, str], set[str]]:
    """One experiment of Tune: errors by trial id, and the trials whose nodes went before they
    could start."""
    from ray import tune
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig

    from orchestrator.gate import Gate, GateStopper, reserved
    from orchestrator.trial_actor import TrialActor

    gate = Gate(
        {spec.id: need_of(spec.layout) for spec in trials},
        {trial_id: branch.trunk for trial_id, branch in branches.items()},
        limit,
        wait_for_nodes,
        alive_nodes,
        lambda: get_json(sweep, STOP_SWEEP) is not None,
    )
    with tempfile.TemporaryDirectory(prefix="widthlab-tune-") as scratch:
        off = {trial_id: asdict(branch) for trial_id, branch in branches.items()}
        configs = [
            {
                "sweep": sweep.url,
                "probe": probe,
                "id": spec.id,
                "spec": spec.to_json().decode(),
                "branch": off.get(spec.id),
                "budget": asdict(retries),
            }
            for spec in trials
        ]
        tuner = tune.Tuner(
            tune.with_resources(TrialActor, reserved),
            param_space={"trial": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(search_alg=gate, reuse_actors=True),
            run_config=RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                stop=GateStopper(gate),
                # Each attempt decides for itself whether it is one too many; of those that die
                # before they come to that, Tune keeps count.
                failure_config=FailureConfig(
                    max_failures=retries.failures + retries.preemptions + MOST_HALVINGS
                ),
                checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_at_end=False),
            ),
        )
        # Tune prints of its own accord; stdout belongs to the command that was asked for.
        with contextlib.redirect_stdout(sys.stderr):
            results = tuner.fit()
    errors = {
        result.config["trial"]["id"]: last_line(result.error)
        for result in results
        if result.error is not None
    }
    return errors, set(gate.left)
