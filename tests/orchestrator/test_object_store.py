"""A sweep whose storage is an object store over a network: what it needs of one, and what becomes
of it while the store does not answer."""

import subprocess
import time
from pathlib import Path

import pytest
from fault_sweep import (
    assert_same_bits,
    command,
    run,
    train_undisturbed,
    wait_for_a_running_trial,
)
from s3_server import S3Server

from analysis.records import get_json
from analysis.storage import open_storage

#: pyarrow asks for some six seconds before it gives up: a trial that has to write meanwhile fails.
AWAY_S = 20


@pytest.mark.slow
def test_a_store_that_does_not_answer_and_a_driver_that_is_killed_cost_no_bit(
    s3: S3Server, tmp_path: Path
) -> None:
    url = s3.new_bucket()
    path, _, asked_with = url.partition("?")
    sweep = open_storage(f"{path}/tiny?{asked_with}")
    tracking = ("--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with subprocess.Popen(
        command(url, *tracking), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        first = wait_for_a_running_trial(sweep, driver, but_not=set())
        s3.halt()
        time.sleep(AWAY_S)
        s3.go_on()
        second = wait_for_a_running_trial(sweep, driver, but_not={first})
        driver.kill()
    report = run(url, *tracking)
    assert report["counts"]["completed"] == 3
    trials = [cell["id"] for cell in report["trials"]]
    again = {first, second}
    for trial_id in trials:
        trial = sweep.child(f"trials/{trial_id}")
        counted = get_json(trial, "retries.json")
        assert counted["failures"] == 0, (trial_id, counted)
        if trial_id in again:
            assert get_json(trial, "result.json")["attempts"] >= 2
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    train_undisturbed(sweep, trials, undisturbed)
    assert_same_bits(sweep, trials, undisturbed)
    assert report["report"] == f"{path}/tiny/report/report.html?{asked_with}"
