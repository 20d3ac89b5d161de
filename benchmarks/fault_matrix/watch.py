"""Where every attempt at a trial goes on, and what the one before it had made durable."""

import contextlib
import threading
from pathlib import Path

from analysis.records import committed_steps, get_json
from analysis.storage import LocalStorage

LOOK_S = 0.05


class Watch(threading.Thread):
    """Looks at the trial directories of a sweep until it is told to end."""

    def __init__(self, trials: Path) -> None:
        super().__init__(daemon=True)
        self._trials = trials
        self._ended = threading.Event()
        self._newest: dict[str, int] = {}  # checkpoint of a trial
        self._begun: dict[str, int] = {}  # its attempt
        #: Of every attempt but the first: newest checkpoint before it, and where it began.
        self.resumed: list[tuple[int, int]] = []

    def run(self) -> None:
        while not self._ended.wait(LOOK_S):
            for folder in self._trials.glob("*"):
                with contextlib.suppress(OSError, ValueError):
                    self._look(folder.name, LocalStorage(folder))

    def end(self) -> None:
        self._ended.set()
        self.join()

    def _look(self, trial_id: str, trial: LocalStorage) -> None:
        lease = get_json(trial, "lease.json") or {}
        attempt, began = lease.get("attempt", 0), lease.get("began")
        if began is not None and attempt > self._begun.get(trial_id, 0):
            if trial_id in self._begun:
                self.resumed.append((self._newest.get(trial_id, 0), began))
            self._begun[trial_id] = attempt
        newest = max(committed_steps(trial.list("checkpoints")), default=0)
        self._newest[trial_id] = max(newest, self._newest.get(trial_id, 0))
