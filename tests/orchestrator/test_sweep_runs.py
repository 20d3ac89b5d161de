"""Whole sweeps by the command line: real Ray, real training, real MLflow, seconds each."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.records import MANIFEST_NAME, checkpoint_folder, committed_steps, encode_json
from analysis.storage import LocalStorage

TINY = Path(__file__).parents[2] / "orchestrator" / "sweeps" / "tiny.yaml"
PATIENCE_S = 120


def widthlab(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def run(storage: Path, *overrides: str, code: int = 0, options: tuple[str, ...] = ()) -> dict:
    sets = [word for override in overrides for word in ("--set", override)]
    done = widthlab("run", TINY, "--storage", storage, "--json", *sets, *options, code=code)
    return json.loads(done.stdout)  # and nothing but JSON


def results(storage: Path) -> dict[str, bytes]:
    return {
        path.parent.name: path.read_bytes()
        for path in (storage / "tiny" / "trials").glob("*/result.json")
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    storage = tmp_path_factory.mktemp("sweeps")
    return storage, run(storage, "hold=[none, params]", "grid.width_multiplier=[2, 4]")


def test_a_sweep_ends_with_a_judgement_and_a_report(first: tuple[Path, dict]):
    storage, report = first
    assert report["counts"]["completed"] == len(report["trials"]) == report["trained"] == 3
    assert report["mirrored"]
    stored = json.loads((storage / "tiny" / "report" / "recommendation.json").read_text())
    assert report["recommendation"] == stored
    assert [group["verdict"] for group in stored["groups"]] == ["refused"]
    assert Path(report["report"]).is_file()


def test_a_finished_sweep_trains_nothing_and_a_new_width_only_itself(first: tuple[Path, dict]):
    storage, report = first
    before = results(storage)
    again = run(storage, "hold=[none, params]", "grid.width_multiplier=[2, 4]")
    assert again["trained"] == 0
    assert again["trials"] == report["trials"]
    wider = run(storage, "hold=[none, params]", "grid.width_multiplier=[2, 4, 6]")
    assert wider["trained"] == 2  # one in each half of the grid
    assert {key: results(storage)[key] for key in before} == before


def test_a_failing_trial_is_recorded_and_stops_nobody(tmp_path: Path):
    two = "grid.width_multiplier=[1, 2]"
    plan = json.loads(widthlab("plan", TINY, "--json", "--set", two).stdout)
    bad = plan["trials"][0]["id"]
    spoil(LocalStorage(tmp_path / "tiny" / "trials" / bad))
    unreachable = ("--tracking-uri", "http://127.0.0.1:9")
    report = run(tmp_path, "resources.retries=1", two, code=1, options=unreachable)
    assert report["counts"] == {**report["counts"], "completed": 1, "failed": 1}
    state = {trial["id"]: trial for trial in report["trials"]}
    assert state[bad]["state"] == "failed"
    assert "none of the checkpoints" in state[bad]["message"]

    # A tracking server that does not answer costs nothing but a later `sync`.
    assert not report["mirrored"]
    sweep = tmp_path / "tiny"
    synced = json.loads(widthlab("sync", sweep, "--json").stdout)
    assert synced["points"] > 0
    assert json.loads(widthlab("sync", sweep, "--json").stdout)["points"] == 0

    # Failed trials are left alone until somebody asks; a rerun starts from nothing.
    assert run(tmp_path, two, code=1)["trained"] == 0
    widthlab("rerun", sweep, bad[:8])
    assert run(tmp_path, two)["counts"]["completed"] == 2


def spoil(trial: LocalStorage) -> None:
    """A committed checkpoint whose only file is not what its manifest says."""
    folder = checkpoint_folder(5)
    trial.put(f"{folder}/state.pt", b"not a checkpoint")
    manifest = {
        "trial_id": "x", "step": 5, "attempt": 1, "records": [], "layout": {},
        "files": {"state.pt": {"sha256": "0" * 64, "bytes": 16}},
    }  # fmt: skip
    trial.put(f"{folder}/{MANIFEST_NAME}", encode_json(manifest))


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path: Path):
    sets = ["--set", "steps=1500", "--set", "grid.width_multiplier=2", "--set",
            "checkpoint_every=50"]  # fmt: skip
    command = ["run", str(TINY), "--storage", str(tmp_path), "--json", *sets]
    sweep = tmp_path / "tiny"
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as driver:  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while not any(committed_steps(trial_keys(sweep, path)) for path in trials(sweep)):
            assert time.monotonic() < deadline
            assert driver.poll() is None, driver.communicate()
        widthlab("stop", sweep)
        output, errors = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 1, errors
    stopped = json.loads(output)
    assert stopped["stopped"]
    (trial,) = stopped["trials"]
    assert trial["state"] == "waiting"
    assert 0 < trial["step"] < 1500
    report = json.loads(widthlab(*command).stdout)
    assert report["counts"]["completed"] == 1
    (result,) = map(json.loads, results(tmp_path).values())
    assert (result["step"], result["attempts"]) == (1500, 2)


def trials(sweep: Path) -> list[Path]:
    return list((sweep / "trials").glob("*"))


def trial_keys(sweep: Path, trial: Path) -> list[str]:
    return LocalStorage(sweep / "trials" / trial.name).list()


@pytest.mark.slow
def test_a_trial_of_two_workers_finds_what_one_worker_finds(
    first: tuple[Path, dict], tmp_path: Path
):
    alone = {trial["id"]: trial["loss"] for trial in first[1]["trials"]}
    shared = run(tmp_path, "workers=2", "zero_stage=2", "grid.width_multiplier=4")
    (trial,) = shared["trials"]
    assert trial["loss"] == pytest.approx(alone[trial["id"]], abs=1e-5)
    (result,) = map(json.loads, results(tmp_path).values())
    assert (result["layout"]["workers"], result["layout"]["zero_stage"]) == (2, 2)
