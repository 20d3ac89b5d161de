"""An exporter ends when its driver tells it to, whoever else signals it."""

import os
import signal
import time

import pytest
from exporter_bench import Bench, finish_trial, put_rows

from orchestrator.mlflow.exporter import LOCK_FILE, start_exporter


@pytest.mark.processes
def test_an_exporter_that_is_terminated_with_its_driver_still_sends_the_rest(bench: Bench) -> None:
    trial = bench.begin()
    exporter = start_exporter(bench.sweep.url, bench.uri)
    give_up = time.monotonic() + 120
    # It opens the file as soon as it heeds no signal.
    while not bench.sweep.path(LOCK_FILE).exists():
        assert time.monotonic() < give_up
        time.sleep(0.05)
    os.kill(exporter.pid, signal.SIGTERM)  # as `ray job stop` does to all processes of a job
    put_rows(trial, 1, 0, 10)
    finish_trial(trial)
    assert exporter.finish(timeout=120)
    assert bench.parent().info.status == "FINISHED"
