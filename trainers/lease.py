"""One writer per trial directory: an attempt number, a heartbeat, and the word to stop.

A trainer takes the lease by writing an attempt number one higher than it found. Whoever sees a
higher attempt than its own has been replaced and must stop writing; because every part carries
its attempt, an orphan that notices late has overwritten nothing.
"""

import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from analysis.records import LEASE, encode_json, get_json
from analysis.storage import Storage

#: Seconds between heartbeats; a lease without one for `STALE_S` is stale.
HEARTBEAT_S = 5.0
STALE_S = 60.0

#: An object of this name in a trial's directory asks its trainer to checkpoint and end.
STOP_REQUEST = "stop-request.json"


class LeaseLostError(RuntimeError):
    """A newer attempt writes this trial now; the holder must stop without writing."""


def is_fresh(lease: dict[str, Any] | None, now_ms: float) -> bool:
    """Whether somebody writes this trial: its heartbeat is recent and it has not let go."""
    if lease is None or lease.get("released"):
        return False
    return bool(now_ms - lease.get("heartbeat_ms", 0) < STALE_S * 1000)


class Lease:
    """Held by the writer of a trial for the time of a `with` block; beats from a thread."""

    def __init__(self, trial: Storage, steps: int) -> None:
        self._trial = trial
        previous = get_json(trial, LEASE) or {}
        self.attempt = int(previous.get("attempt", 0)) + 1
        self._state = {
            "attempt": self.attempt,
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": 0,
            "steps": steps,
            "loss": None,
            "tokens_per_s": None,
            "started_ms": _now_ms(),
        }
        self._lost = threading.Event()
        self._stop_requested = threading.Event()
        self._ended = threading.Event()
        trial.delete(STOP_REQUEST)
        self._write()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if not self._lost.is_set() and self._holds():
            self._state["released"] = True
            self._write()

    @property
    def stop_requested(self) -> bool:
        """Somebody asked this trial to checkpoint and end."""
        return self._stop_requested.is_set()

    def progress(self, step: int, loss: float | None, tokens_per_s: float | None) -> None:
        """What the next heartbeat says of the trial."""
        self._state.update(step=step, loss=loss, tokens_per_s=tokens_per_s)

    def check(self) -> None:
        """Before every commit. Raises LeaseLostError if a newer attempt has taken over."""
        if self._lost.is_set() or not self._holds():
            self._lost.set()
            raise LeaseLostError(
                f"{self._trial.url}: attempt {self.attempt} was replaced by a newer one"
            )

    def _holds(self) -> bool:
        stored = get_json(self._trial, LEASE) or {}
        mine = (self.attempt, self._state["owner"])
        # Two that took the same number at once: the larger name stays.
        return mine >= (int(stored.get("attempt", 0)), str(stored.get("owner", "")))

    def _write(self) -> None:
        self._trial.put(LEASE, encode_json({**self._state, "heartbeat_ms": _now_ms()}))

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                if not self._holds():
                    self._lost.set()
                    return
                self._write()
                self._trial.get(STOP_REQUEST)
                self._stop_requested.set()
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                # A storage that hiccups must not end the training: the next beat, or the next
                # commit on the training thread, meets the same storage and says so.
                continue


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
