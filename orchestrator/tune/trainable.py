"""A trial as Ray runs it: in its own Tune actor, or in several workers beside that actor.

Both call `trainers.train.train`, and tell Ray only that the trial has ended. Everything else is in
the trial's directory.
"""

import logging
import os
import time
from dataclasses import replace
from typing import Any

from orchestrator.grid.branches import Branch
from orchestrator.tune.attempt import attempt
from orchestrator.tune.path_variables import require_absolute
from orchestrator.tune.preemption import preemption_notice
from orchestrator.tune.shared_storage import require_shared
from orchestrator.tune.stopping import ask_to_stop, stop_requested
from orchestrator.tune.trial_request import TrialRequest, request_of
from trainers.spec import TrialSpec
from trialstore.heartbeat import every
from trialstore.records import get_result
from trialstore.storage import Storage, is_away, open_storage
from trialstore.sweep_file import trial_storage

logger = logging.getLogger(__name__)

#: Seconds that a trial waits for a storage that does not answer, and between two tries.
AWAY_S = 600.0
AWAY_LOOK_S = 5.0
#: Seconds between two looks at whether this process was asked to go.
NOTICE_LOOK_S = 1.0


class QuietLog:
    """A `trainers.train.Log` that drops everything: the trial's directory has it already."""

    def started(self, trial_id: str, attempt: int, step: int, steps: int) -> None:
        pass

    def progress(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        pass

    def checkpointed(self, step: int) -> None:
        pass


def run_trial(config: dict[str, Any]) -> str:
    """Make one attempt at the trial that `config` requests; the work of a Tune actor.

    Returns:
        The trial's outcome, or `attempt.FAILED` or `attempt.UNFINISHED`.

    Raises:
        NotSharedError: This node does not see the sweep's storage; another node may.
        Exception: Whatever ended the attempt, if another attempt may succeed.
    """
    request = request_of(config)
    _wait_for_storage(request)
    sweep = open_storage(request.sweep)

    def run(spec: TrialSpec) -> str | None:
        own = replace(request, spec=spec)  # `attempt` may have changed its micro-batch
        if own.branch is not None:
            _branch_off(sweep, spec, own.branch)
        return _train_here(own) if spec.layout.workers == 1 else _train_on_workers(own)

    return attempt(sweep, request, run, lambda: stop_requested(sweep))


def _branch_off(sweep: Storage, spec: TrialSpec, branch: Branch) -> None:
    """Begin the trial from its trunk's checkpoint, if that exists."""
    from trainers.durable.branch import fork
    from trainers.durable.failure import FailureReport

    trial = trial_storage(sweep, spec.id)
    with FailureReport(trial):
        fork(trial_storage(sweep, branch.trunk), trial, spec, branch.step)


def _train_here(request: TrialRequest) -> str | None:
    from trainers.train import train

    require_absolute(os.environ)
    trial = trial_storage(open_storage(request.sweep), request.spec.id)
    with preemption_notice() as notice:
        return train(request.spec, trial, QuietLog(), stop=notice).outcome


def _train_on_workers(request: TrialRequest) -> str | None:
    """Train in one process per worker, where Ray has reserved room, and wait for them.

    This process survives a SIGTERM and tells the workers to stop instead: if it ended, Ray would
    kill them in the middle of an update.
    """
    from orchestrator.tune.worker_group import run_on_workers

    trial_id = request.spec.id
    trial = trial_storage(open_storage(request.sweep), trial_id)
    with preemption_notice() as notice:

        def pass_on() -> None:
            if notice.is_set():
                ask_to_stop(trial, "preemption")

        with every(NOTICE_LOOK_S, pass_on):
            run_on_workers(trial_id, _worker, request, request.need.worker)
    result = get_result(trial, trial_id)
    return result["outcome"] if result else None


def _worker(request: TrialRequest) -> None:
    _wait_for_storage(request)
    _train_here(request)


def _wait_for_storage(request: TrialRequest) -> None:
    """Wait until the sweep's storage answers, ten minutes at most; then raise as `require_shared`.

    Ray would retry at once and use up its retries within seconds.
    """
    give_up = time.monotonic() + AWAY_S
    while True:
        try:
            require_shared(request.sweep, request.probe)
            return
        except OSError as error:
            if not is_away(error) or time.monotonic() > give_up:
                raise
            logger.warning("%s; trying again in %.0f s", error, AWAY_LOOK_S)
        time.sleep(AWAY_LOOK_S)
