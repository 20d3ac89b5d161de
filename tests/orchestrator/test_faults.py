"""What is killed in mid-sweep is continued by the same command, bit for bit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from analysis.records import METRICS, SPECTRA, committed_steps, get_json, read_records
from analysis.storage import LocalStorage

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "orchestrator" / "sweeps" / "tiny.yaml"
STEPS = 300
#: Wall-clock columns: no two runs share them.
CLOCK = ["time_ms", "tokens_per_s", "mfu"]
PATIENCE_S = 200
#: Between two looks, so that looking does not take the core that the driver needs.
LOOK_S = 0.05


OVERRIDES = [
    f"training.steps={STEPS}",
    "resources.checkpoint_every=40",
    "evaluation.every=50",
    "spectra.every=50",
    "grid.width_multiplier=[2, 4, 8]",
]


def command(storage: Path) -> list[str]:
    return [
        *[sys.executable, "-m", "orchestrator.cli", "run", str(SWEEP)],
        *["--storage", str(storage), "--json"],
        *[word for override in OVERRIDES for word in ("--set", override)],
    ]


def run(storage: Path) -> dict:
    done = subprocess.run(command(storage), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def trial(storage: Path, trial_id: str) -> LocalStorage:
    return LocalStorage(storage / "tiny" / "trials" / trial_id)


def wait_for_a_running_trial(storage: Path, driver: subprocess.Popen, but_not: set[str]) -> str:
    """The id of a trial that has a committed checkpoint and is not over yet."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(LOOK_S)
        assert driver.returncode is None, driver.communicate()
        for folder in sorted((storage / "tiny" / "trials").glob("*")):
            keys = trial(storage, folder.name).list()
            if folder.name not in but_not and "result.json" not in keys and committed_steps(keys):
                return folder.name
    raise AssertionError("no trial got as far as a checkpoint")


def content(directory: LocalStorage) -> dict:
    """Everything a trial found out, without the clock."""
    tables = {
        table: read_records(directory, table).drop_columns(
            [column for column in CLOCK if table == METRICS or column == "time_ms"]
        )
        for table in (METRICS, SPECTRA)
    }
    result = get_json(directory, "result.json")
    return {
        **{table: rows.to_pylist() for table, rows in tables.items()},
        "final": result["final"],
        "step": result["step"],
    }


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One sweep whose trainer is killed, then its driver, then continued to the end."""
    storage = tmp_path_factory.mktemp("disturbed")
    with subprocess.Popen(
        command(storage), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        first = wait_for_a_running_trial(storage, driver, but_not=set())
        os.kill(get_json(trial(storage, first), "lease.json")["pid"], signal.SIGKILL)
        # Tune tries it again by itself. The driver goes while another trial is under way.
        second = wait_for_a_running_trial(storage, driver, but_not={first})
        driver.kill()
    finished = {
        path.parent.name: path.read_bytes()
        for path in (storage / "tiny" / "trials").glob("*/result.json")
    }
    return {
        "storage": storage, "report": run(storage), "finished": finished, "killed": {first, second},
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(disturbed: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trials one after the other in one process, without Ray and without a kill."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for cell in disturbed["report"]["trials"]:
        spec = trial(disturbed["storage"], cell["id"]).get("spec.json")
        (folder / f"{cell['id']}.json").write_bytes(spec)
    each = ROOT / "tests" / "trainers" / "train_each.py"
    subprocess.run([sys.executable, each, folder], check=True, capture_output=True, timeout=240)
    return folder


def test_the_same_command_finishes_the_sweep(disturbed: dict) -> None:
    assert disturbed["report"]["counts"]["completed"] == 3


def test_killed_trials_went_on_from_a_checkpoint(disturbed: dict) -> None:
    for trial_id in disturbed["killed"]:
        result = get_json(trial(disturbed["storage"], trial_id), "result.json")
        assert result["attempts"] >= 2, trial_id


def test_finished_trials_are_not_trained_again(disturbed: dict) -> None:
    for trial_id, result in disturbed["finished"].items():
        path = disturbed["storage"] / "tiny" / "trials" / trial_id / "result.json"
        assert path.read_bytes() == result


def test_losses_eigenvalues_and_rows_equal_those_of_an_undisturbed_run(
    disturbed: dict, undisturbed: Path
) -> None:
    ids = [cell["id"] for cell in disturbed["report"]["trials"]]
    assert len(ids) == 3
    for trial_id in ids:
        expected = content(LocalStorage(undisturbed / trial_id))
        assert content(trial(disturbed["storage"], trial_id)) == expected
        assert len(expected[METRICS]) == STEPS + STEPS // 50 + 1
        assert len(expected[SPECTRA]) == 2 * (STEPS // 50 + 1)


def test_mlflow_has_every_point_once(disturbed: dict) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(disturbed["report"]["tracking_uri"])
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for cell in disturbed["report"]["trials"]:
        runs = client.search_runs(experiments, f"tags.trial_id = '{cell['id']}'")
        assert len(runs) == 1
        records = content(trial(disturbed["storage"], cell["id"]))
        trained = [row["step"] for row in records[METRICS] if row["kind"] == "train"]
        evaluated = [row["step"] for row in records[METRICS] if row["kind"] == "evaluation"]
        for key, steps in {
            "train/loss": trained,
            "val/loss": evaluated,
            "spectra/post/L01/hard_rank": evaluated,
        }.items():
            points = client.get_metric_history(runs[0].info.run_id, key)
            assert Counter(point.step for point in points) == Counter(steps), key
