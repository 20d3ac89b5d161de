"""Count the failed attempts at a trial, and decide when there is no other attempt.

Two budgets are counted apart. A failure (an exception of the training) uses the small one. A
preemption (the node went away, the process was killed or asked to end, the storage or the corpus
did not answer) uses the large one. Not charged are an attempt that ran out of memory, which
continues with a smaller micro-batch; an attempt whose driver ended too; and an attempt whose
storage was full.

The count is in the trial's directory, so it outlives the driver and shows what a result cost.
"""

import contextlib
import hashlib
import time
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from trialstore.claims import newest_attempt
from trialstore.json_objects import (
    COUNT,
    OBJECT,
    TEXT,
    BrokenRecordError,
    Kind,
    encode_json,
    get_json,
)
from trialstore.records import FAILURE, committed_steps
from trialstore.storage import Storage

RETRIES = "retries.json"

#: Seconds before another attempt, doubled by each attempt that ended without a new checkpoint.
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0

Ending = Literal["failure", "preemption", "out_of_memory", "uncharged"]


@dataclass(frozen=True)
class Budget:
    """How often a trial may fail and how often it may be preempted."""

    failures: int
    preemptions: int


@dataclass(frozen=True)
class Open:
    """An attempt that has begun and is not counted yet."""

    attempt: int  # its number
    driver: str | None  # owner of the driver that began it
    step: int  # of the newest checkpoint at its beginning
    # Time of the failure.json that lay there at its beginning, None without one. An attempt that
    # fails before it has its lease leaves its number to the next, so the number alone does not
    # tell which attempt a failure belongs to.
    failure_ms: int | None = None


@dataclass(frozen=True)
class Retries:
    """The attempts at a trial so far."""

    failures: int = 0
    preemptions: int = 0
    out_of_memory: int = 0
    in_a_row: int = 0  # the last attempts, which left no new checkpoint
    open: Open | None = None

    def ended(self, ending: Ending, step: int) -> "Retries":
        """Charge the open attempt. `step` is that of the newest checkpoint now."""
        progress = self.open is None or step > self.open.step
        return replace(
            self,
            failures=self.failures + (ending == "failure"),
            preemptions=self.preemptions + (ending == "preemption"),
            out_of_memory=self.out_of_memory + (ending == "out_of_memory"),
            in_a_row=0 if progress else self.in_a_row + 1,
            open=None,
        )

    def exhausted(self, budget: Budget) -> str | None:
        """Return why there is no other attempt, or None if there is one."""
        if self.failures > budget.failures:
            return f"failed {_times(self.failures)}, and resources.retries is {budget.failures}"
        if self.preemptions > budget.preemptions:
            return (
                f"preempted {_times(self.preemptions)}, and resources.preemptions is "
                f"{budget.preemptions}"
            )
        return None

    def delay_s(self, trial_id: str) -> float:
        """Return the seconds to wait before the next attempt.

        They are spread by trial, so that trials which failed together do not restart together.
        """
        if not self.failures + self.preemptions:
            return 0.0
        longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self.in_a_row, 30))
        key = f"{trial_id}/{self.failures}/{self.preemptions}".encode()
        share = int.from_bytes(hashlib.sha256(key).digest()[:4]) / 2**32
        return longest * (0.5 + 0.5 * share)


def read_retries(trial: Storage) -> Retries:
    """Read the count of a trial. Raises BrokenRecordError if retries.json cannot be read."""
    content = get_json(trial, RETRIES, needs=NEEDS)
    if content is None:
        return Retries()
    opened = content["open"]
    counts = {name: content[name] for name in NEEDS if name != "open"}
    return Retries(**counts, open=None if opened is None else Open(**opened))


def write_retries(trial: Storage, retries: Retries) -> None:
    """Write the count to the trial's directory."""
    trial.put(RETRIES, encode_json(asdict(retries)))


def opened(trial: Storage, retries: Retries, driver: str | None) -> Retries:
    """Return the count with the next attempt open, begun by the driver with the owner `driver`."""
    failure_ms = (get_json(trial, FAILURE) or {}).get("time_ms")
    attempt = Open(
        newest_attempt(trial) + 1,
        driver,
        newest_step(trial),
        failure_ms if COUNT.holds(failure_ms) else None,
    )
    return replace(retries, open=attempt)


def newest_step(trial: Storage) -> int:
    """Return the step of the newest checkpoint; 0 without one."""
    return max(committed_steps(trial.list("checkpoints")), default=0)


def give_up(trial: Storage, message: str) -> None:
    """Record that a trial gets no other attempt unless the user asks for one (--retry-failed).

    Args:
        trial: The trial's directory.
        message: The reason, used only if the newest attempt left no failure of its own.
    """
    attempt, failure = newest_attempt(trial), None
    with contextlib.suppress(BrokenRecordError):  # a broken failure is replaced
        failure = get_json(trial, FAILURE, needs={"attempt": COUNT})
    if failure is None or failure["attempt"] < attempt:
        failure = {
            "stage": "process",
            "kind": "error",
            "message": message,
            "traceback": None,
            "attempt": attempt,
            "time_ms": time.time_ns() // 1_000_000,
        }
    trial.put(FAILURE, encode_json({**failure, "gave_up": True}))


def how_it_ended(trial: Storage, attempt: Open, driver: str | None) -> Ending:
    """Return how an attempt without a result ended, as far as its directory tells.

    Args:
        trial: The trial's directory.
        attempt: The attempt to judge.
        driver: Owner of the driver that drives the sweep now.
    """
    failure = get_json(trial, FAILURE) or {}
    said = failure.get("attempt")
    older = attempt.failure_ms is not None and failure.get("time_ms") == attempt.failure_ms
    if type(said) is int and said >= attempt.attempt and not older:
        if failure.get("kind") == "out_of_memory":
            return "out_of_memory"
        if failure.get("kind") == "no_room":
            return "uncharged"
        if failure.get("kind") not in ("peer_lost", "storage_away", "input_away"):
            return "failure"
    # Killed, asked to end, or something away: a peer, the storage, an input. Free if its driver
    # ended too.
    return "preemption" if attempt.driver == driver else "uncharged"


def _is_open(value: Any) -> bool:
    if value is None:
        return True
    return (
        OBJECT.holds(value)
        and {"attempt", "driver", "step"} <= value.keys() <= OPEN_KEYS
        and COUNT.holds(value["attempt"])
        and COUNT.holds(value["step"])
        and (value["driver"] is None or TEXT.holds(value["driver"]))
        and (value.get("failure_ms") is None or COUNT.holds(value["failure_ms"]))
    )


OPEN_KEYS = {field.name for field in fields(Open)}
NEEDS = {
    "failures": COUNT,
    "preemptions": COUNT,
    "out_of_memory": COUNT,
    "in_a_row": COUNT,
    "open": Kind("an attempt or null", _is_open),
}


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
