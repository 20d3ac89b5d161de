"""A sweep and its trials as MLflow's runs: found, ended, and with their report."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from exporter_bench import (
    START_MS,
    Bench,
    checkpoint,
    expected,
    finish_trial,
    give_up,
    put_rows,
    rows_of,
)

from orchestrator.mlflow.export_sweep import Exporter
from orchestrator.mlflow.tracking import Tracking, git_state
from trialstore import records
from trialstore.errors import InputError
from trialstore.records import encode_json
from trialstore.storage import LocalStorage

# --- runs ----------------------------------------------------------------------------------


def test_a_run_is_found_by_its_cell(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    bench.exporter().sync_once()
    run, parent = bench.child(), bench.parent()
    assert run.info.run_name == "gpt2 pre 4x d64 L2 s0"
    assert run.info.start_time == START_MS + 50  # its first record
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["outcome"] == "running"
    assert run.info.status == parent.info.status == "RUNNING"
    cell = {"architecture": "gpt2", "norm": "pre", "width_multiplier": "4", "D": "256", "seed": "0"}
    assert cell.items() <= run.data.params.items()
    assert cell.items() <= run.data.tags.items()
    assert run.data.params["training.learning_rate"] == "0.006"
    assert run.data.params["parameters.total"] == "131072"
    assert parent.info.run_name == "small"
    artifacts = bench.root / "mlartifacts" / run.info.run_id / "artifacts"
    assert json.loads((artifacts / "spec.json").read_bytes())["id"] == bench.ids[0]


def test_tags_and_params_keep_the_names_that_people_search_for(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    bench.exporter().sync_once()
    run, parent = bench.child().data, bench.parent().data
    cell = {"D", "architecture", "d_model", "depth", "hold", "norm", "seed", "width_multiplier"}
    mlflows = {"mlflow.runName", "mlflow.source.name", "mlflow.user"}
    assert set(run.tags) == cell | mlflows | {
        "mlflow.parentRunId", "outcome", "sweep", "trial_id", "widthlab.files",
        "widthlab.finished_ms", "widthlab.sweep", "widthlab.watermark",
    }  # fmt: skip
    assert set(run.params) == cell | {
        "data.corpus_fingerprint", "data.tokenizer_hash", "evaluation.every", "evaluation.tokens",
        "layout.device", "layout.workers", "model.architecture", "model.context", "model.d_model",
        "model.ffn_widths", "model.head_dim", "model.norm", "model.vocab_size", "parameters.total",
        "semantics_version", "source.corpus", "source.tokenizer", "spectra.every", "spectra.sites",
        "spectra.tokens", "training.batch_tokens", "training.learning_rate", "training.steps",
    }  # fmt: skip
    assert set(parent.tags) == mlflows | {
        "mlflow.note.content", "sweep", "trials", "widthlab.sweep", "widthlab.sweep_file",
    }  # fmt: skip
    assert set(parent.params) == {"corpus_fingerprint"}


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("completed", "FINISHED"),
        ("collapsed", "FINISHED"),
        ("stopped", "FINISHED"),
        ("diverged", "FAILED"),
    ],
)
@pytest.mark.long
def test_an_outcome_ends_its_run(bench: Bench, outcome: str, status: str) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    finish_trial(trial, outcome)
    bench.exporter().finish()
    run = bench.child()
    assert run.info.status == status
    assert run.data.tags["outcome"] == outcome
    assert run.info.end_time == START_MS + 10_000
    assert bench.parent().info.status == "FINISHED"
    artifacts = bench.root / "mlartifacts" / run.info.run_id / "artifacts"
    assert json.loads((artifacts / "result.json").read_bytes())["outcome"] == outcome


def test_a_failed_trial_fails_its_run_until_a_retry_continues_it(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    checkpoint(trial, 10, 1)
    give_up(trial)
    assert bench.exporter().finish().away is None
    failed = bench.child()
    assert (failed.info.status, failed.info.end_time) == ("FAILED", START_MS + 9_000)
    assert failed.data.tags["failure"] == "train: out of memory"
    assert bench.parent().info.status == "FAILED"

    trial.put(records.LEASE, encode_json({"attempt": 2, "step": 10, "steps": 40, "loss": None}))
    put_rows(trial, 2, 11, 40)
    exporter = bench.exporter()
    exporter.sync_once()
    assert bench.child().info.status == "RUNNING"
    assert bench.parent().info.status == "RUNNING"
    finish_trial(trial, attempt=2)
    exporter.finish()
    assert bench.child().info.run_id == failed.info.run_id
    assert bench.child().info.status == "FINISHED"
    assert bench.parent().info.status == "FINISHED"
    assert bench.points() == expected(rows_of(0, 40))


def test_a_sweep_keeps_its_runs_when_its_directory_moves(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    bench.exporter().sync_once()
    moved = bench.root / "elsewhere"
    shutil.copytree(bench.sweep.root, moved)
    assert Exporter(LocalStorage(moved), bench.uri).sync_once().points == 0
    assert len(bench.runs()) == 2


def test_two_sweeps_of_one_name_share_no_run(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    other = LocalStorage(bench.root / "colleague" / "small")
    shutil.copytree(bench.sweep.root, other.root)
    for sweep in (bench.sweep, other):
        Exporter(sweep, bench.uri).sync_once()
    assert len(bench.runs()) == 4


def test_the_report_and_the_verdict_hang_on_the_sweep_and_are_renewed(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    finish_trial(trial)
    exporter = bench.exporter()
    exporter.sync_once()
    assert "1 completed" in bench.parent().data.tags["mlflow.note.content"]

    verdict = {"label": "pre, depth 2", "sentence": "use 2.67x"}
    bench.sweep.put("report/recommendation.json", encode_json({"groups": [verdict]}))
    bench.sweep.put("report/figures/loss.svg", b"<svg/>")
    exporter.sync_once()
    parent = bench.parent()
    assert "**pre, depth 2**: use 2.67x." in parent.data.tags["mlflow.note.content"]
    artifacts = bench.root / "mlartifacts" / parent.info.run_id / "artifacts" / "report"
    assert (artifacts / "figures" / "loss.svg").read_bytes() == b"<svg/>"

    bench.sweep.put("report/figures/loss.svg", b"<svg>new</svg>")
    bench.exporter().finish()
    assert (artifacts / "figures" / "loss.svg").read_bytes() == b"<svg>new</svg>"


def test_artifacts_that_cannot_be_stored_do_not_hold_up_the_numbers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Tracking, run_id: str, path: str, data: bytes) -> None:
        raise ModuleNotFoundError("boto3")

    monkeypatch.setattr(Tracking, "send_artifact", broken)
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    bench.exporter().finish()
    assert bench.points() == expected(rows_of(0, 40))
    assert bench.child().info.status == "FINISHED"
    assert len([r for r in caplog.records if "artifacts are not sent" in r.getMessage()]) == 1


def test_a_run_says_which_commit_it_was_started_from(bench: Bench, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    assert git_state(checkout) == {}
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run(["git", "-C", str(checkout), *command], check=True)
    assert git_state(checkout)["dirty"] is False
    (checkout / "new.py").touch()
    state = git_state(checkout)
    assert state["dirty"] is True
    put_rows(bench.begin(), 1, 0, 10)
    content = yaml.safe_load(bench.sweep.get("sweep.yaml"))
    content["resolved"]["git"] = state
    bench.sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    bench.exporter().sync_once()
    tags = bench.child().data.tags
    assert tags["mlflow.source.git.commit"] == state["commit"]
    assert tags["mlflow.source.git.dirty"] == "true"


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sweep\.yaml"):
        Exporter(LocalStorage(tmp_path), "http://127.0.0.1:1")
