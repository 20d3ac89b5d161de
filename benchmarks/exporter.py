"""What the exporter costs over a long sweep: memory and time of a look, early and late.

    python benchmarks/exporter.py [--running 4] [--snapshots 2000] [--finished 300]

A made-up sweep, written by the trainer's own writer: some trials run and record a snapshot after
another, then end, then many short ones have ended. Before each line of the table the exporter sends
what is new to an SQLite file, images included; the line is of the look after it, which finds
nothing new. Flat is what it should be.
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from orchestrator.grid.expand import Grid, PlannedTrial, expand
from orchestrator.grid.plan_records import resolved_yaml
from orchestrator.mlflow.export_sweep import Exporter
from orchestrator.mlflow.tracking import tracking_uri
from orchestrator.sweep.load import load_sweep
from trainers.data.sources import DataSpec
from trainers.durable.writer import TrialWriter
from trialstore import records
from trialstore.lease import Lease
from trialstore.records import METRICS, SPECTRA, SPECTRUM_COLUMNS, Row
from trialstore.storage import LocalStorage
from trialstore.sweep_file import trial_storage

TINY = Path(__file__).parents[1] / "orchestrator" / "sweeps" / "tiny.yaml"
CHECKPOINT_EVERY = 50  # snapshots
LINES = 8
LEAST_STEPS = 20


class Trial:
    """A trial that is written as a trainer writes it."""

    def __init__(self, sweep: LocalStorage, planned: PlannedTrial) -> None:
        self.spec = planned.spec
        self.storage = trial_storage(sweep, planned.id)
        self.storage.put(records.SPEC, planned.spec.to_json())
        self._lease = Lease(self.storage, planned.spec.training.steps)
        self._writer = TrialWriter(self.storage, planned.id, self._lease)

    def record(self, step: int) -> None:
        """An update and a snapshot, durable at once."""
        now = {"step": step, "tokens": 512 * step, "time_ms": time.time_ns() // 1_000_000}
        train = {"kind": "train", "train_loss": 5.0, "learning_rate": 1e-3, "tokens_per_s": 1e4}
        self._writer.add(METRICS, [now | train])
        width = self.spec.model.ffn_widths[0]
        spectrum: Row = {
            **dict.fromkeys(SPECTRUM_COLUMNS, 0.5),
            "site": "post",
            "bucket": "all",
            "D": width,
            "N": 8 * width,
            "n_over_d": 8.0,
            "method": "exact",
            "status": "undersampled",
            "eigenvalues": np.arange(1.0, width + 1) ** -1.2,
        }
        layers = range(self.spec.model.depth)
        self._writer.add(SPECTRA, [{**now, **spectrum, "layer": layer} for layer in layers])
        self._writer.flush()
        if step % CHECKPOINT_EVERY == 0:
            self._writer.commit(step, {}, {})
            self._writer.prune_checkpoints(2)

    def finish(self, step: int) -> None:
        result = {"outcome": "completed", "step": step, "steps": step, "final": {}}
        with self._lease:
            self._writer.finish({**result, "finished_ms": time.time_ns() // 1_000_000})

    @property
    def parts(self) -> int:
        return len(self.storage.list(METRICS)) + len(self.storage.list(SPECTRA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--running", type=int, default=4)
    parser.add_argument("--snapshots", type=int, default=2000)
    parser.add_argument("--finished", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="widthlab-exporter-") as scratch:
        measure(Path(scratch), options.running, options.snapshots, options.finished)


def measure(scratch: Path, running: int, snapshots: int, finished: int) -> None:
    storage = LocalStorage(scratch)
    grid = planned(max(running, finished), max(snapshots, LEAST_STEPS))
    sweep = storage.child("tiny")
    sweep.put("sweep.yaml", resolved_yaml(*grid).encode())
    exporter = Exporter(sweep, tracking_uri(storage))
    print(f"{'':34}{'parts a trial':>14}{'sending [s]':>13}{'idle look [ms]':>16}{'RSS [MiB]':>11}")
    look(exporter, "nothing has begun", 0)
    trials = [Trial(sweep, one) for one in grid[1].trials[:running]]
    for step in range(1, snapshots + 1):
        for trial in trials:
            trial.record(step)
        if step % max(1, snapshots // LINES) == 0:
            look(exporter, f"{running} run, {step} snapshots each", trials[0].parts)
    for trial in trials:
        trial.finish(snapshots)
    look(exporter, f"{running} have ended", trials[0].parts)
    for one in grid[1].trials[running:]:
        short = Trial(sweep, one)
        short.record(1)
        short.finish(1)
    look(exporter, f"{max(running, finished)} have ended", trials[0].parts)


def planned(trials: int, steps: int) -> tuple[object, Grid, DataSpec, int]:
    """The arguments of `resolved_yaml` for a sweep of replicates."""
    settings = [f"seed={list(range(trials))}", "grid.width_multiplier=4", f"steps={steps}"]
    config = load_sweep(TINY, settings)
    data = DataSpec(corpus_fingerprint="0" * 16, tokenizer_hash="0" * 16)
    return config, expand(config, data, 256), data, 256


def look(exporter: Exporter, what: str, parts: int) -> None:
    """Send what is new, then print what a look costs that finds nothing."""
    began = time.process_time()
    exporter.sync_once()
    sending = time.process_time() - began
    idle = []
    for _ in range(5):
        began = time.process_time()
        exporter.sync_once()
        idle.append(time.process_time() - began)
    gc.collect()
    memory = psutil.Process().memory_info().rss / 2**20
    print(f"{what:34}{parts:14}{sending:13.2f}{1000 * min(idle):16.2f}{memory:11.0f}", flush=True)


if __name__ == "__main__":
    main()
