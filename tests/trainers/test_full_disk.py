"""A disk that is full, at any write: a clear failure, nothing that counts by halves, and a trial
that goes on to the same end when there is room again."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
import torch
from repository import ROOT
from storages import PUTS, Call, ScriptedStorage

from trainers.durable import writer
from trainers.durable.checkpoint import damage
from trainers.train import train
from trialstore import lease as lease_module
from trialstore import records
from trialstore.records import committed_steps, get_json, read_manifest
from trialstore.storage import LocalStorage, StorageFullError, naming_a_full_disk

SMALL = {
    "training__steps": 3, "evaluation__every": 2, "spectra__every": 3, "layout__checkpoint_every": 1
}  # fmt: skip


def full(call: Call) -> None:
    """A write that needs 1,234 bytes finds no room."""
    with naming_a_full_disk(call.path, 1234):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FLUSH_S", 0.0)
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 1e6)


def complaint(call) -> str:
    """What a call says of a disk; nothing if it gets through."""
    try:
        call()
    except OSError as error:
        return str(error)
    return ""


@pytest.mark.long
@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_at_whichever_write_it_fills_up_the_trial_goes_on_to_the_same_end(
    make_spec, tmp_path, diary, bits, plain, every
) -> None:
    alone = ScriptedStorage(tmp_path / "alone")
    spec = make_spec(**SMALL)
    train(spec, alone, diary())
    expected, failed = bits(alone), 0
    for write in range(0, len(alone.done(*PUTS)), every):
        trial = ScriptedStorage(tmp_path / f"at-{write}")
        trial.before(" ".join(PUTS), full, skip=write)
        said = complaint(lambda trial=trial: train(spec, trial, diary()))
        if said:
            failed += 1
            assert os.strerror(errno.ENOSPC) in said
            assert "1,234 bytes" in said
            assert str(trial.root) in said
        usable = committed_steps(trial.list("checkpoints"))
        for step in usable:
            assert damage(trial, read_manifest(trial, step)) is None
        trial.forget_rules()
        log = diary()
        train(spec, trial, log)
        if log.starts:
            assert log.starts[0][2] == (max(usable) if usable else 0)  # nothing is done twice
        assert bits(trial) == expected
    assert failed > 10 / every


@pytest.mark.long
def test_the_failure_is_left_where_there_is_room_for_that(make_spec, tmp_path, diary) -> None:
    def over_quota(call: Call) -> None:
        with naming_a_full_disk(call.path, 1234, StorageFullError):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    trial = ScriptedStorage(tmp_path)
    trial.before("put_file", over_quota)
    with pytest.raises(OSError, match="quota"):
        train(make_spec(**SMALL), trial, diary())
    failure = get_json(trial, records.FAILURE)
    assert failure["kind"] == "no_room"

    assert str(trial.root) in failure["message"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
@pytest.mark.long
def test_a_staging_folder_without_room_is_named(
    make_spec, trial, diary, monkeypatch, error
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"widthlab-scratch-"):
        train(make_spec(**SMALL), trial, diary())
    assert committed_steps(trial.list()) == []


TINY_DISK = """
set -e
mount -t tmpfs -o size={size} tmpfs {disk}
set +e
{python} -m trainers {spec} --out {disk}/trial
echo "code $?"
mount -o remount,size=64m {disk}
{python} -m trainers {spec} --out {disk}/trial
echo "code $?"
cp -r {disk}/trial {kept}
"""


def may_mount() -> bool:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    probe = [unshare, "-Urm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="mounting a small disk needs root")
def test_on_a_disk_that_is_really_full(make_spec, tmp_path, bits, diary) -> None:
    spec = make_spec(training__steps=6, layout__checkpoint_every=2, layout__keep_checkpoints=9)
    alone = LocalStorage(tmp_path / "alone")
    train(spec, alone, diary())
    path, disk, kept = tmp_path / "spec.json", tmp_path / "disk", tmp_path / "kept"
    path.write_bytes(spec.to_json())
    disk.mkdir()
    script = TINY_DISK.format(size="300k", disk=disk, python=sys.executable, spec=path, kept=kept)
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        capture_output=True, text=True, check=True, cwd=ROOT, timeout=240,
    )  # fmt: skip
    assert done.stdout.split() == ["code", "1", "code", "0"], done.stderr
    assert os.strerror(errno.ENOSPC) in done.stderr
    assert "same command" in done.stderr
    assert "step 2/6" in done.stderr
    assert bits(LocalStorage(kept)) == bits(alone)
