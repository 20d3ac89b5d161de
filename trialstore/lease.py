"""One writer per trial directory: an attempt of its own, a heartbeat, and the word to stop.

A trainer claims an attempt one higher than it found (`trialstore.claims`), and whoever sees a
higher one than its own has been replaced and must stop writing. What an orphan may still have had
in flight carries its own attempt in its name, so it overwrites nothing. The lease says how far the
trial is and that somebody is at work; nothing is decided by who wrote it last.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any

from trialstore.claims import Fence, take
from trialstore.claims import LeaseLostError as LeaseLostError
from trialstore.records import LEASE, encode_json
from trialstore.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds between heartbeats; a lease without one for `STALE_S` is stale.
HEARTBEAT_S = 5.0
STALE_S = 60.0

#: An object of this name in a trial's directory asks its trainer to checkpoint and end.
STOP_REQUEST = "stop-request.json"


def is_fresh(lease: dict[str, Any] | None, now_ms: float) -> bool:
    """Whether somebody writes this trial: its heartbeat is recent and it has not let go."""
    if lease is None or lease.get("released"):
        return False
    heartbeat_ms = lease.get("heartbeat_ms")
    return isinstance(heartbeat_ms, int | float) and now_ms - heartbeat_ms < STALE_S * 1000


class Lease:
    """Held by the writer of a trial for the time of a `with` block; beats from a thread."""

    def __init__(self, trial: Storage, steps: int) -> None:
        self._trial = trial
        claim = take(trial)
        self.fence = Fence(trial, claim)
        self.attempt = claim.attempt
        self._state = {
            "attempt": claim.attempt,
            "owner": claim.owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began": None,
            "step": 0,
            "steps": steps,
            "loss": None,
            "tokens_per_s": None,
            "started_ms": _now_ms(),
        }
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
        try:
            if self.fence.holds():
                self._state["released"] = True
                self._write()
        except OSError as problem:  # whoever waits for it to fall silent waits a minute more
            logger.warning("%s: the lease was not released: %s", self._trial.url, problem)

    @property
    def stop_requested(self) -> bool:
        """Somebody asked this trial to checkpoint and end."""
        return self._stop_requested.is_set()

    def began(self, step: int) -> None:
        """From which step this attempt goes on: what came after it is done again."""
        self._state.update(began=step, step=step)
        self._write()

    def progress(self, step: int, loss: float | None, tokens_per_s: float | None) -> None:
        """What the next heartbeat says of the trial."""
        self._state.update(step=step, loss=loss, tokens_per_s=tokens_per_s)

    def check(self) -> None:
        """Before every write. Raises LeaseLostError if a newer attempt has taken over."""
        self.fence.check()

    def _write(self) -> None:
        self._trial.put(LEASE, encode_json({**self._state, "heartbeat_ms": _now_ms()}))

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                if not self.fence.holds():
                    return
                with contextlib.suppress(FileNotFoundError):
                    self._trial.get(STOP_REQUEST)
                    self._stop_requested.set()
                self._write()
            except OSError:
                # A storage that hiccups must not end the training: the next beat, or the next
                # commit on the training thread, meets the same storage and says so.
                continue


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
