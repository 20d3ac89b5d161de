"""What ends an attempt without an outcome: a failure, left for whoever decides what comes next.

Kinds: "error", an exception of the trial itself; "out_of_memory", where a smaller micro-batch may
help; "peer_lost", a rank whose connection to another broke; "no_room" and "storage_away", where
the trial's records could not be written, or its checkpoints read. A process that is killed leaves
nothing, and that says something too.
"""

import logging
import time
import traceback
from types import TracebackType
from typing import Any, Literal

import torch

from trialstore import records
from trialstore.claims import Fence, LeaseLostError, newest_attempt
from trialstore.errors import InputError
from trialstore.json_objects import COUNT
from trialstore.records import BrokenRecordError
from trialstore.storage import Storage, StorageFullError, is_away

logger = logging.getLogger(__name__)

Kind = Literal["error", "input", "out_of_memory", "peer_lost", "no_room", "storage_away"]

#: What gloo and NCCL say of a rank that is gone; torch has no type for all of them.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "remote process exited or there was a network error",
    "Connect timeout",
)


#: What torch says in a plain RuntimeError where memory ends outside its own pool: the host's, the
#: device's for a kernel or a context, and that of a library beside it.
NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class MicroBatchMemoryError(MemoryError):
    """A micro-batch does not fit into memory; a smaller one may."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the host, had no memory for what was asked."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def kind_of(error: BaseException) -> Kind:
    """What a failure says of the attempt to come."""
    if isinstance(error, MicroBatchMemoryError):
        return "out_of_memory"
    if isinstance(error, InputError):
        return "input"
    if isinstance(error, StorageFullError):
        return "no_room"
    if is_away(error):
        return "storage_away"
    lost = isinstance(error, RuntimeError) and any(text in str(error) for text in LOST_PEER)
    return "peer_lost" if lost else "error"


class FailureReport:
    """Leaves any exception of its block in failure.json, and lets it pass.

    But for LeaseLostError: a process that was replaced has nothing to say of its successor's
    trial. `fence` is set as soon as the attempt is known.
    """

    def __init__(self, trial: Storage) -> None:
        self._trial = trial
        self.fence: Fence | None = None

    def __enter__(self) -> "FailureReport":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, LeaseLostError):
            leave_failure(self._trial, error, self.fence)


def leave_failure(trial: Storage, error: Exception, fence: Fence | None) -> None:
    """Record the exception that is being handled, for the scheduler and for people.

    Of several ranks the first to fail says why: the others only lose their connection to it.
    Without a fence it failed before the trial was taken: of an attempt that never was.
    """
    try:
        if fence is not None and not fence.holds():
            return
        message = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        failure = {
            "stage": "train",
            "kind": kind_of(error),
            "message": message,
            "traceback": "".join(traceback.format_exception(error)),
            "attempt": newest_attempt(trial) + 1 if fence is None else fence.claim.attempt,
            "owner": None if fence is None else fence.claim.owner,
            "time_ms": time.time_ns() // 1_000_000,
        }
        if _says_more(failure, _earlier(trial)):
            trial.put(records.FAILURE, records.encode_json(failure))
    except (OSError, ValueError):
        # The storage itself may be what failed; the error that is being raised says so.
        logger.exception("the failure could not be recorded in %s", trial.url)


def _earlier(trial: Storage) -> dict[str, Any] | None:
    """The failure that lies there; none can be kept that cannot be read."""
    try:
        return records.get_json(trial, records.FAILURE, needs={"attempt": COUNT})
    except BrokenRecordError as error:
        logger.warning("%s; it is replaced", error)
        return None


def _says_more(failure: dict[str, Any], earlier: dict[str, Any] | None) -> bool:
    """Whether a failure takes the place of an earlier one."""
    if earlier is None:
        return True
    if failure["kind"] == "peer_lost":
        return bool(earlier["attempt"] < failure["attempt"])
    # An attempt that was taken may have the number of one that never was.
    same = ("attempt", "owner")
    return earlier.get("kind") == "peer_lost" or any(
        earlier.get(name) != failure[name] for name in same
    )
