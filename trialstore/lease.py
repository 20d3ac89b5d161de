"""The lease of a trial: its heartbeat, its progress and the request to stop.

A trainer claims an attempt one higher than the last (`trialstore.claims`). A trainer that sees a
higher attempt than its own has been replaced and stops writing. The names of parts and checkpoints
carry the attempt, so a late write of a replaced trainer overwrites nothing. The lease only shows
that a process is at work and how far it is: no decision depends on who wrote it last.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from trialstore.claims import Fence, take
from trialstore.claims import LeaseLostError as LeaseLostError
from trialstore.heartbeat import HEARTBEAT_S, STALE_S
from trialstore.records import LEASE, encode_json
from trialstore.storage import Storage

logger = logging.getLogger(__name__)

#: This object in a trial's directory asks its trainer to write a checkpoint and end.
STOP_REQUEST = "stop-request.json"


def is_fresh(lease: Mapping[str, Any] | None, now_ms: float) -> bool:
    """Whether a process holds the lease: its heartbeat is younger than STALE_S, not released."""
    if lease is None or lease.get("released"):
        return False
    heartbeat_ms = lease.get("heartbeat_ms")
    return isinstance(heartbeat_ms, int | float) and now_ms - heartbeat_ms < STALE_S * 1000


class Lease:
    """The lease of a trial's writer for the time of a `with` block.

    A thread renews the heartbeat and looks for a request to stop. The end of the block releases
    the lease.

    Raises:
        LeaseLostError: Another process claimed the same attempt at the same moment.
    """

    def __init__(self, trial: Storage, steps: int) -> None:
        """Claim the next attempt at `trial`, which has `steps` updates."""
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
            "spikes": 0,
            "spiking_since": None,
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
        except OSError as problem:  # the next attempt waits until the lease is stale
            logger.warning("%s: the lease was not released: %s", self._trial.url, problem)

    @property
    def stop_requested(self) -> bool:
        """Whether the trial was asked to write a checkpoint and end."""
        return self._stop_requested.is_set()

    def began(self, step: int) -> None:
        """Record the step that this attempt continues from. Later updates are done again."""
        self._state.update(began=step, step=step)
        self._write()

    def progress(
        self,
        step: int,
        loss: float | None,
        tokens_per_s: float | None,
        spikes: int = 0,
        spiking_since: int | None = None,
    ) -> None:
        """Set what the next heartbeat reports.

        Args:
            step: Updates that the weights have had.
            loss: Training loss of the last update, nats per token.
            tokens_per_s: Training tokens per second.
            spikes: Spikes of the training loss so far.
            spiking_since: The update at which a spike began that is not over; None without one.
        """
        self._state.update(
            step=step,
            loss=loss,
            tokens_per_s=tokens_per_s,
            spikes=spikes,
            spiking_since=spiking_since,
        )

    def check(self) -> None:
        """Call before every write. Raises LeaseLostError if a newer attempt has taken over."""
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
                # A short storage failure must not end the training. If it lasts, the next commit
                # on the training thread raises it.
                continue


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
