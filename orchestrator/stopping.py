"""The word to stop, from whoever says it to every trial that runs."""

import threading
import time
from types import TracebackType

from analysis.records import encode_json, get_json
from analysis.storage import Storage
from orchestrator.ledger import read_ledger, trial_storage
from orchestrator.trainable import STOP_SWEEP
from trainers.lease import STOP_REQUEST

POLL_S = 2.0


def request_stop(sweep: Storage) -> None:
    """Ask the driver of a sweep to let its trials checkpoint, and to end."""
    sweep.put(STOP_SWEEP, encode_json({"time_ms": time.time_ns() // 1_000_000}))


def stop_requested(sweep: Storage) -> bool:
    """Whether that has been asked since the run began."""
    return get_json(sweep, STOP_SWEEP) is not None


class StopRelay:
    """Passes a request to stop a sweep on to its running trials, for the time of a run.

    A trial that starts later sees the sweep's own request; one in between is told here, however
    late it takes its lease.
    """

    def __init__(self, sweep: Storage) -> None:
        self._sweep = sweep
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._relay, name="stop-relay", daemon=True)

    def __enter__(self) -> "StopRelay":
        self._sweep.delete(STOP_SWEEP)  # a request of an earlier run has been obeyed
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _relay(self) -> None:
        while not self._ended.wait(POLL_S):
            if not stop_requested(self._sweep):
                continue
            for status in read_ledger(self._sweep).trials:
                trial = trial_storage(self._sweep, status.id)
                if status.state == "running" and get_json(trial, STOP_REQUEST) is None:
                    trial.put(STOP_REQUEST, encode_json({"from": "sweep"}))
