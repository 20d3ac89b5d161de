"""Relative paths of a sweep file mean its folder, wherever the command is run; --set's do not."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from mini_sweep import MINIMAL

from orchestrator.cli import __main__ as cli
from orchestrator.jobs.submit import Submission, prepare
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.paths import paths_of
from trainers.data.corpus import open_corpus
from trialstore.errors import InputError

HEAD = "http://head:8265"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a sweep and its data beside it; the command is run elsewhere."""
    project = tmp_path / "my [project]"
    (project / "data").mkdir(parents=True)
    for name in "abc":
        (project / "data" / f"{name}.txt").write_text(f"the text {name} of the project\n" * 40)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return project


def write(project: Path, **sections: object) -> Path:
    path = project / "sweep.yaml"
    path.write_text(MINIMAL + yaml.safe_dump(sections))
    return path


def text(*paths: str) -> dict[str, object]:
    return {"kind": "text", "paths": list(paths)}


@pytest.mark.parametrize("typed", ["data", "./data", "data/a.txt", "../my [project]/data"])
def test_a_relative_path_is_seen_from_the_file(project: Path, typed: str):
    (found,) = load_sweep(write(project, corpus=text(typed))).corpus.paths
    assert Path(found).is_absolute()
    assert Path(found).samefile(project / typed)


def test_the_file_may_be_named_from_anywhere(project: Path, monkeypatch: pytest.MonkeyPatch):
    write(project, corpus=text("data", "data/*.txt"))
    there = load_sweep(Path("..", project.name, "sweep.yaml")).corpus
    monkeypatch.chdir(project)
    assert load_sweep("sweep.yaml").corpus == there
    monkeypatch.chdir("/")
    assert load_sweep(project / "sweep.yaml").corpus == there


def test_a_glob_reads_the_same_corpus_in_a_folder_whose_name_looks_like_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    """The corpus of `my [project]` is that of its copy in a folder of a plain name."""
    write(project, corpus=text("data/[ab].txt", "da*/c.txt"))
    plain = project.parent / "plain"
    shutil.copytree(project, plain)
    monkeypatch.chdir(plain)
    here = open_corpus(load_sweep(plain / "sweep.yaml", as_typed=True).corpus)
    there = open_corpus(load_sweep(project / "sweep.yaml").corpus)
    assert [d.name for _, d in there.assigned()] == [d.name for _, d in here.assigned()]
    # Three equal documents: each is more than a tenth, and cut in two.
    assert len({document.name.partition("#")[0] for _, document in there.assigned()}) == 3
    assert there.fingerprint == here.fingerprint
    assert there.fingerprint == here.fingerprint


def test_absolute_paths_and_those_of_a_home_stay_as_they_are(project: Path):
    paths = ["/data/a.txt", "~/data/*.jsonl"]
    assert load_sweep(write(project, corpus=text(*paths))).corpus.paths == paths


@pytest.mark.parametrize(
    ("sections", "section", "key"),
    [
        ({"corpus": {"kind": "hub", "dataset": "owner/set"}}, "corpus", "dataset"),
        ({"tokenizer": {"kind": "pretrained", "path": "owner/set"}}, "tokenizer", "path"),
    ],
)
def test_a_hub_id_is_one_unless_its_folder_lies_beside_the_file(
    project: Path, sections: dict, section: str, key: str
):
    path = write(project, **sections)
    assert getattr(getattr(load_sweep(path), section), key) == "owner/set"
    (project / "owner" / "set").mkdir(parents=True)
    assert getattr(getattr(load_sweep(path), section), key) == str(project / "owner" / "set")


def test_a_hub_id_with_a_folder_of_that_name_only_here_is_not_guessed(project: Path):
    """The libraries would open the folder of the current folder in the place of the hub's."""
    path = write(project, tokenizer={"kind": "pretrained", "path": "owner/set"})
    Path("owner/set").mkdir(parents=True)
    with pytest.raises(InputError, match=r"tokenizer\.path: 'owner/set' .*the hub's"):
        load_sweep(path)


@pytest.mark.parametrize("typed", ["more", "more/*.txt", "more/x.txt"])
def test_a_path_of_the_current_folder_is_refused_and_the_message_says_both(
    project: Path, typed: str
):
    Path("more").mkdir()
    Path("more/x.txt").write_text("x")
    path = write(project, corpus=text("data", typed))
    with pytest.raises(InputError) as refused:
        load_sweep(path)
    message = str(refused.value)
    assert f"{path}, line " in message
    assert "corpus.paths.1" in message
    assert f"(looked for {project.parent}/" in message
    assert f"{Path.cwd()}/{typed} exists" in message


def test_a_path_of_set_means_the_folder_of_the_shell(project: Path):
    Path("here.txt").write_text("x")
    path = write(project, corpus=text("data"))
    for settings in (
        ["corpus.paths=[here.txt]"],
        ["corpus={kind: text, paths: [here.txt]}"],
        ["corpus.column=body", "corpus.paths=[here.txt]"],
    ):
        assert load_sweep(path, settings).corpus.paths == [f"{Path.cwd()}/here.txt"]
    # Another key of the section leaves the file's paths what they are.
    kept = load_sweep(path, ["corpus.column=body"]).corpus.paths
    assert kept == [str(project / "data")]


def test_plan_finds_the_data_wherever_it_is_called(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = write(project, corpus=text("data"), tokenizer={"kind": "bytes"})
    ids = []
    for folder in (Path.cwd(), project, Path("/")):
        monkeypatch.chdir(folder)
        command = ["widthlab", "plan", str(path), "--json", "--storage", str(project / "runs")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        ids.append([trial["id"] for trial in json.loads(capsys.readouterr().out)["trials"]])
    assert ids[0] == ids[1] == ids[2]


def test_submit_refuses_what_would_mean_another_folder_there(project: Path):
    """A job's sweep file lies in a folder of Ray's, and the data do not."""
    path = write(project, corpus=text("data"))
    with pytest.raises(InputError, match=r"corpus\.paths 'data'") as refused:
        prepare(Submission(path, (), "/shared/runs", None), HEAD)
    assert str(project / "data") in str(refused.value)
    notes = prepare(
        Submission(path, (f"corpus.paths=['{project / 'data'}']",), "/shared/runs", None), HEAD
    ).notes
    assert [str(project / "data") in note for note in notes] == [True]


@pytest.mark.parametrize(
    ("heldout", "found"), [("v.txt", ["v.txt"]), (["v", "w"], ["v", "w"]), (None, [])]
)
def test_held_out_files_are_paths_too(heldout: object, found: list[str]):
    corpus = SimpleNamespace(kind="text", paths=["t"], heldout=heldout)
    config = SimpleNamespace(corpus=corpus, tokenizer=SimpleNamespace(kind="bytes"))
    assert [path.text for path in paths_of(config)] == ["t", *found]


def test_a_name_that_no_file_can_have_is_left_to_who_opens_it(project: Path):
    for typed in ("x" * 5000, "a\0b", "[" * 300):
        assert load_sweep(write(project, corpus=text(typed))).corpus.paths[0].endswith(typed)
