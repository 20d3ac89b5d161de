"""Run the trials of a sweep that are left to do under Ray Tune.

Tune schedules; the trial directories remember, and the ledger reads them.
"""

import contextlib
import sys
from collections.abc import Sequence

from orchestrator.tune.ray_cluster import alive_nodes, last_line
from orchestrator.tune.shared_storage import shared_probe
from orchestrator.tune.stopping import stop_requested
from orchestrator.tune.sweep_run import SweepRun
from orchestrator.tune.trial_request import TRIAL_ID, TrialRequest
from trainers.durable.scratch import scratch_folder
from trainers.spec import TrialSpec

#: A micro-batch cannot be halved more often than this before it is one sequence.
MOST_HALVINGS = 32


def run_trials(run: SweepRun) -> dict[str, str]:
    """Train every trial that the run has to do; block until all have ended.

    A trial that fails or is preempted is tried again within `run.budget`. A trial that branches
    off another starts when that one has ended. Nothing new starts once another driver holds the
    sweep. While no node has room for what is left, the call waits.

    Returns:
        The error of each trial that used up its attempts without leaving a failure itself, by id.
    """
    errors: dict[str, str] = {}
    left = run.specs
    with shared_probe(run.sweep) as probe:
        while left:
            failed, again = _round(run, [_request(run, spec, probe) for spec in left])
            errors |= failed
            left = [spec for spec in left if spec.id in again]
    return errors


def _request(run: SweepRun, spec: TrialSpec, probe: str) -> TrialRequest:
    return TrialRequest(
        sweep=run.sweep.url,
        driver=run.held.owner,
        probe=probe,
        spec=spec,
        budget=run.budget,
        branch=run.branches.get(spec.id),
    )


def _round(run: SweepRun, requests: Sequence[TrialRequest]) -> tuple[dict[str, str], set[str]]:
    """Run one Tune experiment. Return errors by trial id, and the trials whose nodes left before
    they could start."""
    from ray import tune
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig

    from orchestrator.tune.trial_actor import TrialActor
    from orchestrator.tune.trial_queue import QueueStopper, TrialQueue, reserved

    queue = TrialQueue(
        requests,
        run.config.resources,
        alive_nodes,
        lambda: run.held.replaced or stop_requested(run.sweep),
    )
    budget = run.budget
    with scratch_folder() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(TrialActor, reserved),
            param_space={TRIAL_ID: tune.grid_search(queue.ids)},
            tune_config=tune.TuneConfig(search_alg=queue, reuse_actors=True),
            run_config=RunConfig(
                name="sweep",
                storage_path=str(scratch),
                verbose=0,
                stop=QueueStopper(queue),
                # Each attempt checks the budget itself. Tune counts for attempts that die before
                # they get that far.
                failure_config=FailureConfig(
                    max_failures=budget.failures + budget.preemptions + MOST_HALVINGS
                ),
                checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_at_end=False),
            ),
        )
        # Tune prints to stdout, which belongs to the output of the command.
        with contextlib.redirect_stdout(sys.stderr):
            results = tuner.fit()
    errors = {
        str(result.config[TRIAL_ID]): last_line(result.error)
        for result in results
        if result.error is not None
    }
    return errors, set(queue.left)
