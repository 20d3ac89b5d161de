"""Ray Tune over the trials that are left to do. Tune schedules; the ledger remembers."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pydantic import ValidationError

from orchestrator.grid.branches import Branch
from orchestrator.tune.node_room import need_of
from orchestrator.tune.ray_cluster import alive_nodes, last_line
from orchestrator.tune.shared_storage import shared_probe
from orchestrator.tune.stopping import stop_requested
from trainers.durable.scratch import scratch_folder
from trainers.spec import Layout, TrialSpec
from trialstore.driver_lease import Driving
from trialstore.records import BrokenRecordError, committed_steps, read_manifest
from trialstore.retries import Budget
from trialstore.storage import Storage
from trialstore.sweep_file import trial_storage

#: A micro-batch is not halved more often than this before it is one sequence.
MOST_HALVINGS = 32


def as_begun(sweep: Storage, spec: TrialSpec) -> TrialSpec:
    """The trial with as many workers as it was begun with: it goes on in the layout that it has a
    checkpoint of, whatever the sweep file says by now."""
    begun = _layout_begun_in(trial_storage(sweep, spec.id))
    if begun is None or begun.device != spec.layout.device:
        return spec  # another device is for the trainer to refuse
    kept = {"workers": begun.workers, "cpus_per_worker": begun.cpus_per_worker}
    kept["zero_stage"] = begun.zero_stage
    return spec.model_copy(update={"layout": spec.layout.model_copy(update=kept)})


def _layout_begun_in(trial: Storage) -> Layout | None:
    """Of the newest checkpoint that says it; None where there is none. The trainer too goes on
    from an older one where the newest is damaged."""
    for step in reversed(committed_steps(trial.list("checkpoints"))):
        with contextlib.suppress(FileNotFoundError, BrokenRecordError, ValidationError):
            return Layout.model_validate(read_manifest(trial, step).layout)
    return None


def run_trials(
    sweep: Storage,
    trials: Sequence[TrialSpec],
    limit: int | None,
    retries: Budget,
    branches: Mapping[str, Branch],
    held: Driving,
    wait_for_nodes: bool = False,
) -> dict[str, str]:
    """Train every trial, at most `limit` side by side; one that fails or is preempted is tried
    again as often as `retries` says. Those that `branches` names begin where they branch off,
    once their trunk is over. Nothing more is begun once the sweep is no longer `held`.

    Returns the error by trial id of those that used up their retries. Blocks until all is over,
    for as long as no node has room for what is left.
    """
    errors: dict[str, str] = {}
    left = list(trials)
    with shared_probe(sweep) as probe:
        while left:
            failed, again = _round(
                sweep, left, limit, retries, branches, held, wait_for_nodes, probe
            )
            errors |= failed
            left = [spec for spec in left if spec.id in again]
    return errors


def _round(
    sweep: Storage,
    trials: Sequence[TrialSpec],
    limit: int | None,
    retries: Budget,
    branches: Mapping[str, Branch],
    held: Driving,
    wait_for_nodes: bool,
    probe: str,
) -> tuple[dict[str, str], set[str]]:
    """One experiment of Tune: errors by trial id, and the trials whose nodes went before they
    could start."""
    from ray import tune
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig

    from orchestrator.tune.trial_actor import TrialActor
    from orchestrator.tune.trial_queue import QueueStopper, TrialQueue, reserved

    queue = TrialQueue(
        {spec.id: need_of(spec.layout) for spec in trials},
        {trial_id: branch.trunk for trial_id, branch in branches.items()},
        limit,
        wait_for_nodes,
        alive_nodes,
        lambda: held.replaced or stop_requested(sweep),
    )
    with scratch_folder() as scratch:
        off = {trial_id: asdict(branch) for trial_id, branch in branches.items()}
        configs = [
            {
                "sweep": sweep.url,
                "driver": held.owner,
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
            tune_config=tune.TuneConfig(search_alg=queue, reuse_actors=True),
            run_config=RunConfig(
                name="sweep",
                storage_path=str(scratch),
                verbose=0,
                stop=QueueStopper(queue),
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
    return errors, set(queue.left)
