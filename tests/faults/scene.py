"""A sweep being run by the command itself, watched from outside through its trial directories."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from trialstore.errors import InputError
from trialstore.records import committed_steps, get_json
from trialstore.storage import LocalStorage
from trialstore.sweep_file import read_sweep_file

from .fault_sweep import SWEEP
from .mlflow_server import MlflowServer
from .nodes import Nodes
from .updates import counting

STEPS = 1000
CHECKPOINT_EVERY = 40
#: Wide enough that an update takes about 10 ms: a fault hits in the midst of something.
OVERRIDES = {
    "training.steps": STEPS,
    "resources.checkpoint_every": CHECKPOINT_EVERY,
    "evaluation.every": 50,
    "spectra.every": 50,
    "grid.width_multiplier": [2, 4, 8],
}
LOOK_S = 0.02
PATIENCE_S = 300.0
#: So often the same command is typed before the sweep counts as lost.
MOST_RUNS = 4


@dataclass
class Scene:
    """One sweep under one fault."""

    folder: Path
    random: random.Random
    overrides: dict[str, Any] = field(default_factory=dict)
    tracking: str | None = None
    nodes: Nodes | None = None
    cache: Path | None = None
    server: MlflowServer | None = None
    runs: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _ids: list[str] = field(default_factory=list)

    @property
    def storage(self) -> Path:
        return self.folder / "runs"

    @property
    def updates(self) -> Path:
        """Where every update of its trials is written."""
        return self.folder / "updates.log"

    @property
    def sweep(self) -> LocalStorage:
        return LocalStorage(self.storage / "tiny")

    def trial(self, trial_id: str) -> LocalStorage:
        return LocalStorage(self.storage / "tiny" / "trials" / trial_id)

    def trials(self) -> list[str]:
        """Ids of all trials of the sweep, begun or not; none before the command has written it."""
        with contextlib.suppress(InputError):
            self._ids = self._ids or sorted(read_sweep_file(self.sweep).ids)
        return self._ids

    # --- the command ---------------------------------------------------------------------------

    def command(self) -> list[str]:
        words = [sys.executable, "-P", "-m", "orchestrator.cli", "run", str(SWEEP)]
        words += ["--storage", str(self.storage), "--json"]
        if self.tracking is not None:
            words += ["--tracking-uri", self.tracking]
        if self.nodes is not None:
            words += ["--address", self.nodes.address]
        for key, value in {**OVERRIDES, **self.overrides}.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        return words

    def run(self) -> "subprocess.Popen[bytes]":
        """Type the command. Output goes to a file of its own."""
        environment = dict(os.environ if self.nodes is None else self.nodes.environment)
        environment |= counting(self.updates)
        if self.cache is not None:
            environment["XDG_CACHE_HOME"] = str(self.cache)
        log = (self.folder / f"run-{len(self.runs)}").with_suffix
        with log(".json").open("wb") as out, log(".log").open("wb") as errors:
            process = subprocess.Popen(
                self.command(), stdout=out, stderr=errors, env=environment, start_new_session=True
            )
        self.runs.append(process)
        return process

    @property
    def driver(self) -> "subprocess.Popen[bytes]":
        return self.runs[-1]

    def to_the_end(self) -> int:
        """Wait for the command, typing it again while trials are left to do; its exit code."""
        while True:
            code = self.driver.wait(PATIENCE_S)
            if self.complete() or len(self.runs) >= MOST_RUNS:
                return code
            self.run()

    def complete(self) -> bool:
        found = self.trials()
        return bool(found) and all("result.json" in self.trial(t).list() for t in found)

    def end(self) -> None:
        """Kill what is left of every run, and the nodes."""
        for process in self.runs:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.wait()
        if self.nodes is not None:
            self.nodes.end()

    # --- watching ------------------------------------------------------------------------------

    def looks(self, doing: str) -> Iterator[None]:
        """Turns of a loop that waits for something while the command runs."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            yield
            time.sleep(LOOK_S)
        raise TimeoutError(f"waited {PATIENCE_S:.0f} s {doing}")

    def wait_until(self, doing: str, done: Callable[[], bool]) -> None:
        for _ in self.looks(doing):
            if done():
                return

    def at_a_random_moment(self) -> str:
        """Wait for some trial to be somewhere between its first checkpoint and its middle, and
        return its id: what strikes it may take seconds to reach it, and then it shall still run."""
        share = self.random.uniform(0.0, 0.5)
        checkpoints = STEPS // CHECKPOINT_EVERY
        wanted = 1 + int(share * (checkpoints - 1))
        late = self.random.uniform(0.0, 0.3)  # seconds: between two checkpoints
        chosen = self.random.randrange(len(OVERRIDES["grid.width_multiplier"]) - 1)
        for _ in self.looks("for a trial to be under way"):
            if self.driver.poll() is not None:
                raise RuntimeError(f"the command ended before the fault; see {self.folder}")
            over = [t for t in self.trials() if "result.json" in self.trial(t).list()]
            if len(over) < chosen:
                continue
            for trial_id in self.trials():
                keys = self.trial(trial_id).list()
                if (
                    trial_id not in over
                    and len(self.committed(trial_id))
                    and (max(committed_steps(keys), default=0) >= wanted * CHECKPOINT_EVERY)
                ):
                    time.sleep(late)
                    if "result.json" not in self.trial(trial_id).list():
                        return trial_id
        raise AssertionError

    def committed(self, trial_id: str) -> list[int]:
        return committed_steps(self.trial(trial_id).list())

    def lease(self, trial_id: str) -> dict[str, Any]:
        return get_json(self.trial(trial_id), "lease.json") or {}

    def exporter(self) -> psutil.Process:
        """The exporter process of the running command."""
        for child in psutil.Process(self.driver.pid).children(recursive=True):
            if "orchestrator.mlflow.exporter" in child.cmdline():
                return child
        raise LookupError("the command has no exporter")
