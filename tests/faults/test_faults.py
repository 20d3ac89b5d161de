"""What is killed in mid-sweep is continued by the same command, bit for bit."""

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from trialstore.records import METRICS, get_json
from trialstore.storage import LocalStorage

from .fault_sweep import (
    assert_same_bits,
    command,
    pid_of,
    run,
    train_undisturbed,
    wait_for_a_running_trial,
)
from .trial_content import content

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One sweep whose trainer is killed, then its driver, then continued to the end."""
    storage = tmp_path_factory.mktemp("disturbed")
    sweep = LocalStorage(storage / "tiny")
    with subprocess.Popen(
        command(storage), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        first = wait_for_a_running_trial(sweep, driver, but_not=set())
        os.kill(pid_of(sweep, first), signal.SIGKILL)
        # Tune tries it again by itself. The driver goes while another trial is under way.
        second = wait_for_a_running_trial(sweep, driver, but_not={first})
        driver.kill()
    finished = {key: sweep.get(key) for key in sweep.list("trials") if key.endswith("/result.json")}
    report = run(storage)
    return {
        "sweep": sweep, "report": report, "finished": finished, "killed": {first, second},
        "trials": [cell["id"] for cell in report["trials"]],
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(disturbed: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train_undisturbed(disturbed["sweep"], disturbed["trials"], folder)
    return folder


def test_the_same_command_finishes_the_sweep(disturbed: dict) -> None:
    assert disturbed["report"]["counts"]["completed"] == 3


def test_killed_trials_went_on_from_a_checkpoint(disturbed: dict) -> None:
    for trial_id in disturbed["killed"]:
        result = get_json(disturbed["sweep"].child(f"trials/{trial_id}"), "result.json")
        assert result["attempts"] >= 2, trial_id


def test_finished_trials_are_not_trained_again(disturbed: dict) -> None:
    for key, result in disturbed["finished"].items():
        assert disturbed["sweep"].get(key) == result


def test_losses_eigenvalues_and_rows_equal_those_of_an_undisturbed_run(
    disturbed: dict, undisturbed: Path
) -> None:
    assert_same_bits(disturbed["sweep"], disturbed["trials"], undisturbed)


def test_mlflow_has_every_point_once(disturbed: dict) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(disturbed["report"]["tracking_uri"])
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for trial_id in disturbed["trials"]:
        runs = client.search_runs(experiments, f"tags.trial_id = '{trial_id}'")
        assert len(runs) == 1
        records = content(disturbed["sweep"].child(f"trials/{trial_id}"))
        trained = [row["step"] for row in records[METRICS] if row["kind"] == "train"]
        evaluated = [row["step"] for row in records[METRICS] if row["kind"] == "evaluation"]
        for key, steps in {
            "train/loss": trained,
            "val/loss": evaluated,
            "spectra/post/L01/hard_rank": evaluated,
        }.items():
            points = client.get_metric_history(runs[0].info.run_id, key)
            assert Counter(point.step for point in points) == Counter(steps), key
