"""One attempt at a trial: whether there may be one, when, in which micro-batch, and how it ended.

Ray takes an exception from here as a reason to start the trial again in another process, which
makes the next attempt. A return value ends the trial for this run.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from orchestrator.tune.preemption import PreemptedError
from orchestrator.tune.trial_request import TrialRequest
from trainers.durable.begun_layout import as_small_as_before
from trainers.spec import TrialSpec
from trialstore import records
from trialstore.claims import LeaseLostError
from trialstore.driver_lease import current_driver
from trialstore.errors import is_final
from trialstore.retries import (
    give_up,
    how_it_ended,
    newest_step,
    opened,
    read_retries,
    write_retries,
)
from trialstore.storage import Storage, StorageFullError
from trialstore.sweep_file import trial_storage

logger = logging.getLogger(__name__)

#: What Ray is told of a trial that ended without a result. FAILED: it was given up. UNFINISHED: it
#: was stopped on request, its storage is full, or another process continues it.
FAILED = "failed"
UNFINISHED = "unfinished"

#: Seconds between two looks at whether to stop, while the next attempt is waited for.
LOOK_S = 0.5


def attempt(
    sweep: Storage,
    request: TrialRequest,
    run: Callable[[TrialSpec], str | None],
    stop_requested: Callable[[], bool],
) -> str:
    """Run a trial once, unless it has ended, used up its budget, or shall not start.

    Args:
        sweep: The sweep's directory.
        request: The trial. If another driver than `request.driver` holds the sweep by now, the
            trial is left to that one.
        run: Trains the trial; returns its outcome, or None if it was stopped.
        stop_requested: Returns whether the sweep was asked to stop.

    Returns:
        The outcome that the trial's result names; FAILED if it was given up; UNFINISHED if it was
        stopped, its storage is full, or another process continues it.

    Raises:
        PreemptedError: The trial stopped although nobody asked it to.
        Exception: Whatever `run` raises, if another attempt may succeed.
    """
    spec = request.spec
    trial = trial_storage(sweep, spec.id)

    def replaced() -> bool:
        return current_driver(sweep) != request.driver

    def shall_stop() -> bool:
        return stop_requested() or replaced()

    try:
        with _giving_up(trial):
            result = records.get_result(trial, spec.id)
            if result is not None:
                return str(result["outcome"])
            if replaced():
                return UNFINISHED
            why, spec = _prepared(trial, request)
            if why is not None:
                give_up(trial, why)
                return FAILED
            if not _waited(trial, request, shall_stop):
                return UNFINISHED
            outcome = run(spec)
    except LeaseLostError:  # another process has the trial
        result = records.get_result(trial, spec.id)
        return UNFINISHED if result is None else str(result["outcome"])
    except StorageFullError as error:
        # Without room, not even the attempt can be counted. The next command continues the trial.
        logger.warning("trial %s: %s", spec.id, error)
        return UNFINISHED
    except Exception as error:
        if not is_final(error):
            raise
        return FAILED
    if outcome is None and not shall_stop():
        raise PreemptedError(f"trial {spec.id} wrote a checkpoint to make room; it goes on later")
    return outcome or UNFINISHED


@contextlib.contextmanager
def _giving_up(trial: Storage) -> Iterator[None]:
    """Mark the trial as given up if no attempt, by this run or a later one, can succeed."""
    try:
        yield
    except (LeaseLostError, StorageFullError):
        raise
    except Exception as error:
        if is_final(error):
            give_up(trial, str(error))
        raise


def _prepared(trial: Storage, request: TrialRequest) -> tuple[str | None, TrialSpec]:
    """Charge the last attempt, if it was one of ours. Return why there is no other attempt, or
    None, and the trial in the micro-batch of the next attempt."""
    retries = read_retries(trial)
    spec = as_small_as_before(trial, request.spec)
    if retries.open is not None:
        ending = how_it_ended(trial, retries.open, request.driver)
        if ending == "out_of_memory":
            from trainers.durable.memory import halved

            smaller = halved(spec)
            spec, ending = (spec, "failure") if smaller is None else (smaller, ending)
        retries = retries.ended(ending, newest_step(trial))
        write_retries(trial, retries)
        # Charge first. A process that is killed in between then repeats an attempt at the old
        # size; in the other order it would halve the micro-batch twice.
        if spec.layout.retried_smaller:
            trial.put(records.SPEC, spec.to_json())
    return retries.exhausted(request.budget), spec


def _waited(trial: Storage, request: TrialRequest, shall_stop: Callable[[], bool]) -> bool:
    """Wait until the next attempt is due and record that it begins. Return False if it shall not
    begin."""
    retries = read_retries(trial)
    due = time.monotonic() + retries.delay_s(request.spec.id)
    while not shall_stop():
        left = due - time.monotonic()
        if left <= 0:
            # The failure has been charged. If it stayed, and it came from before the trial was
            # taken, it would have the next attempt's number and be charged to that one too.
            trial.delete(records.FAILURE)
            write_retries(trial, opened(trial, retries, request.driver))
            return True
        time.sleep(min(left, LOOK_S))
    return False
