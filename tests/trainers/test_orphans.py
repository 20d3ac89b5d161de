"""A trainer that was halted, replaced, and goes on in the middle of whatever it was doing.

At every call to the storage in turn the trainer is halted as by SIGSTOP; a successor takes the
trial and trains it to its end; then the first goes on. What it had begun it may finish under its
own names. Nothing that the successor has written may change.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repository import ROOT

from trainers.durable import writer
from trainers.durable.checkpoint import damage
from trainers.train import train
from trialstore import lease as lease_module
from trialstore import records
from trialstore.claims import LeaseLostError, claims
from trialstore.records import committed_steps, get_json, get_result, read_manifest
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.long


class Halting(LocalStorage):
    """Does something once, at the n-th of the calls that count: before it, or in the middle of
    it, when the bytes are written and not yet in their place."""

    def __init__(self, root: Path, at: int, then, inside: bool) -> None:
        super().__init__(root)
        self.calls: list[str] = []
        self._at, self._then, self._inside = at, then, inside

    def _call(self, verb: str, key: str, do):
        self.calls.append(f"{verb} {key}")
        if len(self.calls) == self._at and not self._inside:
            self._then()
        return do()

    def put(self, key: str, data: bytes) -> None:
        self._call("put", key, lambda: super(Halting, self).put(key, data))

    def put_new(self, key: str, data: bytes) -> None:
        self._call("put_new", key, lambda: super(Halting, self).put_new(key, data))

    def put_file(self, key: str, path: Path) -> None:
        self._call("put_file", key, lambda: super(Halting, self).put_file(key, path))

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: super(Halting, self).delete(key))

    def list(self, prefix: str = "") -> list[str]:
        found = super().list(prefix)
        self.calls.append(f"list {prefix}")
        if len(self.calls) == self._at and self._inside:
            self._then()
        return found


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part a step, and no heartbeat but the first: the calls come in one order."""
    monkeypatch.setattr(writer, "FLUSH_S", 0.0)
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 1e6)


SMALL = {
    "training__steps": 3, "evaluation__every": 2, "spectra__every": 3, "layout__checkpoint_every": 1
}  # fmt: skip


def moments_of(trial: Halting, inside: bool) -> list[int]:
    """Which of the calls that a trial has made, in order, it may be halted at."""
    looks = [call.startswith("list ") for call in trial.calls]
    return [number for number, look in enumerate(looks, 1) if look == inside]


def contents(trial: LocalStorage) -> dict[str, bytes]:
    return {key: trial.get(key) for key in trial.list()}


@pytest.mark.parametrize("inside", [False, True], ids=["before a write", "after a look"])
@pytest.mark.parametrize("every", [18, pytest.param(1, marks=pytest.mark.slow)])
def test_wherever_it_was_halted_its_successors_trial_stays_as_it_is(
    make_spec, tmp_path, diary, bits, plain, inside, every
) -> None:
    alone = Halting(tmp_path / "alone", -1, None, inside)  # never halted
    spec = make_spec(**SMALL)
    train(spec, alone, diary())
    moments = moments_of(alone, inside)
    took_over = 0
    for moment in moments[every // 2 :: every]:
        root = tmp_path / f"at-{moment}"
        left: dict[str, bytes] = {}

        def successor(root: Path = root, left: dict[str, bytes] = left) -> None:
            trial = LocalStorage(root)
            train(spec, trial, diary())
            left.update(contents(trial))

        orphan = Halting(root, moment, successor, inside)
        # It finds out, one way or another.
        with contextlib.suppress(LeaseLostError, FileNotFoundError, FileExistsError):
            train(spec, orphan, diary())
        trial = LocalStorage(root)
        assert bits(trial) == bits(alone), orphan.calls[moment - 1]
        assert get_result(trial)["outcome"] == "completed"
        (step,) = committed_steps(trial.list("checkpoints"))[-1:]
        assert damage(trial, read_manifest(trial, step)) is None, orphan.calls[moment - 1]
        if sum(key.startswith("attempts/") for key in left) == 2:  # it had something to take over
            took_over += 1
            now = contents(trial)
            harmed = [key for key in left if now.get(key) != left[key] and key != records.LEASE]
            halted_at = orphan.calls[moment - 1]
            allowed = {halted_at.split(" ", 1)[1]} if halted_at.startswith("put ") else set()
            assert set(harmed) <= allowed & {records.SPEC}, (halted_at, harmed)
        assert get_json(trial, records.FAILURE) is None
    assert took_over > 10 / every


# --- for real ------------------------------------------------------------------------------


def started(spec_path: Path, trial: LocalStorage, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainers", str(spec_path), "--out", str(trial.root), *options],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.processes
@pytest.mark.slow
def test_stopped_replaced_and_continued_by_the_system_it_writes_nothing_more(
    make_spec, trial, tmp_path, bits, diary
) -> None:
    spec = make_spec(training__steps=150, layout__checkpoint_every=5)
    path = tmp_path / "spec.json"
    path.write_bytes(spec.to_json())
    first = started(path, trial)
    try:
        while not committed_steps(trial.list("checkpoints")):
            assert first.poll() is None
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGSTOP)
        with started(path, trial) as second:
            _, said = second.communicate(timeout=240)
        assert second.returncode == 0, said
        left = contents(trial)
    finally:
        os.kill(first.pid, signal.SIGCONT)
        _, said = first.communicate(timeout=240)
    assert first.returncode == 1
    assert "was replaced by a newer one" in said
    now = contents(trial)
    changed = {key for key in now if now[key] != left.get(key)}
    # A write that was under way when it was halted is finished, under its own attempt's name.
    assert all("part-1-" in key or "attempt-1/" in key for key in changed - {records.LEASE})
    assert len(changed) <= 1
    assert left.keys() <= now.keys()
    assert [claim.attempt for claim in claims(trial)] == [1, 2]
    alone = LocalStorage(tmp_path / "alone")
    train(spec, alone, diary())
    assert bits(trial) == bits(alone)
