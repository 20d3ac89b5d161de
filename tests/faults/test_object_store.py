"""A sweep whose storage is an object store over a network: what it needs of one, and what becomes
of it while the store does not answer."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import Relay, S3Server

from trialstore.records import get_json
from trialstore.storage import open_storage

from .fault_sweep import (
    PATIENCE_S,
    assert_same_bits,
    command,
    train_undisturbed,
    wait_for_a_running_trial,
)

#: pyarrow asks a store that refuses for some six seconds; a trial that has to write fails then.
AWAY_S = 45


def typed(storage: str, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(storage, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def relay(s3: S3Server) -> Iterator[Relay]:
    relay = Relay(s3.endpoint)
    yield relay
    relay.end()


@pytest.mark.slow
def test_a_store_that_is_away_and_a_driver_that_is_killed_cost_no_bit(
    s3: S3Server, relay: Relay, tmp_path: Path
) -> None:
    url = s3.new_bucket(through=relay.endpoint)
    path, _, options = url.partition("?")
    # Looked at past the relay, which the sweep has to use.
    sweep = open_storage(f"{path}/tiny?{options.replace(relay.endpoint, s3.endpoint)}")
    tracking = ("--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with typed(url, *tracking) as driver:
        first = wait_for_a_running_trial(sweep, driver, but_not=set())
        driver.kill()
    earlier = sweep.list()
    with typed(url, *tracking) as driver:
        second = wait_for_a_running_trial(sweep, driver, but_not=set(), earlier=earlier)
        relay.cut()
        time.sleep(AWAY_S)
        relay.mend()
        output, errors = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, errors
    report = json.loads(output)
    assert report["counts"]["completed"] == 3
    trials = [cell["id"] for cell in report["trials"]]
    counted = {t: get_json(sweep.child(f"trials/{t}"), "retries.json") for t in trials}
    assert {counts["failures"] for counts in counted.values()} == {0}
    assert counted[second]["preemptions"] >= 1
    assert get_json(sweep.child(f"trials/{first}"), "result.json")["attempts"] >= 2
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    train_undisturbed(sweep, trials, undisturbed)
    assert_same_bits(sweep, trials, undisturbed)
    assert report["report"] == f"{path}/tiny/report/report.html?{options}"
