"""Storage: an object is there whole or not at all, and no key leads outside the root."""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs
from s3_server import S3Server

from trialstore.storage import (
    ArrowStorage,
    LocalStorage,
    Storage,
    open_storage,
)


def local(folder: Path) -> Storage:
    return LocalStorage(folder)


def arrow_in_memory(folder: Path) -> Storage:
    return ArrowStorage(fs._MockFileSystem(), "bucket/root", "mock:///bucket/root")


def arrow_on_disk(folder: Path) -> Storage:
    return ArrowStorage(fs.LocalFileSystem(), str(folder), f"file://{folder}")


SERVED = pytest.param("s3", marks=pytest.mark.processes)


@pytest.fixture(params=[local, arrow_in_memory, arrow_on_disk, SERVED])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Every kind of storage keeps the same promises."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        return open_storage(server.new_bucket())
    make: Callable[[Path], Storage] = request.param
    return make(tmp_path / "root")


# --- put, get, list, delete ----------------------------------------------------------------


def test_what_was_put_is_got_back(storage: Storage) -> None:
    storage.put("trials/a/result.json", b"\x00\xff{}")
    assert storage.get("trials/a/result.json") == b"\x00\xff{}"


def test_a_second_put_replaces_the_first(storage: Storage) -> None:
    storage.put("key", b"a longer first version")
    storage.put("key", b"second")
    assert storage.get("key") == b"second"
    assert storage.list() == ["key"]


def test_an_empty_object_is_an_object(storage: Storage) -> None:
    storage.put("empty", b"")
    assert storage.get("empty") == b""
    assert storage.list() == ["empty"]


def test_files_go_in_and_out_whole(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "in").write_bytes(content)
    storage.put_file("checkpoints/step-1/weights", tmp_path / "in")
    storage.get_file("checkpoints/step-1/weights", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_getting_what_is_not_there_says_so(storage: Storage, tmp_path: Path) -> None:
    storage.put("there", b"")
    with pytest.raises(FileNotFoundError):
        storage.get("missing")
    with pytest.raises(FileNotFoundError):
        storage.get_file("missing", tmp_path / "out")


def test_a_list_is_sorted_and_reaches_every_depth_below_a_folder(storage: Storage) -> None:
    for key in ("b/2", "b/1/deep/x", "a", "bc"):
        storage.put(key, b"")
    assert storage.list() == ["a", "b/1/deep/x", "b/2", "bc"]
    assert storage.list("b") == ["b/1/deep/x", "b/2"]  # a folder, not a prefix of names


def test_listing_what_is_not_there_is_empty(storage: Storage) -> None:
    assert storage.list() == []
    assert storage.list("no/such/folder") == []


def test_deleting_is_final_and_may_be_repeated(storage: Storage) -> None:
    storage.put("a/b/c", b"")
    storage.delete("a/b/c")
    storage.delete("a/b/c")
    storage.delete("never/there")
    assert storage.list() == []
    with pytest.raises(FileNotFoundError):
        storage.get("a/b/c")


def test_deleting_one_leaves_its_neighbours(storage: Storage) -> None:
    storage.put("a/b/c", b"")
    storage.put("a/d", b"kept")
    storage.delete("a/b/c")
    assert storage.list() == ["a/d"]
    assert storage.get("a/d") == b"kept"


def test_a_child_is_the_same_storage_further_down(storage: Storage) -> None:
    child = storage.child("trials/0a1b")
    child.put("spec.json", b"{}")
    assert storage.get("trials/0a1b/spec.json") == b"{}"
    assert child.list() == ["spec.json"]
    assert child.url == storage.url_of("trials/0a1b")


# --- whole or not at all -------------------------------------------------------------------


def test_a_put_of_a_file_that_is_missing_leaves_the_old_object(
    storage: Storage, tmp_path: Path
) -> None:
    storage.put("a/key", b"old")
    with pytest.raises(FileNotFoundError):
        storage.put_file("a/key", tmp_path / "missing")
    assert storage.get("a/key") == b"old"
    assert storage.list() == ["a/key"]


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_put_that_fails_leaves_the_old_object_and_no_litter(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("key", b"old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, no_space)
    with pytest.raises(OSError, match="No space"):
        storage.put("key", b"new")
    assert storage.get("key") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_object_appears_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path / "root")
    (tmp_path / "in").write_bytes(b"new")
    copied = []

    def copyfile(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"ne")  # half of it
        copied.append((storage.list(), storage.get("key")))
        Path(target).write_bytes(source.read_bytes())

    storage.put("key", b"old")
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    storage.put_file("key", tmp_path / "in")
    assert copied == [(["key"], b"old")]
    assert storage.get("key") == b"new"


def test_what_a_killed_put_left_behind_is_not_listed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("metrics/part", b"whole")
    (tmp_path / "metrics" / ".part-2.x7kq").write_bytes(b"ha")
    assert storage.list() == ["metrics/part"]


def test_objects_on_a_shared_disk_can_be_read_by_others(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("key", b"")
    assert stat.S_IMODE(storage.path("key").stat().st_mode) == 0o644


def test_deleting_leaves_no_empty_folder(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "root")
    storage.put("a/b/c", b"")
    storage.delete("a/b/c")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_put_left_behind_can_be_dropped_and_nothing_else_is(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for key in ("lease.json", "checkpoints/step-1/weights", "checkpoints/.nfs0000000000000001"):
        storage.put(key, b"whole")
    for place in ("checkpoints/step-1", "checkpoints/step-2", "."):
        (tmp_path / place).mkdir(exist_ok=True)
        handle, _ = tempfile.mkstemp(dir=tmp_path / place, prefix=".weights.")
        os.close(handle)
    for key in storage.unfinished("checkpoints"):
        storage.delete(key)
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    (unfinished,) = [path for path in left if path.name.startswith(".weights.")]
    assert unfinished.parent == Path()
    assert len(left) == 4
    assert not (tmp_path / "checkpoints/step-2").exists()


def test_an_object_is_nothing_unfinished(storage: Storage) -> None:
    storage.put("a/b", b"1")
    assert storage.unfinished() == storage.unfinished("no/such/folder") == {}
    assert storage.sizes() == {"a/b": 1}


def test_a_file_that_cannot_be_read_to_its_end_is_not_put_by_halves(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(b"content")

    def fail_half_way(source: object, target: object, *_: object) -> None:
        if hasattr(target, "write"):
            target.write(b"con")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copyfile", fail_half_way)
    monkeypatch.setattr(shutil, "copyfileobj", fail_half_way)
    with pytest.raises(OSError, match="Input/output error"):
        storage.put_file("weights", tmp_path / "in")
    assert storage.list() == []


# --- what is not seen is not taken for not there -------------------------------------------


@pytest.mark.parametrize("why", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    """Or a trial whose checkpoints are out of sight for a moment would begin anew."""
    storage = LocalStorage(tmp_path)
    storage.put("checkpoints/step-1/manifest.json", b"{}")

    def refuse(path: object) -> None:
        raise OSError(why, os.strerror(why), str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match=os.strerror(why)):
        storage.list("checkpoints")


def test_a_folder_that_vanishes_while_it_is_listed_is_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/1", b"")
    storage.put("b/1", b"")
    look = os.scandir

    def vanishing(path: str) -> object:
        if str(path).endswith("a"):
            shutil.rmtree(path)
        return look(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert storage.list() == ["b/1"]


def test_a_file_where_a_folder_would_be_holds_no_objects(tmp_path: Path) -> None:
    (tmp_path / "drivers").write_bytes(b"")
    assert LocalStorage(tmp_path).list("drivers") == []


def test_a_put_survives_that_somebody_deletes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who deletes the last object of a folder takes the folder too."""
    storage = LocalStorage(tmp_path / "root")
    storage.put("drivers/1", b"")
    make = tempfile.mkstemp

    def overtaken(**places: Path) -> tuple[int, str]:
        monkeypatch.setattr(tempfile, "mkstemp", make)
        storage.delete("drivers/1")
        return make(**places)

    monkeypatch.setattr(tempfile, "mkstemp", overtaken)
    storage.put("drivers/2", b"mine")
    assert storage.list() == ["drivers/2"]


def test_no_folders_are_made_where_objects_need_none() -> None:
    """On S3 a folder is an object a level, which all trials of a sweep would put again and again,
    and a right that not everybody has."""
    sinks: dict[str, pa.BufferOutputStream] = {}

    def open_output_stream(self: object, path: str, metadata: object) -> pa.BufferOutputStream:
        return sinks.setdefault(path, pa.BufferOutputStream())

    def refuse(self: object, *_: object) -> None:
        raise PermissionError("AccessDenied")

    handlers = dict.fromkeys(fs.FileSystemHandler.__abstractmethods__, refuse)
    handlers["open_output_stream"] = open_output_stream
    bucket = type("Bucket", (fs.FileSystemHandler,), handlers)
    storage = ArrowStorage(fs.PyFileSystem(bucket()), "bucket/root", "s3://bucket/root")
    storage.put("trials/a/lease.json", b"{}")
    assert sinks["bucket/root/trials/a/lease.json"].getvalue().to_pybytes() == b"{}"


# --- keys stay inside the root -------------------------------------------------------------


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/passwd", "a/.."])
def test_no_key_leaves_the_root(storage: Storage, tmp_path: Path, key: str) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    uses: list[Callable[[], object]] = [
        lambda: storage.put(key, b"planted"),
        lambda: storage.put_file(key, tmp_path / "outside"),
        lambda: storage.get(key),
        lambda: storage.get_file(key, tmp_path / "got"),
        lambda: storage.list(key),
        lambda: storage.delete(key),
        lambda: storage.child(key),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=re.escape(repr(key))):
            use()
    assert (tmp_path / "outside").read_bytes() == b"secret"


@given(st.text("ab./", min_size=1, max_size=12))
def test_a_key_that_is_taken_is_a_path_below_the_root(key: str) -> None:
    storage = LocalStorage(Path("/some/root"))
    try:
        path = storage.path(key)
    except ValueError:
        return
    assert Path(os.path.normpath(path)).is_relative_to("/some/root")


# --- S3 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mib", [5, 10])
def test_what_is_too_large_for_one_request_arrives_whole(
    s3: S3Server, tmp_path: Path, mib: int
) -> None:
    """At five and ten MiB pyarrow and S3 begin to send in parts."""
    storage = open_storage(s3.new_bucket())
    for more in (-1, 0, 1):
        content = os.urandom(mib * 2**20 + more)
        (tmp_path / "content").write_bytes(content)
        storage.put("whole", content)
        storage.put_file("file", tmp_path / "content")
        assert storage.get("whole") == content
        storage.get_file("file", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == content
    assert storage.sizes() == dict.fromkeys(("file", "whole"), len(content))


def test_a_small_object_is_put_in_one_request(s3: S3Server) -> None:
    """Not in three, which pyarrow sends unless it is told."""
    storage = open_storage(s3.new_bucket())
    before = len(s3.requests())
    storage.put("lease.json", b"{}")
    assert [line.split()[0] for line in s3.requests()[before:]] == ["PUT"]


@pytest.mark.slow
def test_more_objects_than_an_answer_names_are_all_listed(s3: S3Server) -> None:
    storage = open_storage(s3.new_bucket())
    keys = [f"parts/{at:04d}" for at in range(1005)]
    for key in keys:
        storage.put(key, b"")
    assert storage.list() == storage.list("parts") == keys
