"""The word to stop, from whoever says it to every trial that runs."""

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

#: An object of this name in a sweep's directory asks its driver to stop, whatever it says.
STOP_SWEEP = "stop-request.json"

POLL_S = 2.0
#: Until a signal is passed on.
SIGNAL_LOOK_S = 0.5


def request_stop(sweep: Storage) -> None:
    """Ask the driver of a sweep to let its trials checkpoint, and to end."""
    sweep.put(STOP_SWEEP, encode_json({"time_ms": time.time_ns() // 1_000_000}))


def forget_stop(sweep: Storage) -> None:
    """A request of an earlier run has been obeyed, or came too late."""
    sweep.delete(STOP_SWEEP)


def stop_requested(sweep: Storage) -> bool:
    """Whether that has been asked since the run began. Raises OSError."""
    return _is_there(sweep, STOP_SWEEP)


def ask_to_stop(trial: Storage, who: str) -> None:
    """Ask whoever trains a trial to checkpoint and end. To be said again: one that is only about
    to begin takes what it finds for an old request."""
    if not _is_there(trial, STOP_REQUEST):
        trial.put(STOP_REQUEST, encode_json({"from": who}))


@contextlib.contextmanager
def relaying_stops(sweep: Storage) -> Iterator[None]:
    """Pass a request to stop a sweep on to its running trials, for the time of a run.

    A trial that starts later sees the sweep's own request; one in between is told here, however
    late it takes its lease. One that seems stale is told too: the clock of its node may be slow.
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
    """The first Ctrl-C or SIGTERM is a request to stop in good order; a second one is not."""
    previous = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    heard, passed_on = threading.Event(), threading.Event()

    def hear(kind: int, frame: FrameType | None) -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)
        heard.set()

    def pass_on() -> None:
        # Not where the signal is heard, in the middle of anything: a storage that fails there
        # would end what it should stop in good order. Here it is tried again.
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
