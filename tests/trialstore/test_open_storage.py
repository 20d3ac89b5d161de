"""Opening a storage: which locations are taken, and what is said of those that are not."""

from pathlib import Path

import pytest
from pyarrow import fs

from trialstore.errors import InputError
from trialstore.storage import (
    ArrowStorage,
    LocalStorage,
    open_storage,
)


def test_paths_and_file_urls_are_local(tmp_path: Path) -> None:
    for location in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        storage = open_storage(location)
        assert isinstance(storage, LocalStorage)
        assert storage.root == tmp_path


def test_opening_creates_nothing(tmp_path: Path) -> None:
    open_storage(tmp_path / "new").list()
    assert not (tmp_path / "new").exists()


def test_a_relative_path_does_not_follow_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("sweeps")
    monkeypatch.chdir("/")
    assert storage.url == str(tmp_path / "sweeps")


def test_a_folder_whose_name_begins_like_a_home_folder_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_storage("./~nobody-is-called-so").url == str(tmp_path / "~nobody-is-called-so")
    assert open_storage("~/runs").url == str(Path.home() / "runs")
    with pytest.raises(InputError, match="~nobody-is-called-so"):
        open_storage("~nobody-is-called-so")


def test_a_url_is_opened_by_pyarrow() -> None:
    storage = open_storage("mock:///bucket/sweeps")
    storage.put("a", b"1")
    assert isinstance(storage, ArrowStorage)
    assert (storage.url, storage.get("a")) == ("mock:///bucket/sweeps", b"1")


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:s3cret@bucket/runs",
        "s3://key:s3cret@bucket?region=eu",
        "s3://key:/s3cret/@bucket/runs",
        "s3://key:s3/cret@bucket/runs",
        "hdfs://user:s3cret@host:8020/runs",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="AWS_SECRET_ACCESS_KEY") as refused:
        open_storage(url)
    assert "cret" not in str(refused.value).replace("a secret", "")


@pytest.mark.parametrize("url", ["mock:///a:b@c", "gs://anonymous@bucket/a", "/home/me:you@x"])
def test_what_is_no_secret_is_not_taken_for_one(url: str) -> None:
    assert open_storage(url).url == url


def test_a_child_of_a_url_keeps_its_options() -> None:
    """Workers open the child's URL again: an S3 endpoint must not be lost on the way."""
    storage = ArrowStorage(fs._MockFileSystem(), "bucket", "s3://bucket/?endpoint_override=host")
    assert storage.child("a").child("b").url == "s3://bucket/a/b?endpoint_override=host"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://bucket", "'nonsense://bucket'.*s3://"),
        ("://", "'://'"),
        ("mock:///", "'mock:///'.*bucket"),
    ],
)
def test_a_url_that_cannot_be_opened_is_bad_input(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_storage(url)


def test_an_object_of_a_url_is_named_before_the_options() -> None:
    storage = ArrowStorage(fs._MockFileSystem(), "bucket/runs", "s3://bucket/runs?region=eu")
    assert storage.url_of("report/report.html") == "s3://bucket/runs/report/report.html?region=eu"
    assert storage.name == "runs"


def test_a_url_that_cannot_be_read_is_told_as_it_was_given() -> None:
    with pytest.raises(InputError, match="s3://buc ket/runs") as refused:
        open_storage("s3://buc ket/runs?region=eu")
    assert "allow_delayed_open" not in str(refused.value)
