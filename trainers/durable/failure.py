"""Failures: why an attempt ended without an outcome, in failure.json, for the next decision.

Kinds:

- "error": an exception of the trial itself
- "input": something that the user gave cannot be used
- "input_away": a hub or a disk with something that the user gave did not answer
- "out_of_memory": a smaller micro-batch may help
- "peer_lost": a rank lost its connection to another rank
- "no_room": the storage is full
- "storage_away": the storage did not answer

A process that is killed leaves no failure; `trialstore.retries` counts that as a preemption.
"""

import logging
import time
import traceback
from types import TracebackType
from typing import Any, Literal

import torch

from trialstore import records
from trialstore.claims import Fence, LeaseLostError, newest_attempt
from trialstore.errors import InputError, NoAnswerError
from trialstore.json_objects import COUNT
from trialstore.records import BrokenRecordError
from trialstore.storage import Storage, StorageFullError, is_away

logger = logging.getLogger(__name__)

Kind = Literal[
    "error", "input", "input_away", "out_of_memory", "peer_lost", "no_room", "storage_away"
]

#: Messages of gloo and NCCL for a rank that is gone. torch has no exception type for them.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "remote process exited or there was a network error",
    "Connect timeout",
)

#: Messages of torch's plain RuntimeErrors for memory outside its own pool: the host's, the
#: device's for a kernel or a context, and that of cuBLAS.
NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class MicroBatchMemoryError(MemoryError):
    """A micro-batch does not fit into memory; a smaller one may fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device or the host is out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def kind_of(error: BaseException) -> Kind:
    """Return the kind of failure that an exception is, as the module lists them."""
    if isinstance(error, MicroBatchMemoryError):
        return "out_of_memory"
    if isinstance(error, NoAnswerError):
        return "input_away"
    if isinstance(error, InputError):
        return "input"
    if isinstance(error, StorageFullError):
        return "no_room"
    if is_away(error):
        return "storage_away"
    lost = isinstance(error, RuntimeError) and any(text in str(error) for text in LOST_PEER)
    return "peer_lost" if lost else "error"


class FailureReport:
    """Leaves an exception of its `with` block in failure.json, and lets it pass.

    A LeaseLostError is not left: the trial is its successor's.

    Attributes:
        fence: Set by the block once it has claimed an attempt; before, the failure belongs to the
            attempt that would have been next.
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
    """Record in failure.json why an attempt failed, unless a rank has left a better reason.

    The rank that fails first has the reason; the others only lose their connection to it. An
    attempt that was replaced records nothing. A failure that cannot be recorded is logged.

    Args:
        trial: The trial's directory.
        error: The exception that ended the attempt.
        fence: The attempt; None if it failed before it had claimed one.
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
        # The storage itself may have failed; the caller raises the error that says so.
        logger.exception("the failure could not be recorded in %s", trial.url)


def _earlier(trial: Storage) -> dict[str, Any] | None:
    """The failure that was recorded before; None if there is none that can be read."""
    try:
        return records.get_json(trial, records.FAILURE, needs={"attempt": COUNT})
    except BrokenRecordError as error:
        logger.warning("%s; replacing it", error)
        return None


def _says_more(failure: dict[str, Any], earlier: dict[str, Any] | None) -> bool:
    """Whether a failure replaces an earlier one."""
    if earlier is None:
        return True
    if failure["kind"] == "peer_lost":
        return bool(earlier["attempt"] < failure["attempt"])
    # A failure before the claim and the attempt that claims next have the same number.
    same = ("attempt", "owner")
    return earlier.get("kind") == "peer_lost" or any(
        earlier.get(name) != failure[name] for name in same
    )
