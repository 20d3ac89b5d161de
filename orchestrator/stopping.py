"""The word to stop, from whoever says it to every trial that runs."""

import contextlib
import time
from collections.abc import Iterator

from analysis.records import encode_json, get_json
from analysis.storage import Storage
from orchestrator.ledger import read_ledger, trial_storage
from orchestrator.trainable import STOP_SWEEP
from trainers.heartbeat import every
from trainers.lease import STOP_REQUEST

POLL_S = 2.0


def request_stop(sweep: Storage) -> None:
    """Ask the driver of a sweep to let its trials checkpoint, and to end."""
    sweep.put(STOP_SWEEP, encode_json({"time_ms": time.time_ns() // 1_000_000}))


def forget_stop(sweep: Storage) -> None:
    """A request of an earlier run has been obeyed, or came too late."""
    sweep.delete(STOP_SWEEP)


def stop_requested(sweep: Storage) -> bool:
    """Whether that has been asked since the run began."""
    return get_json(sweep, STOP_SWEEP) is not None


@contextlib.contextmanager
def relaying_stops(sweep: Storage) -> Iterator[None]:
    """Pass a request to stop a sweep on to its running trials, for the time of a run.

    A trial that starts later sees the sweep's own request; one in between is told here, however
    late it takes its lease.
    """

    def relay() -> None:
        if not stop_requested(sweep):
            return
        for status in read_ledger(sweep).trials:
            trial = trial_storage(sweep, status.id)
            if status.state == "running" and get_json(trial, STOP_REQUEST) is None:
                trial.put(STOP_REQUEST, encode_json({"from": "sweep"}))

    with every(POLL_S, relay):
        yield
