"""Whole sweeps by the command line: real Ray, real training, real MLflow, seconds each."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from repository import TINY

from orchestrator.cli import __main__ as cli
from trialstore.records import MANIFEST_NAME, checkpoint_folder, committed_steps, encode_json
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.processes

WIDTHLAB = (sys.executable, "-m", "orchestrator.cli")
#: Of the trial that is stopped on its way: more than pass while it is told.
STEPS = 1000
PATIENCE_S = 240
#: Between two looks, so that looking does not take the core that the sweep needs.
LOOK_S = 0.05


def run(storage: Path, *overrides: str, code: int = 0, options: tuple[str, ...] = ()) -> dict:
    """A sweep as it is typed, in a process of its own."""
    sets = [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(
        [*WIDTHLAB, "run", TINY, "--storage", storage, "--json", *sets, *options],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)  # and nothing but JSON


@pytest.fixture
def widthlab(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Another command of widthlab's, which starts no Ray and so needs no process: its stdout."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        cli.app([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return call


def results(storage: Path) -> dict[str, bytes]:
    return {
        path.parent.name: path.read_bytes()
        for path in (storage / "tiny" / "trials").glob("*/result.json")
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    storage = tmp_path_factory.mktemp("sweeps")
    return storage, run(storage, "match=[none, params]", "grid.width_multiplier=[2, 4]")


def test_a_sweep_ends_with_a_judgement_and_a_report(first: tuple[Path, dict]):
    storage, report = first
    assert report["counts"]["completed"] == len(report["trials"]) == report["trained"] == 3
    assert report["mirrored"]
    stored = json.loads((storage / "tiny" / "report" / "recommendation.json").read_text())
    assert report["recommendation"] == stored
    assert [group["verdict"] for group in stored["groups"]] == ["refused"]
    assert Path(report["report"]).is_file()


@pytest.mark.slow
def test_a_new_width_trains_only_itself_and_a_failing_trial_stops_nobody(
    first: tuple[Path, dict], widthlab: Callable[..., str]
):
    storage, report = first
    sweep = storage / "tiny"
    before, wider = results(storage), ("match=[none, params]", "grid.width_multiplier=[2, 4, 6]")
    sets = [word for override in wider for word in ("--set", override)]
    planned = [cell["id"] for cell in json.loads(widthlab("plan", TINY, "--json", *sets))["trials"]]
    bad, _ = (trial_id for trial_id in planned if trial_id not in before)  # one of each matching
    spoil(LocalStorage(sweep / "trials" / bad))
    unreachable = ("--tracking-uri", "http://127.0.0.1:9")
    report = run(storage, "resources.retries=1", *wider, code=1, options=unreachable)
    assert report["trained"] == 2  # or tried to
    assert report["counts"] == {**report["counts"], "completed": 4, "failed": 1}
    state = {trial["id"]: trial for trial in report["trials"]}
    assert state[bad]["state"] == "failed"
    assert "checkpoints" in state[bad]["message"]
    assert {key: results(storage)[key] for key in before} == before

    # A tracking server that does not answer costs nothing but a later `sync`.
    assert not report["mirrored"]
    assert json.loads(widthlab("sync", sweep, "--json"))["points"] > 0
    assert json.loads(widthlab("sync", sweep, "--json"))["points"] == 0

    # What is finished is not trained again, and what failed not before somebody asks; a rerun
    # starts from nothing.
    again = run(storage, *wider, code=1)
    assert again["trained"] == 0
    assert again["trials"] == report["trials"]
    widthlab("rerun", sweep, bad[:8])
    assert run(storage, *wider)["counts"]["completed"] == 5
    assert {key: results(storage)[key] for key in before} == before


def spoil(trial: LocalStorage) -> None:
    """A committed checkpoint whose only file is not what its manifest says."""
    folder = checkpoint_folder(5)
    trial.put(f"{folder}/state.pt", b"not a checkpoint")
    manifest = {
        "trial_id": "x", "step": 5, "attempt": 1, "records": [], "layout": {},
        "files": {"state.pt": {"sha256": "0" * 64, "bytes": 16}},
    }  # fmt: skip
    trial.put(f"{folder}/{MANIFEST_NAME}", encode_json(manifest))


@pytest.mark.timeout(600)  # two runs, each with its own Ray
def test_a_stopped_sweep_goes_on_where_it_was(tmp_path: Path, widthlab: Callable[..., str]):
    sets = (f"steps={STEPS}", "grid.width_multiplier=2", "checkpoint_every=20")
    command = [*WIDTHLAB, "run", TINY, "--storage", tmp_path, "--json"]
    command += [word for override in sets for word in ("--set", override)]
    sweep = tmp_path / "tiny"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        deadline = time.monotonic() + PATIENCE_S
        while not any(committed_steps(trial_keys(sweep, path)) for path in trials(sweep)):
            assert time.monotonic() < deadline
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(LOOK_S)
            assert driver.returncode is None, driver.communicate()
        widthlab("stop", sweep)
        output, errors = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 1, errors
    stopped = json.loads(output)
    assert stopped["stopped"]
    (trial,) = stopped["trials"]
    assert trial["state"] == "waiting"
    assert 0 < trial["step"] < STEPS
    report = run(tmp_path, *sets)
    assert report["counts"]["completed"] == 1
    (result,) = map(json.loads, results(tmp_path).values())
    assert (result["step"], result["attempts"]) == (STEPS, 2)


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
