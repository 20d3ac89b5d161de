"""What is asked of a sweep before it is sent to a cluster, and what travels with its job."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import TINY

import _widthlab
from orchestrator.jobs import package as job_package
from orchestrator.jobs.package import fill, own_modules
from orchestrator.jobs.submit import MLFLOW_VARIABLES, Prepared, Submission, entrypoint, prepare
from orchestrator.mlflow.tracking import git_state
from orchestrator.sweep.load import load_sweep
from trialstore.errors import InputError

HEAD = "http://head:8265"


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", *MLFLOW_VARIABLES):
        monkeypatch.delenv(name, raising=False)


def prepared(
    folder: Path,
    changes: dict | None = None,
    storage: str = "/shared/runs",
    uri: str | None = None,
    address: str = HEAD,
) -> Prepared:
    """tiny.yaml with other sections, as it would be submitted from anywhere."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(TINY.read_text()), **(changes or {})}))
    return prepare(Submission(path, (), storage, uri), address)


# --- what only the cluster has -------------------------------------------------------------


@pytest.mark.parametrize("storage", ["widthlab-runs", "./runs", "file://runs", ""])
def test_a_storage_relative_to_the_submitters_folder_is_refused(tmp_path: Path, storage: str):
    with pytest.raises(InputError, match=r"--storage.*WIDTHLAB_STORAGE"):
        prepared(tmp_path, storage=storage)


@pytest.mark.parametrize("storage", ["/shared/runs", "file:///shared/runs", "~/runs"])
def test_an_absolute_storage_is_what_the_driver_is_told(tmp_path: Path, storage: str):
    assert prepared(tmp_path, storage=storage).environment["WIDTHLAB_STORAGE"] == storage


def test_an_object_store_needs_an_mlflow_server(tmp_path: Path):
    with pytest.raises(InputError, match="--tracking-uri"):
        prepared(tmp_path, storage="s3://bucket/runs")
    sent = prepared(tmp_path, storage="s3://bucket/runs", uri="https://mlflow").environment
    assert sent["MLFLOW_TRACKING_URI"] == "https://mlflow"


def test_a_database_of_the_submitters_folder_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"sqlite:///mine\.db"):
        prepared(tmp_path, uri="sqlite:///mine.db")
    assert prepared(tmp_path, uri="sqlite:////shared/m.db").environment["MLFLOW_TRACKING_URI"]


def test_an_mlflow_server_of_this_machine_is_another_for_a_head_elsewhere(tmp_path: Path):
    (note,) = prepared(tmp_path, uri="http://localhost:5000").notes
    assert "http://localhost:5000" in note
    here = "http://127.0.0.1:8265"
    assert prepared(tmp_path, uri="http://localhost:5000", address=here).notes == ()


CORPUS = {"kind": "text", "paths": ["texts/*.jsonl"]}
FOLDERS = [
    ({"corpus": CORPUS}, "corpus.paths"),
    ({"corpus": {**CORPUS, "paths": ["/data/a.txt", "b.txt"]}}, "corpus.paths 'b.txt'"),
    ({"corpus": {"kind": "hub", "dataset": "./set"}}, "corpus.dataset"),
    ({"tokenizer": {"kind": "pretrained", "path": "../tokenizer"}}, "tokenizer.path"),
]


@pytest.mark.parametrize(("changes", "place"), FOLDERS)
def test_data_of_the_submitters_folder_are_refused(
    tmp_path: Path, changes: dict, place: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=place):
        prepared(tmp_path, changes)


def test_a_folder_that_could_be_a_hub_id_is_the_folder_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    hub = {"tokenizer": {"kind": "pretrained", "path": "mine/tokenizer", "vocab_size": 99}}
    assert prepared(tmp_path, hub).notes == ()
    (tmp_path / "mine" / "tokenizer").mkdir(parents=True)
    with pytest.raises(InputError, match=r"tokenizer\.path"):
        prepared(tmp_path, hub)


def test_data_elsewhere_are_named_as_what_every_node_must_have(tmp_path: Path):
    changes = {
        "corpus": {"kind": "text", "paths": ["/data/a.txt", "~/b.txt"]},
        "tokenizer": {"kind": "pretrained", "path": "/data/tokenizer"},
    }
    notes = prepared(tmp_path, changes).notes
    assert [name in note for name, note in zip(["a.txt", "b.txt", "tokenizer"], notes, strict=True)]
    assert all("every node" in note for note in notes)


def test_a_sweep_that_cannot_be_read_is_refused_here(tmp_path: Path):
    with pytest.raises(InputError, match="learning_rate"):
        prepared(tmp_path, {"training": {"steps": 1, "learning_rat": 1}})


# --- what the driver is told ---------------------------------------------------------------


def test_mlflows_credentials_are_passed_on_where_they_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not set(MLFLOW_VARIABLES) & set(prepared(tmp_path).environment)
    for name in MLFLOW_VARIABLES:
        monkeypatch.setenv(name, f"of {name}")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the cluster's")
    sent = prepared(tmp_path).environment
    assert {name: sent[name] for name in MLFLOW_VARIABLES} == {
        name: f"of {name}" for name in MLFLOW_VARIABLES
    }
    assert "the cluster's" not in sent.values()


@pytest.mark.processes
def test_a_job_knows_the_commit_it_was_submitted_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.chdir(tmp_path)
    clean = git_state(tmp_path)
    assert clean["dirty"] is False
    told = prepared(tmp_path).environment["WIDTHLAB_GIT_COMMIT"]  # sweep.yaml is new
    assert told == f"{clean['commit']}-dirty"
    monkeypatch.setenv("WIDTHLAB_GIT_COMMIT", told)
    assert git_state(Path("/")) == {"commit": clean["commit"], "dirty": True}
    monkeypatch.setenv("WIDTHLAB_GIT_COMMIT", str(clean["commit"]))
    assert git_state(Path("/")) == clean


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@pytest.mark.processes
@settings(max_examples=10)
@given(value=WORDS, setting=WORDS)
def test_a_shell_hands_every_value_and_setting_on_as_it_is(
    value: str, setting: str, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("job")
    (folder / "python").write_text('#!/bin/sh\nprintf "%s\\0" "$SECRET" "$@"\n')
    (folder / "python").chmod(0o755)
    job_package.write_environment(folder / "job.env", {"SECRET": value})
    command = entrypoint(Path("a b.yaml"), Submission(Path("x"), (setting,), "", None, True, True))
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, check=True, env={"PATH": str(folder)}
    )
    assert done.stdout.decode().split("\0")[:-1] == [
        value, "-m", "orchestrator.cli", "run", "a b.yaml", "--set", setting, "--retry-failed",
        "--require-verdict",
    ]  # fmt: skip


# --- what travels --------------------------------------------------------------------------


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_widthlab_and_the_sweep_travel_and_nothing_that_lies_beside_them(tmp_path: Path):
    here, job = tmp_path / "here", tmp_path / "job"
    for name in ("sweep.yaml", "data/c4.jsonl", "runs/s/trials/t/checkpoints/m.pt",
                 ".venv/bin/python", "notes.py"):  # fmt: skip
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("x")
    job.mkdir()
    assert fill(job, here / "sweep.yaml", [], {"A": "1"}) == Path("sweep.yaml")
    sent = files_of(job)
    others = {name for name in sent if name.partition("/")[0] not in _widthlab.PACKAGES}
    assert others == {"sweep.yaml", "job.env", "_widthlab.py"}
    assert {"trainers/train.py", "trialstore/records.py", "widthlab/__init__.py"} <= sent
    assert not [name for name in sent if "__pycache__" in name]


@pytest.mark.processes
def test_what_travels_runs_without_the_checkout(tmp_path: Path):
    fill(tmp_path, TINY, [], {})
    done = subprocess.run(
        ["python", "-m", "orchestrator.cli", "plan", "tiny.yaml", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
             "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert '"sweep": "tiny"' in done.stdout


def test_the_environment_is_for_its_owner_alone(tmp_path: Path):
    umask = os.umask(0)
    try:
        fill(tmp_path, TINY, [], {"MLFLOW_TRACKING_PASSWORD": "4711secret"})
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "job.env").stat().st_mode) == 0o600
    holding = [path for path in tmp_path.rglob("*") if path.is_file()]
    holding = [path.name for path in holding if b"4711secret" in path.read_bytes()]
    assert holding == ["job.env"]


BLOCK = "import torch\n\n\nclass Wide(torch.nn.Module):\n    pass\n"


def with_blocks(folder: Path, *blocks: str) -> Path:
    content = yaml.safe_load(TINY.read_text())
    content["grid"]["block"] = [None, *blocks]
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_own_blocks_travel_a_file_or_the_source_of_a_package(tmp_path: Path):
    here, job = tmp_path / "here", tmp_path / "job"
    job.mkdir()
    for name in ("wide.py", "mine/__init__.py", "mine/deep/block.py", "mine/weights.bin",
                 "mine/__pycache__/block.pyc", "other.py"):  # fmt: skip
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(BLOCK)
    path = with_blocks(here, "wide:Wide", "mine.deep.block:Wide")
    fill(job, path, own_modules(load_sweep(path), [here]), {})
    sent = {name for name in files_of(job) if "/" not in name or name.startswith("mine")}
    assert sent == {
        "sweep.yaml", "job.env", "_widthlab.py", "wide.py", "mine/__init__.py",
        "mine/deep/block.py",
    }  # fmt: skip


def test_a_block_that_is_nowhere_is_refused_and_an_installed_one_stays(tmp_path: Path):
    with pytest.raises(InputError, match="absent_here"):
        own_modules(load_sweep(with_blocks(tmp_path, "absent_here:Wide")), [tmp_path])
    installed = load_sweep(with_blocks(tmp_path, "torch.nn:Linear"))
    assert own_modules(installed, [tmp_path]) == []


def test_a_block_of_the_program_that_was_called_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as of a console script
    with pytest.raises(InputError, match="__main__"):
        own_modules(load_sweep(with_blocks(tmp_path, "__main__:Wide")), [tmp_path])


def test_a_block_in_a_package_of_widthlabs_name_would_hide_widthlab(tmp_path: Path):
    (tmp_path / "analysis").mkdir()
    with pytest.raises(InputError, match="rename"):
        own_modules(load_sweep(with_blocks(tmp_path, "analysis.block:Wide")), [tmp_path])


def test_too_large_a_package_names_what_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job_package, "LARGEST", 4 * 2**20)
    here, job = tmp_path / "big", tmp_path / "job"
    here.mkdir()
    job.mkdir()
    (here / "table.py").write_bytes(b"#" * 5 * 2**20)
    with pytest.raises(InputError, match=r"big/table\.py.* 5\.0 MiB"):
        fill(job, TINY, [here], {})
