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
from storages import WRITES, Call, ScriptedStorage

from trainers.durable import writer
from trainers.durable.checkpoint import damage
from trainers.train import train
from trialstore import lease as lease_module
from trialstore import records
from trialstore.claims import LeaseLostError, claims
from trialstore.records import committed_steps, get_json, get_result, read_manifest
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.long


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part a step, and no heartbeat but the first: the calls come in one order."""
    monkeypatch.setattr(writer, "FLUSH_S", 0.0)
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 1e6)


SMALL = {
    "training__steps": 3, "evaluation__every": 2, "spectra__every": 3, "layout__checkpoint_every": 1
}  # fmt: skip


def contents(trial: LocalStorage) -> dict[str, bytes]:
    return {key: trial.get(key) for key in trial.list()}


@pytest.mark.parametrize("inside", [False, True], ids=["before a write", "after a look"])
@pytest.mark.parametrize("every", [30, pytest.param(1, marks=pytest.mark.slow)])
def test_wherever_it_was_halted_its_successors_trial_stays_as_it_is(
    make_spec, tmp_path, diary, bits, plain, inside, every
) -> None:
    alone = ScriptedStorage(tmp_path / "alone")  # never halted
    spec = make_spec(**SMALL)
    train(spec, alone, diary())
    moments = range(len(alone.done(*(["list"] if inside else WRITES))))
    took_over = 0
    for moment in moments[every // 2 :: every]:
        root = tmp_path / f"at-{moment}"
        left: dict[str, bytes] = {}

        halted: list[Call] = []

        def successor(
            call: Call,
            root: Path = root,
            left: dict[str, bytes] = left,
            halted: list[Call] = halted,
        ) -> None:
            halted.append(call)
            trial = LocalStorage(root)
            train(spec, trial, diary())
            left.update(contents(trial))

        orphan = ScriptedStorage(root)
        if inside:
            orphan.after("list", successor, skip=moment, times=1)
        else:
            orphan.before(" ".join(WRITES), successor, skip=moment, times=1)
        # It finds out, one way or another.
        with contextlib.suppress(LeaseLostError, FileNotFoundError, FileExistsError):
            train(spec, orphan, diary())
        trial = LocalStorage(root)
        assert bits(trial) == bits(alone), halted
        assert get_result(trial)["outcome"] == "completed"
        (step,) = committed_steps(trial.list("checkpoints"))[-1:]
        assert damage(trial, read_manifest(trial, step)) is None, halted
        if sum(key.startswith("attempts/") for key in left) == 2:  # it had something to take over
            took_over += 1
            now = contents(trial)
            harmed = [key for key in left if now.get(key) != left[key] and key != records.LEASE]
            (at,) = halted
            allowed = {at.key} if at.method == "put" else set()
            assert set(harmed) <= allowed & {records.SPEC}, (at, harmed)
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
    assert "attempt 1 " in said
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
