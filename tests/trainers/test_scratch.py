"""Folders for what passes through: none outlives its owner, and none is taken from one at work."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from trainers.durable import scratch
from trainers.durable.scratch import scratch_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_is_empty_and_goes_with_its_block(temporary: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), scratch_folder() as folder:
        assert list(folder.iterdir()) == []
        (folder / "weights").write_bytes(b"1")
        1 / 0  # noqa: B018
    assert list(temporary.iterdir()) == []


def test_two_that_are_at_work_leave_each_other_alone(temporary: Path) -> None:
    with scratch_folder() as one:
        (one / "weights").write_bytes(b"1")
        with scratch_folder() as other:
            assert other != one
        assert (one / "weights").read_bytes() == b"1"


KILLED = """
import os, signal
from trainers.durable.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "weights").write_bytes(b"1")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.processes
def test_what_a_killed_process_left_goes_when_the_next_one_needs_room(temporary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], check=False, cwd=ROOT, timeout=60,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    (left,) = temporary.iterdir()
    with scratch_folder():
        assert not left.exists()


def test_other_folders_stay(temporary: Path) -> None:
    others = [temporary / "widthlab-scratch-another-machine-x", temporary / "mine"]
    for other in others:
        other.mkdir()
    with scratch_folder():
        assert all(other.is_dir() for other in others)


def test_one_that_was_taken_for_abandoned_before_it_was_locked_is_made_anew(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = scratch.fcntl.flock

    def overtaken(*arguments: object) -> None:
        monkeypatch.setattr(scratch.fcntl, "flock", lock)
        for root in temporary.iterdir():
            scratch.shutil.rmtree(root)
        lock(*arguments)

    monkeypatch.setattr(scratch.fcntl, "flock", overtaken)
    with scratch_folder() as folder:
        assert folder.is_dir()
    assert list(temporary.iterdir()) == []
