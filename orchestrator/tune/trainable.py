"""A trial as Ray runs it: in its own Tune actor, or over several workers beside it.

Both call the same `trainers.train.train`; neither says anything to Ray but that it has ended.
What a trial leaves behind is in its directory.
"""

import logging
import os
import time
from typing import Any

from orchestrator.tune.attempt import attempt
from orchestrator.tune.node_room import need_of
from orchestrator.tune.path_variables import require_absolute
from orchestrator.tune.preemption import preemption_notice
from orchestrator.tune.shared_storage import require_shared
from orchestrator.tune.stopping import ask_to_stop, stop_requested
from trainers.spec import TrialSpec, parse_spec
from trialstore.heartbeat import every
from trialstore.records import get_result
from trialstore.retries import Budget
from trialstore.storage import Storage, is_away, open_storage
from trialstore.sweep_file import trial_storage

logger = logging.getLogger(__name__)

#: How long a trial waits on a node for a storage that does not answer, and between two looks.
AWAY_S = 600.0
AWAY_LOOK_S = 5.0
#: Until workers are told that the process which waits for them is to go.
NOTICE_LOOK_S = 1.0


class QuietLog:
    """The trial's directory already says everything a scheduler needs to know."""

    def started(self, trial_id: str, attempt: int, step: int, steps: int) -> None:
        pass

    def progress(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        pass

    def checkpointed(self, step: int) -> None:
        pass


def run_trial(config: dict[str, Any]) -> str:
    """What Tune's actor does: `config["trial"]` holds the sweep's URL and the spec as JSON.

    Returns what became of the trial. Raises NotSharedError on a node that does not see the sweep:
    another one may.
    """
    config = config["trial"]
    _wait_for_storage(config)
    sweep = open_storage(config["sweep"])

    def run(spec: TrialSpec) -> str | None:
        if config["branch"] is not None:
            _branch_off(sweep, spec, **config["branch"])
        own = {**config, "spec": spec.to_json().decode()}  # its micro-batch may be another by now
        return _alone(own) if spec.layout.workers == 1 else _over_workers(own, spec)

    return attempt(
        sweep,
        parse_spec(config["spec"], "trial"),
        Budget(**config["budget"]),
        config["driver"],
        run,
        lambda: stop_requested(sweep),
    )


def _branch_off(sweep: Storage, spec: TrialSpec, trunk: str, step: int) -> None:
    """Begin the trial with what another has done already, where that is there."""
    from trainers.durable.branch import fork
    from trainers.durable.failure import FailureReport

    trial = trial_storage(sweep, spec.id)
    with FailureReport(trial):
        fork(trial_storage(sweep, trunk), trial, spec, step)


def _alone(config: dict[str, Any]) -> str | None:
    from trainers.train import train

    require_absolute(os.environ)
    spec = parse_spec(config["spec"], "trial")
    trial = trial_storage(open_storage(config["sweep"]), spec.id)
    with preemption_notice() as notice:
        return train(spec, trial, QuietLog(), stop=notice).outcome


def _over_workers(config: dict[str, Any], spec: TrialSpec) -> str | None:
    """A process for each worker, where Ray has reserved its room; this one waits for them.

    It outlives a SIGTERM, for Ray kills the workers of one that is gone, and tells them instead.
    """
    from orchestrator.tune.worker_group import run_on_workers

    trial = trial_storage(open_storage(config["sweep"]), spec.id)
    with preemption_notice() as notice:

        def pass_on() -> None:
            if notice.is_set():
                ask_to_stop(trial, "preemption")

        with every(NOTICE_LOOK_S, pass_on):
            run_on_workers(spec.id, _worker, config, need_of(spec.layout).worker)
    result = get_result(trial, spec.id)
    return result["outcome"] if result else None


def _worker(config: dict[str, Any]) -> None:
    _wait_for_storage(config)
    _alone(config)


def _wait_for_storage(config: dict[str, Any]) -> None:
    """Until it answers: Ray would begin the trial again at once, and only so many times. After ten
    minutes another node may try. Raises as `require_shared` does."""
    give_up = time.monotonic() + AWAY_S
    while True:
        try:
            require_shared(config["sweep"], config["probe"])
            return
        except OSError as error:
            if not is_away(error) or time.monotonic() > give_up:
                raise
            logger.warning("%s; asked again in %.0f s", error, AWAY_LOOK_S)
        time.sleep(AWAY_LOOK_S)
