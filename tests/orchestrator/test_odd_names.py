"""A storage may be called anything that a folder may: no name is read as part of a URI."""

import json
import os
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import TINY
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from orchestrator.mlflow.reader import MlflowReader
from orchestrator.mlflow.sqlite_uri import sqlite_path, sqlite_uri
from orchestrator.mlflow.tracking import Tracking, embedded_uri, given_uri, tracking_uri
from orchestrator.mlflow.ui import server_command
from orchestrator.run_view import places
from trialstore.errors import InputError
from trialstore.storage import LocalStorage

NAMES = [
    "100%data", "100%25data", "a?b", "a#b", "a b", "ä", "a;b", "a&b", "a%20b", "a:b", "a@b", "[a]*",
    "a+b", "a\\b", "a'b\"c", "$(id)", "a\nb",
]  # fmt: skip
#: Everything that some part of a URI begins with, in one name.
ALL = "100%25 %41%zz?a#b;c&d=ä:@[e]*"


@pytest.fixture
def plain(tmp_path: Path, template: Path, plain_environment: None) -> bytes:
    """A database that MLflow has made: making one takes seconds."""
    return template.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_sqlite_opens_the_file_beside_the_sweeps_and_no_other(tmp_path: Path, name: str):
    folder = tmp_path / name
    folder.mkdir()
    engine = create_engine(embedded_uri(LocalStorage(folder)))
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE here (x)")
    engine.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in folder.iterdir()] == ["mlflow.db"]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_a_path_and_its_uri_stand_for_each_other(name: str):
    path = Path("/storages", name)
    assert make_url(sqlite_uri(path)).database == str(path)
    assert sqlite_path(sqlite_uri(path)) == path


def test_two_storages_have_two_databases():
    uris = {embedded_uri(LocalStorage(Path("/storages", name))) for name in NAMES}
    assert len(uris) == len(NAMES)


def test_a_name_that_is_no_text_is_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"UTF-8.*--tracking-uri"):
        embedded_uri(LocalStorage(Path("/storages/\udcff")))


@pytest.mark.parametrize("name", ["a?b", ALL])
def test_mlflow_keeps_runs_and_files_of_a_storage_of_any_name(
    tmp_path: Path, plain: bytes, name: str
):
    """What is written by the URI is read back by it, and lies in the folder of that name."""
    storage = LocalStorage(tmp_path / "storages" / name)
    database = storage.path("mlflow.db")
    database.parent.mkdir(parents=True)
    database.write_bytes(plain)
    uri = tracking_uri(storage)
    tracking = Tracking(uri, "odd")
    run = tracking.create("run", {"widthlab.sweep": "x"}, 1)
    tracking.send_params(run.run_id, {"axis": "1"})
    tracking.send_artifact(run.run_id, "report/50 %25?.txt", b"kept")
    with closing(sqlite3.connect(database)) as opened:
        ((location,),) = opened.execute("SELECT artifact_uri FROM runs")
        assert opened.execute("SELECT key, value FROM params").fetchall() == [("axis", "1")]
    folder = Path(unquote(urlsplit(location).path))
    assert folder.is_relative_to(storage.root / "mlartifacts")
    assert (folder / "report" / "50 %25?.txt").read_bytes() == b"kept"
    reader = MlflowReader(uri)
    (found,) = reader._search(tracking._experiment, "")
    assert found.run_id == run.run_id
    tracking.send_artifact(run.run_id, "spec.json", b"{}")
    assert reader.files(found, ["spec.json"]) == {"spec.json": b"{}"}
    assert [path.name for path in storage.root.parent.iterdir()] == [name]


def test_the_interface_serves_the_same_database_and_files(tmp_path: Path):
    storage = LocalStorage(tmp_path / ALL)
    storage.put("mlflow.db", b"")
    command, _ = server_command(storage, 0)
    given_to = dict(zip(command[4::2], command[5::2], strict=True))
    assert make_url(given_to["--backend-store-uri"]).database == str(tmp_path / ALL / "mlflow.db")
    assert given_to["--backend-store-uri"] == tracking_uri(storage)
    destination = urlsplit(given_to["--artifacts-destination"])
    assert (destination.query, destination.fragment) == ("", "")
    assert unquote(destination.path) == str(tmp_path / ALL / "mlartifacts")


@pytest.mark.slow  # Ray is started for it
def test_a_sweep_of_such_a_storage_is_whole_and_its_relative_cache_is_one(tmp_path: Path):
    cache = f"cache-{uuid4().hex}"
    environment = {**os.environ, "WIDTHLAB_CACHE": cache}
    environment.pop("MLFLOW_TRACKING_URI", None)
    sweep = TINY
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(sweep), "--storage", ALL]
    command += ["--json", "--set", "grid.width_multiplier=[2, 4]", "--set", "training.steps=10"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["counts"]["completed"] == 2
    assert report["mirrored"]
    assert {path.name for path in tmp_path.iterdir()} == {ALL, cache}
    with closing(sqlite3.connect(tmp_path / ALL / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (3,)  # and the sweep's
    assert len(list((tmp_path / cache / "tokens").glob("*/meta.json"))) == 1
    temporary = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
    assert [*Path(temporary, "ray").glob(f"session_*/artifacts/**/{cache}")] == []


# --- URIs that users give ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_text", "path"),
    [
        ("sqlite:////x/100%25data/m.db", "/x/100%data/m.db"),
        ("sqlite:////x/a%3Fb/m.db", "/x/a?b/m.db"),
        ("sqlite:////x/a%20b/m.db", "/x/a b/m.db"),
        ("sqlite:////x/a#b ä;c&d/m.db", "/x/a#b ä;c&d/m.db"),
    ],
)
def test_a_uri_that_is_given_is_read_as_a_uri(given_text: str, path: str):
    uri = given_uri(given_text)
    assert sqlite_path(uri or "") == Path(path)
    assert given_uri(uri) == uri  # as the exporter's process is told it


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("sqlite:////x/100%data/m.db", "%25"),  # %da would be half a character
        ("sqlite:////x/100%/m.db", "%25"),
        ("sqlite:////x/a?b/m.db", "%3F"),  # the database would be /x/a
        ("sqlite:////x/m.db?mode=ro", "no options"),
    ],
)
def test_a_uri_that_would_open_another_file_is_refused(uri: str, remedy: str):
    with pytest.raises(InputError, match=r"--tracking-uri 'sqlite:.*" + remedy):
        given_uri(uri)


# --- commands to paste ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [ALL, "a b", "a'b", "$(id)"])
@pytest.mark.processes
def test_a_shell_reads_back_the_storage_that_a_hint_names(name: str, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/my venv/bin/widthlab"])
    hint = places(LocalStorage(Path("/x")), name, None, "r").splitlines()[-1]
    line = hint.removeprefix("MLflow").strip()
    said = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
    )
    assert said.stdout.split("\0")[:-1] == ["/my venv/bin/widthlab", "ui", "--storage", name]
    assert shlex.split(line)[-1] == name
