"""One attempt at a trial, with all that stands around it: what the last one came to, whether
there may be another and when, in how large a micro-batch, and what its own end means to Ray.

Whatever is raised here Ray takes for a reason to start the trial anew in another process, which
begins here again and decides. What is returned ends it.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from orchestrator.tune.preemption import PreemptedError
from trainers.spec import TrialSpec, parse_spec
from trialstore import records
from trialstore.claims import LeaseLostError
from trialstore.driver_lease import current_driver
from trialstore.errors import InputError
from trialstore.retries import (
    Budget,
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

#: What a scheduler is told of a trial that ended without a result: it was given up, or it was
#: stopped on request, its storage is full, or another process goes on with it. The ledger knows
#: which.
FAILED = "failed"
UNFINISHED = "unfinished"

#: Seconds between two looks at whether to stop, while the next attempt is waited for.
LOOK_S = 0.5


def attempt(
    sweep: Storage,
    spec: TrialSpec,
    budget: Budget,
    driver: str | None,
    run: Callable[[TrialSpec], str | None],
    stop_requested: Callable[[], bool],
) -> str:
    """Run the trial once, by `run`, which returns its outcome or None if it was stopped.

    `driver` is the owner that has handed the trial over: when another drives the sweep, it is for
    that one to begin what is left. Returns the outcome, FAILED or UNFINISHED. Raises what `run`
    raises, where another attempt is worth it, and PreemptedError where a trial that nobody asked
    to stop has stopped.
    """
    trial = trial_storage(sweep, spec.id)

    def replaced() -> bool:
        return current_driver(sweep) != driver

    def shall_stop() -> bool:
        return stop_requested() or replaced()

    try:
        with _giving_up_on_bad_input(trial):
            result = records.get_result(trial, spec.id)
            if result is not None:
                return str(result["outcome"])
            if replaced():
                return UNFINISHED
            why, spec = _prepared(trial, spec, budget, driver)
            if why is not None:
                give_up(trial, why)
                return FAILED
            if not _waited(trial, spec, driver, shall_stop):
                return UNFINISHED
            outcome = run(spec)
    except InputError:  # trying again cannot mend it
        return FAILED
    except LeaseLostError:  # nor is there anything to mend: another process has the trial
        result = records.get_result(trial, spec.id)
        return UNFINISHED if result is None else str(result["outcome"])
    except StorageFullError as error:
        # It could not even be counted how often it has been tried. It has said so in failure.json
        # if there was room for that, and goes on with the command that follows.
        logger.warning("trial %s: %s", spec.id, error)
        return UNFINISHED
    if outcome is None and not shall_stop():
        raise PreemptedError(f"trial {spec.id} made room with a checkpoint, and goes on elsewhere")
    return outcome or UNFINISHED


@contextlib.contextmanager
def _giving_up_on_bad_input(trial: Storage) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        give_up(trial, str(error))
        raise


def _prepared(
    trial: Storage, spec: TrialSpec, budget: Budget, driver: str | None
) -> tuple[str | None, TrialSpec]:
    """Charge the last attempt, if it was one of ours: why there is no other, and the trial in the
    micro-batch that the next one has."""
    retries = read_retries(trial)
    spec = _as_small_as_it_was(trial, spec)
    if retries.open is not None:
        ending = how_it_ended(trial, retries.open, driver)
        if ending == "out_of_memory":
            from trainers.durable.memory import halved

            smaller = halved(spec)
            spec, ending = (spec, "failure") if smaller is None else (smaller, ending)
        retries = retries.ended(ending, newest_step(trial))
        write_retries(trial, retries)
        # Charged first: cut off in between, the attempt is made once more as large, where the
        # other way round it would be halved once more than it need be.
        if spec.layout.retried_smaller:
            trial.put(records.SPEC, spec.to_json())
    return retries.exhausted(budget), spec


def _as_small_as_it_was(trial: Storage, spec: TrialSpec) -> TrialSpec:
    """What was too large before is too large again: the micro-batch of a trial that has been
    retried with a smaller one is in its directory."""
    try:
        stored = parse_spec(trial.get(records.SPEC), trial.url_of(records.SPEC))
    except FileNotFoundError:
        return spec
    size, share = stored.layout.micro_batch, spec.sequences // spec.layout.workers
    if stored.id != spec.id or not stored.layout.retried_smaller or not size or share % size:
        return spec
    smaller = {"micro_batch": size, "retried_smaller": True}
    return spec.model_copy(update={"layout": spec.layout.model_copy(update=smaller)})


def _waited(
    trial: Storage, spec: TrialSpec, driver: str | None, shall_stop: Callable[[], bool]
) -> bool:
    """Wait until the next attempt is due and note that it begins; False if it shall not."""
    retries = read_retries(trial)
    due = time.monotonic() + retries.delay_s(spec.id)
    while not shall_stop():
        left = due - time.monotonic()
        if left <= 0:
            # It is charged. Left there, one of before the trial was taken, and so of the number
            # that the next attempt has, would be charged once more if that one is killed.
            trial.delete(records.FAILURE)
            write_retries(trial, opened(trial, retries, driver))
            return True
        time.sleep(min(left, LOOK_S))
    return False
