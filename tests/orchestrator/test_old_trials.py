"""Claims about a sweep that an earlier version trained: said before training, used for nothing."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from messages import mentions
from repository import DATA
from rich.console import Console

from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.recommend import recommend
from orchestrator import run as run_module
from orchestrator.cli import __main__ as cli
from orchestrator.grid.old_trials import check_discard, notice_of_old_trials, old_trials
from orchestrator.grid.plan import Totals
from orchestrator.ledger.ledger import read_ledger
from orchestrator.mlflow.exporter import sync
from orchestrator.mlflow.from_mlflow import rebuild
from orchestrator.sweep.load import parse_sweep
from trialstore.errors import InputError
from trialstore.records import RESULT, SPEC, encode_json
from trialstore.storage import LocalStorage

OLD = DATA / "old-sweeps" / "semantics-1"
TOTALS = Totals(trials=11, flops=1, device_hours=1.5, energy_kwh=None, cost=3.0)


@pytest.fixture
def first(tmp_path: Path) -> LocalStorage:
    """A copy of the sweep of semantics version 1."""
    shutil.copytree(OLD, tmp_path / "semantics-1")
    return LocalStorage(tmp_path / "semantics-1")


def ids(sweep: LocalStorage) -> list[str]:
    return sorted(path.name for path in sweep.path("trials").iterdir())


# --- what is said --------------------------------------------------------------------------


def test_a_notice_counts_the_trials_and_names_versions_and_cost(first: LocalStorage) -> None:
    said = notice_of_old_trials(first, TOTALS)
    assert said is not None
    for words in (
        "11 finished trials of semantics version 1, which cannot be reused",
        "this widthlab trains version 2",
        "Training 11 trials again costs about 1.5 device-hours (90 min, cost 3)",
        "give this sweep another name first",
    ):
        assert words in said


def test_trials_that_had_begun_are_counted_apart(first: LocalStorage) -> None:
    for trial in ids(first)[:2]:
        first.delete(f"trials/{trial}/{RESULT}")
    assert "9 finished trials and 2 unfinished of" in (notice_of_old_trials(first, TOTALS) or "")


def test_there_is_nothing_to_say_of_a_new_sweep_and_of_none(tmp_path: Path) -> None:
    assert notice_of_old_trials(LocalStorage(tmp_path / "none"), TOTALS) is None
    current = LocalStorage(tmp_path / "current")
    shutil.copytree(OLD, current.root)
    file = current.get("sweep.yaml").replace(b"semantics_version: 1", b"semantics_version: 2")
    current.put("sweep.yaml", file)
    assert old_trials(current) is None


def test_old_trials_are_known_after_the_sweep_was_run_anew(first: LocalStorage) -> None:
    """Its sweep.yaml names the new ones then; what else is finished is asked for its version."""
    four, *others = ids(first)[3:]
    content = (
        first.get("sweep.yaml").decode().replace("semantics_version: 1", "semantics_version: 2")
    )
    for number, trial in enumerate(ids(first)):
        content = content.replace(trial, f"new-{number}")
    first.put("sweep.yaml", content.encode())
    result = {**json.loads(first.get(f"trials/{four}/{RESULT}")), "semantics_version": 2}
    first.put(f"trials/{four}/{RESULT}", encode_json(result))
    found = old_trials(first)
    assert found is not None
    assert set(found.finished) == {*ids(first)[:3], *others}
    assert found.versions == (1,)


def test_no_result_is_read_where_sweep_yaml_names_them_all(
    first: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a result was read")

    monkeypatch.setattr("trialstore.records.get_json", read)
    found = old_trials(first)
    assert found is not None
    assert len(found.finished) == 11


# --- before training -----------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"document {number} says " * 200)
    return folder


class StartedError(Exception):
    """In the place of Ray."""


def told_before_training(
    sweep: LocalStorage, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """What a run of two trials says before it starts Ray."""

    def start(*_: object) -> None:
        raise StartedError

    text = f"""\
name: semantics-1
corpus: {{kind: text, paths: ["{corpus}/*.txt"]}}
tokenizer: {{kind: bytes}}
model: {{architecture: gpt2, norm: pre, depth: 1, d_model: 48, head_dim: 24, context: 32}}
grid: {{width_multiplier: [1, 2]}}
training: {{steps: 4, batch_tokens: 512, learning_rate: 1e-3}}
evaluation: {{every: 4, tokens: 512}}
spectra: {{every: 4, tokens: 512}}
"""
    monkeypatch.setattr(run_module, "trials_at_once", start)
    said = io.StringIO()
    with pytest.raises(StartedError):
        run_module.run_sweep(
            parse_sweep(text, "semantics-1.yaml"), sweep,
            run_module.RunOptions("unused", cache=cache), Console(file=said, width=80),
        )  # fmt: skip
    return said.getvalue()


def test_a_run_says_it_before_ray_starts_and_before_anything_is_written(
    first: LocalStorage, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = first.list()
    said = told_before_training(first, corpus, tmp_path / "cache", monkeypatch)
    assert "cannot be reused" in said
    assert "Training 2 trials again" in said
    assert first.list() == before


def test_what_has_been_trained_anew_already_is_not_in_the_cost(
    first: LocalStorage, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = run_module._left_to_do
    # One of the two has its result already.
    monkeypatch.setattr(run_module, "_left_to_do", lambda *given: left(*given)[1:])
    said = told_before_training(first, corpus, tmp_path / "cache", monkeypatch)
    assert "Training 1 trial again" in said


def test_the_ledger_reads_an_old_sweep(first: LocalStorage) -> None:
    read = read_ledger(first)
    assert read.counts["completed"] == 11
    assert all(trial.loss is not None and 2.5 < trial.loss < 4 for trial in read.trials)


def test_an_old_result_is_not_discarded_for_it_would_be_lost(first: LocalStorage) -> None:
    trial, other = ids(first)[:2]
    with pytest.raises(InputError, match=f"trial {trial} .* has semantics version 1"):
        check_discard(first, trial)
    first.delete(f"trials/{other}/{RESULT}")
    assert "under version 2 and a new id" in check_discard(first, other)
    assert check_discard(first, "of-this-version") == "trains it again"


# --- by way of MLflow ----------------------------------------------------------------------


@pytest.fixture
def uri(tmp_path: Path, template: Path, plain_environment: None, no_images: None) -> str:
    shutil.copy(template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.long
def test_an_old_sweep_is_exported_and_comes_back_with_its_verdict(
    first: LocalStorage, uri: str, tmp_path: Path
) -> None:
    assert sync(first, uri).complete
    rebuilt = rebuild("semantics-1", uri, str(tmp_path / "rebuilt")).sweep
    tables = load_sweep(rebuilt)
    assert set(tables.trials["semantics_version"]) == {1}
    (there,), (here,) = recommend(tables).groups, recommend(load_sweep(first)).groups
    assert there.sentence == here.sentence


@pytest.mark.long
def test_two_versions_in_one_exported_sweep_are_refused(
    first: LocalStorage, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    key = f"trials/{ids(first)[0]}/{RESULT}"
    first.put(key, encode_json({**json.loads(first.get(key)), "semantics_version": 2}))
    assert sync(first, uri).complete
    command = ["analyze", "semantics-1", "--from-mlflow", "--tracking-uri", uri]
    command += ["--out", str(tmp_path / "rebuilt")]
    monkeypatch.setattr(sys, "argv", ["widthlab", *command])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert mentions(
        capsys.readouterr().err, "10 finished trials ... version 1 ... 1 finished trial"
    )


def test_the_exporter_shows_the_version_of_a_trial(first: LocalStorage) -> None:
    from orchestrator.mlflow.points import spec_params

    old = json.loads(first.get(f"trials/{ids(first)[0]}/{SPEC}"))
    assert spec_params(old)["semantics_version"] == "1"
    assert spec_params({**old, "semantics_version": 2})["semantics_version"] == "2"
