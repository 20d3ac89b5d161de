"""What being watched costs a trial: time in record keeping on the training thread.

    python benchmarks/tracking.py [SWEEP.yaml] [--trials 16] [--steps 200]

Trains that many trials of one cell at once, each a process, with an exporter that sends them to an
MLflow server on this machine. Measured from inside the trials, on the thread that trains:

    seconds in everything that exists because the trial is watched / seconds in optimiser updates

by the clock of that thread's own CPU time, which the other processes do not lengthen, and by the
clock on the wall, which has the waiting for the disk in it; and beside it the CPU seconds of the
trial's thread that writes, of the exporter and of the server. What is measured anyway (losses,
spectra) and checkpoints do not count.
"""

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from orchestrator.grid.expand import PlannedTrial, expand
from orchestrator.grid.plan_records import resolved_yaml
from orchestrator.mlflow.exporter import start_exporter
from orchestrator.mlflow.sqlite_uri import sqlite_path
from orchestrator.mlflow.tracking import CLIENT_ENVIRONMENT, tracking_uri
from orchestrator.mlflow.ui import SERVER_ENVIRONMENT, free_port, server_command
from orchestrator.sweep.load import load_sweep
from trainers.data.store import open_store
from trialstore.storage import LocalStorage
from trialstore.sweep_file import trial_storage

SMALL = Path(__file__).parents[1] / "orchestrator" / "sweeps" / "small.yaml"
GOAL = 0.01
PATIENCE_S = 300.0
STEP = "optimiser updates"

#: What a trial leaves: seconds by what they were spent on, for each clock, and "beside".
Timing = dict[str, Any]


# --- inside a trial ------------------------------------------------------------------------


class Meter:
    """Seconds by what they were spent on: CPU of the training thread, and on the wall; and CPU of
    what is done beside it."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self.beside = 0.0
        self._busy = False

    def timed(self, owner: Any, name: str, what: str) -> None:
        """Have every call of `owner.name` count; on this thread one inside another once."""
        call: Callable[..., Any] = getattr(owner, name)
        thread = threading.get_ident()

        @functools.wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != thread:
                cpu = time.thread_time()
                try:
                    return call(*arguments, **named)
                finally:
                    self.beside += time.thread_time() - cpu
            if self._busy:
                return call(*arguments, **named)
            self._busy = True
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                self.cpu[what] += time.thread_time() - cpu
                self.wall[what] += time.perf_counter() - wall
                self._busy = False

        setattr(owner, name, timed)


def measured_trial(spec: Path, out: str, timing: Path) -> None:
    """Train one trial and leave what it spent beside it."""
    from orchestrator.tune.trainable import QuietLog
    from trainers import train as loop
    from trainers.collapse_watch import CollapseWatch
    from trainers.durable.writer import TrialWriter
    from trainers.spec import parse_spec
    from trialstore.lease import Lease

    meter = Meter()
    meter.timed(loop, "update", STEP)
    meter.timed(loop, "_train_row", "rows: made")
    meter.timed(TrialWriter, "add", "rows: kept")
    meter.timed(CollapseWatch, "add", "collapse watched")
    meter.timed(Lease, "progress", "progress told")
    meter.timed(QuietLog, "progress", "progress told")
    for name in ("flush_if_due", "flush", "_write", "_merge"):
        meter.timed(TrialWriter, name, "parts: written")
    meter.timed(TrialWriter, "finish", "parts: compacted at the end")
    loop.train(parse_spec(spec.read_bytes(), str(spec)), LocalStorage(Path(out)), QuietLog())
    timing.write_text(json.dumps({"cpu": meter.cpu, "wall": meter.wall, "beside": meter.beside}))


# --- around them ---------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", nargs="?", type=Path, default=SMALL)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        spec, out, timing = options.inside
        measured_trial(Path(spec), out, Path(timing))
        return
    with tempfile.TemporaryDirectory(prefix="widthlab-tracking-") as scratch:
        measure(options.sweep, options.trials, options.steps, Path(scratch))


def measure(path: Path, trials: int, steps: int, scratch: Path) -> None:
    settings = [f"steps={steps}", f"seed={list(range(trials))}", "match=none"]
    settings += ["grid.architecture=gpt2", "grid.norm=pre", "grid.width_multiplier=4"]
    settings += [f"{section}.every={steps // 4}" for section in ("evaluation", "spectra")]
    config = load_sweep(path, settings)
    store = open_store(config.source)
    grid = expand(config, store.data_spec, store.vocab_size)
    storage = LocalStorage(scratch)
    sweep = storage.child(config.name)
    text = resolved_yaml(config, grid, store.data_spec, store.vocab_size)
    sweep.put("sweep.yaml", text.encode())
    with served(storage) as (uri, server):
        exporter = start_exporter(sweep.url, uri)
        with CPUSeconds({"exporter": exporter.pid, "server": server}) as spent:
            began = time.perf_counter()
            timings = train_all(sweep, grid.trials, scratch)
            took = time.perf_counter() - began
            complete = exporter.finish(PATIENCE_S)
    if not complete:
        sys.exit("the exporter did not come to its end: nothing to report")
    report(config.name, timings, steps, took, spent.seconds)


@contextlib.contextmanager
def served(storage: LocalStorage) -> Iterator[tuple[str, int]]:
    """An MLflow server of the storage on loopback, and its process."""
    database = sqlite_path(tracking_uri(storage))
    assert database is not None
    database.touch()
    command, url = server_command(storage, free_port(0))
    environment = {**os.environ, **CLIENT_ENVIRONMENT, **SERVER_ENVIRONMENT}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            time.sleep(0.2)
        try:
            yield url, process.pid
        finally:
            process.terminate()


class CPUSeconds:
    """CPU seconds of processes and what they started, read until they are gone."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._before = {name: self._read(name) for name in pids}
        self.seconds = dict.fromkeys(pids, 0.0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "CPUSeconds":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            for name in self._processes:
                with contextlib.suppress(psutil.Error):
                    self.seconds[name] = self._read(name) - self._before[name]

    def _read(self, name: str) -> float:
        process = self._processes[name]
        family = [process, *process.children(recursive=True)]
        return sum(times.user + times.system for times in (one.cpu_times() for one in family))


def train_all(sweep: LocalStorage, trials: list[PlannedTrial], scratch: Path) -> list[Timing]:
    """Train every trial at once; what each has spent."""
    processes, timings = [], []
    for trial in trials:
        spec, timing = scratch / f"{trial.id}.spec.json", scratch / f"{trial.id}.timing.json"
        spec.write_bytes(trial.spec.to_json())
        out = trial_storage(sweep, trial.id).url
        command = [sys.executable, __file__, "--inside", str(spec), out, str(timing)]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        timings.append(timing)
    codes = [process.wait() for process in processes]  # all of them, whatever the first says
    if any(codes):
        sys.exit("a trial has failed: nothing to report")
    return [json.loads(timing.read_text()) for timing in timings]


def report(
    name: str,
    timings: list[Timing],
    steps: int,
    took: float,
    cpu_seconds: dict[str, float],
) -> None:
    count = len(timings)
    print(f"{name}: {count} trials at once, {steps} updates each, {took:.0f} s")
    print(f"{'on the training thread, mean':32}{'CPU us/step':>13}{'share':>9}{'wall share':>12}")
    whats = sorted({key for one in timings for key in one["cpu"]})
    for what in [STEP, *(what for what in whats if what != STEP)]:
        cpu = sum(one["cpu"].get(what, 0.0) for one in timings) / count
        print(
            f"{what:32}{1e6 * cpu / steps:13,.1f}{_share(timings, 'cpu', [what]):9.3%}"
            f"{_share(timings, 'wall', [what]):12.3%}"
        )
    watched = [what for what in whats if what != STEP]
    for clock in ("cpu", "wall"):
        shares = [_share([one], clock, watched) for one in timings]
        mean = _share(timings, clock, watched)
        print(
            f"{'watched / updates, ' + clock:32}{mean:9.3%}   worst trial {max(shares):.3%}"
            f"   goal {GOAL:.0%}"
        )
    trained = sum(sum(one["cpu"].values()) for one in timings)
    beside = {"threads that write": sum(one["beside"] for one in timings)}
    for who, seconds in (beside | cpu_seconds).items():
        print(f"{'CPU seconds of the ' + who:40}{seconds:9.1f}  {seconds / trained:.1%} of theirs")


def _share(timings: list[Timing], clock: str, whats: list[str]) -> float:
    spent = sum(one[clock].get(what, 0.0) for one in timings for what in whats)
    return spent / sum(one[clock][STEP] for one in timings)


if __name__ == "__main__":
    main()
