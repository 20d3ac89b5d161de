"""Stop requests: from a user or a signal to the driver, and from the driver to running trials."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from orchestrator.ledger.ledger import read_ledger
from trialstore.heartbeat import every
from trialstore.lease import STOP_REQUEST
from trialstore.records import encode_json
from trialstore.storage import Storage
from trialstore.sweep_file import trial_storage

#: An object of this name in a sweep's directory asks its driver to stop. Its content is not read.
STOP_SWEEP = "stop-request.json"

#: Seconds between two looks for a request.
POLL_S = 2.0
#: Seconds between two looks for a signal to pass on.
SIGNAL_LOOK_S = 0.5


def request_stop(sweep: Storage) -> None:
    """Ask the driver of a sweep to let its trials write a checkpoint, and to end."""
    sweep.put(STOP_SWEEP, encode_json({"time_ms": time.time_ns() // 1_000_000}))


def forget_stop(sweep: Storage) -> None:
    """Remove a stop request: an earlier run has obeyed it, or it came too late."""
    sweep.delete(STOP_SWEEP)


def stop_requested(sweep: Storage) -> bool:
    """Return whether a stop was requested since the run began. Raises OSError."""
    return _is_there(sweep, STOP_SWEEP)


def ask_to_stop(trial: Storage, who: str) -> None:
    """Ask the process that trains a trial to write a checkpoint and end.

    Call it again until the trial ends: a trainer that is about to begin removes the request as an
    old one.

    Args:
        trial: The trial's directory.
        who: The origin of the request, for people.
    """
    if not _is_there(trial, STOP_REQUEST):
        trial.put(STOP_REQUEST, encode_json({"from": who}))


@contextlib.contextmanager
def relaying_stops(sweep: Storage) -> Iterator[None]:
    """Pass a stop request of the sweep on to its running trials, for the time of the block.

    A trial that starts later reads the sweep's own request. A trial that is about to take its lease
    is asked here, again and again. Trials that seem stale are asked too: the clock of their node
    may be slow.
    """

    def relay() -> None:
        if not stop_requested(sweep):
            return
        for status in read_ledger(sweep).trials:
            trial = trial_storage(sweep, status.id)
            if status.state in ("running", "stale"):
                ask_to_stop(trial, "sweep")

    with every(POLL_S, relay):
        yield


@contextlib.contextmanager
def stopping_on_signals(sweep: Storage, say: Callable[[str], None]) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a stop request, for the time of the block.

    The second one has its usual effect.

    Args:
        sweep: The sweep to stop.
        say: Shows a line to the user.
    """
    previous = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    heard, passed_on = threading.Event(), threading.Event()

    def hear(kind: int, frame: FrameType | None) -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)
        heard.set()

    def pass_on() -> None:
        # Not in the signal handler: an error of the storage there would be raised in whatever the
        # main thread is doing. Here it is tried again.
        if heard.is_set() and not passed_on.is_set():
            request_stop(sweep)
            passed_on.set()
            say("stopping: running trials write a checkpoint first")

    for kind in previous:
        signal.signal(kind, hear)
    try:
        with every(SIGNAL_LOOK_S, pass_on):
            yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def _is_there(storage: Storage, key: str) -> bool:
    try:
        storage.get(key)
    except FileNotFoundError:
        return False
    return True
