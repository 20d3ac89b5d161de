"""Answer one question from a trial's directory: what state is the trial in?

    waiting    it has not begun, or its next attempt is still to come
    running    its lease has a fresh heartbeat
    stale      its lease fell silent without being released: its process was killed or cut off
    completed, collapsed, diverged, stopped    it has a result with this outcome
    failed     it was given up: only --retry-failed makes another attempt

Status, progress, MLflow export and analysis all read the state here.
"""

import functools
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trialstore.json_objects import COUNT, NUMBER, BrokenRecordError, get_json
from trialstore.lease import is_fresh
from trialstore.records import COLLAPSE, FAILURE, LEASE, OUTCOMES, RESULT, get_result
from trialstore.storage import Storage

logger = logging.getLogger(__name__)

STATES = ("waiting", "running", "stale", *OUTCOMES, "failed")
#: The states of a trial that has no result.
WITHOUT_RESULT = ("failed", "running", "stale", "waiting")

#: Of these, the states of a trial that a run has still to finish.
UNFINISHED = ("running", "stale", "waiting")

#: Trials to read at the same time. An object store answers each request slowly.
READERS = 16

#: Fields that a lease must have to be used.
LEASE_NEEDS = {"attempt": COUNT, "step": COUNT, "steps": COUNT, "loss": NUMBER}


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """The state of a trial and the numbers that go with it."""

    state: str  # one of STATES
    step: int = 0  # updates that its weights have had
    steps: int = 0  # updates planned
    loss: float | None = None  # nats per token: final held-out loss, or last training loss
    tokens_per_s: float | None = None  # of a running trial
    message: str | None = None  # why it failed or diverged, or why its last attempt ended
    collapsed_since: int | None = None  # step from which its layers are marked as collapsed
    spikes: int | None = None  # of its training loss so far; None where it was not watched
    spiking_since: int | None = None  # update at which a spike began that is not over
    result: Mapping[str, Any] | None = None  # content of result.json
    failure: Mapping[str, Any] | None = None  # content of failure.json, if no newer attempt began

    @property
    def over(self) -> bool:
        """Whether a run has nothing left to do for the trial."""
        return self.state in OUTCOMES or self.state == "failed"


def read_state(
    trial: Storage, trial_id: str | None = None, steps: int = 0, keys: Collection[str] | None = None
) -> TrialState:
    """Read a trial's state from its directory. A directory that does not exist is "waiting".

    A trial whose last attempt failed is "waiting" as long as a run will retry it; `message` then
    says how the attempt failed.

    Args:
        trial: The trial's directory.
        trial_id: The expected id; a result of another trial is a broken record.
        steps: Updates planned, for a trial that does not say so itself.
        keys: The directory's keys if the caller has just listed them. Objects that are not among
            them are not asked for, which saves requests to an object store.

    Raises:
        BrokenRecordError: A result, failure or collapse mark cannot be read. A lease that cannot
            be read is logged and ignored.
        OSError: The storage does not answer.
    """
    there = {RESULT, COLLAPSE, LEASE, FAILURE}.intersection(
        (RESULT, COLLAPSE, LEASE, FAILURE) if keys is None else keys
    )
    result = get_result(trial, trial_id) if RESULT in there else None
    if result is not None:
        collapsed = result["outcome"] == "collapsed" and COLLAPSE in there
        spikes, spiking_since = _spikes_of_result(result)
        return TrialState(
            state=result["outcome"],
            step=result["step"],
            steps=result["steps"],
            loss=result["final"].get("val_loss"),
            message=result.get("reason"),
            collapsed_since=_collapsed_since(trial) if collapsed else None,
            spikes=spikes,
            spiking_since=spiking_since,
            result=result,
        )
    since = _collapsed_since(trial) if COLLAPSE in there else None
    lease = _lease(trial) if LEASE in there else None
    failure = get_json(trial, FAILURE) if FAILURE in there else None
    if failure is not None and lease is not None and _is_older(failure, lease):
        failure = None
    state = _without_result(lease, failure)
    rate = None if lease is None or state != "running" else lease.get("tokens_per_s")
    message = None if failure is None else failure.get("message")
    return TrialState(
        state=state,
        step=0 if lease is None else lease["step"],
        steps=steps if lease is None else lease["steps"],
        loss=None if lease is None else lease["loss"],
        tokens_per_s=rate if NUMBER.holds(rate) else None,
        message=None if message is None else str(message),
        collapsed_since=since,
        spikes=None if lease is None else _count(lease.get("spikes")),
        spiking_since=None if lease is None else _count(lease.get("spiking_since")),
        failure=failure,
    )


def finished_trials(sweep: Storage) -> set[str]:
    """Return the ids of all trials in a sweep's directory that have a result.

    This includes trials that the sweep's file no longer names. Lists the directory once and reads
    no object.
    """
    keys = (key.split("/") for key in sweep.list("trials"))
    return {key[1] for key in keys if len(key) == 3 and key[2] == RESULT}


def _without_result(lease: Mapping[str, Any] | None, failure: Mapping[str, Any] | None) -> str:
    if failure is not None and failure.get("gave_up"):
        return "failed"
    if is_fresh(lease, time.time() * 1000):
        return "running"
    over = lease is None or lease.get("released") or failure is not None
    return "waiting" if over else "stale"


def _is_older(failure: Mapping[str, Any], lease: Mapping[str, Any]) -> bool:
    """Whether an attempt has begun since the failure."""
    attempt = failure.get("attempt")
    return COUNT.holds(attempt) and attempt < lease["attempt"]


def _lease(trial: Storage) -> dict[str, Any] | None:
    try:
        return get_json(trial, LEASE, needs=LEASE_NEEDS)
    except BrokenRecordError as error:
        _warn_once(f"{error}; the lease is ignored")
        return None


@functools.cache
def _warn_once(message: str) -> None:
    """Progress and export read every trial's state every few seconds."""
    logger.warning(message)


def _spikes_of_result(result: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Spikes of a finished trial, and the open one; None for results older than the watch."""
    stability = result.get("stability")
    loss = stability.get("train_loss") if isinstance(stability, Mapping) else None
    found: Mapping[str, Any] = loss if isinstance(loss, Mapping) else {}
    return _count(found.get("count")), _count(found.get("since"))


def _count(value: object) -> int | None:
    return int(value) if COUNT.holds(value) and isinstance(value, int) else None


def _collapsed_since(trial: Storage) -> int | None:
    mark = get_json(trial, COLLAPSE, needs={"step": COUNT})
    return None if mark is None else int(mark["step"])
