"""What is measured is seen in MLflow within half a minute, images of many trials beside it."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporter_bench import Bench, put_part, snapshot, train_row

from orchestrator.mlflow.exporter import start_exporter
from trialstore.records import METRICS, SPECTRA
from trialstore.storage import LocalStorage

TRIALS = 16
SNAPSHOTS = 8
WIDTH = 2048
SEEN_WITHIN_S = 30.0


def write_trial(trial: LocalStorage, every_s: float, done: threading.Event) -> None:
    """A part of metrics and one of spectra every few seconds, stamped with the time of day."""
    eigenvalues = (np.arange(1, WIDTH + 1) ** -1.2).tolist()
    for step in range(1, SNAPSHOTS + 1):
        done.wait(every_s)
        now = {"time_ms": time.time_ns() // 1_000_000}
        rows = [row | now | {"eigenvalues": eigenvalues, "D": WIDTH} for row in snapshot(step)]
        put_part(trial, METRICS, 1, [train_row(step) | now])
        put_part(trial, SPECTRA, 1, rows)


def newest_seen(client: Any, bench: Bench) -> dict[tuple[str, int], float]:
    """(run, step) -> Unix time of its record, for every step that the server shows."""
    return {
        (run.info.run_id, point.step): point.timestamp / 1000
        for run in bench.runs()
        if "trial_id" in run.data.tags
        for point in client.get_metric_history(run.info.run_id, "spectra/post/L01/hard_rank")
    }


@pytest.mark.slow
def test_a_record_is_seen_within_thirty_seconds_while_sixteen_trials_run(
    tmp_path: Path, template: Path, plain_environment: None
) -> None:
    bench = Bench(tmp_path, template, trials=TRIALS)
    done = threading.Event()  # never set: its wait is the trainers' pace
    trials = [bench.begin(number) for number in range(TRIALS)]
    writers = [threading.Thread(target=write_trial, args=(t, 4.0, done)) for t in trials]
    exporter = start_exporter(bench.sweep.url, bench.uri)
    client = bench.client
    delays: dict[tuple[str, int], float] = {}
    for writer in writers:
        writer.start()
    deadline = time.monotonic() + 180
    while len(delays) < TRIALS * SNAPSHOTS and time.monotonic() < deadline:
        if client.get_experiment_by_name("widthlab") is None:
            done.wait(0.5)
            continue
        seen, now = newest_seen(client, bench), time.time()
        delays |= {at: now - recorded for at, recorded in seen.items() if at not in delays}
    for writer in writers:
        writer.join()
    assert exporter.finish(timeout=120)
    assert len(delays) == TRIALS * SNAPSHOTS
    slowest = max(delays.values())
    print(f"median {np.median(list(delays.values())):.1f} s, slowest {slowest:.1f} s")
    assert slowest < SEEN_WITHIN_S
    images = list((tmp_path / "mlartifacts").rglob("images/*.webp"))
    assert len({path.parent for path in images}) == TRIALS
