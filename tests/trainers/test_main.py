"""python -m trainers: one trial in a process of its own, alone or under torchrun."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
from messages import mentions
from repository import ROOT

from trainers import __main__ as command
from trainers.train import train
from trialstore import records
from trialstore.records import METRICS, SPECTRA, read_records
from trialstore.storage import LocalStorage

#: Fails, after the trial, if a scheduler or a tracking library has been imported.
WATCHED = """
import sys
from trainers.__main__ import main
code = main(sys.argv[1:])
found = {"ray", "mlflow", "orchestrator"} & set(sys.modules)
sys.exit(f"imported: {found}" if found else code)
"""

#: Sends rank 0 a signal right after update 6, as the system or an operator may at any time.
SIGNALLED = """
import os, signal, sys
from trainers import __main__ as command

class Signalling(command.ConsoleLog):
    def progress(self, step, *arguments):
        super().progress(step, *arguments)
        if step == 6:
            os.kill(os.getpid(), signal.{name})

command.ConsoleLog = Signalling
sys.exit(command.main(sys.argv[1:]))
"""

PYTHON = (sys.executable,)
TWO_RANKS = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Run a spec in tmp_path/trial: `run(spec, *launcher, "-m", "trainers")`."""

    def run(spec, *start: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "spec.json"
        path.write_bytes(spec.to_json())
        return run_in_repository([*start, str(path), "--out", str(tmp_path / "trial")])

    return run


def run_in_repository(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.processes
def test_it_trains_the_same_trial_with_no_scheduler_and_no_tracking_in_the_process(
    run, make_spec, trial, diary, bits, tmp_path
) -> None:
    spec = make_spec()
    done = run(spec, *PYTHON, "-c", WATCHED)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert mentions(done.stderr.splitlines()[0], f"trial {spec.id}, attempt 1 ... step 0/10")
    assert mentions(done.stderr.splitlines()[-1], f"completed ... step 10 ... {trial.url}")
    here = LocalStorage(tmp_path / "here")
    train(spec, here, diary())
    assert bits(trial) == bits(here)


@pytest.mark.processes
@pytest.mark.slow
def test_no_bit_depends_on_the_cores_of_the_machine(
    make_spec, trial, diary, tmp_path, bits
) -> None:
    """Ray gives a trial as many threads as it has CPUs, a shell all that there are; the widths
    are those from which on LAPACK would use them."""
    path = tmp_path / "spec.json"
    spec = make_spec(training__steps=2, model__ffn_widths=[128, 256])
    path.write_bytes(spec.to_json())
    command = [sys.executable, "-m", "trainers", str(path), "--out", str(trial.root)]
    done = run_in_repository(command, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    here = LocalStorage(tmp_path / "here")
    train(spec, here, diary())  # on one thread, as every test
    assert bits(trial) == bits(here)


@pytest.mark.processes
def test_killed_by_the_system_and_started_again_it_ends_with_the_same_bits(
    run, make_spec, trial, diary, bits, tmp_path
) -> None:
    """SIGKILL: nothing is flushed, released or cleaned up."""
    spec = make_spec()
    done = run(spec, *PYTHON, "-c", SIGNALLED.format(name="SIGKILL"))
    assert done.returncode == -signal.SIGKILL
    assert "released" not in records.get_json(trial, records.LEASE)
    log = diary()
    assert train(spec, trial, log).result["attempts"] == 2
    assert log.updates == list(range(5, 11))
    whole = LocalStorage(tmp_path / "whole")
    train(spec, whole, diary())
    assert bits(trial) == bits(whole)


@pytest.mark.processes
def test_a_sigterm_becomes_a_checkpoint_and_the_trial_is_continued(
    run, make_spec, trial, diary
) -> None:
    done = run(make_spec(), *PYTHON, "-c", SIGNALLED.format(name="SIGTERM"))
    assert done.returncode == 3, done.stderr
    assert mentions(done.stderr.splitlines()[-1], "stopped ... step 6")
    assert records.committed_steps(trial.list()) == [4, 6]
    assert records.get_json(trial, records.LEASE)["released"]
    assert records.get_json(trial, records.FAILURE) is None
    log = diary()
    assert train(make_spec(), trial, log).outcome == "completed"
    assert log.updates == [7, 8, 9, 10]


def test_a_second_sigterm_on_the_heels_of_the_first_changes_nothing(monkeypatch) -> None:
    """An event that is set within its own setting waits for itself for ever."""

    class Interrupted(threading.Event):
        def set(self) -> None:
            with self._cond:
                signal.raise_signal(signal.SIGTERM)
            super().set()

    monkeypatch.setattr(command.threading, "Event", Interrupted)
    before = signal.getsignal(signal.SIGTERM)
    try:
        stop = command._asked_to_stop()
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.is_set()


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        ("{", "trial", "spec.json: ... JSON"),
        ("{}", "trial", "spec.json: model: "),
        (None, "trial", f"spec.json ... {os.strerror(errno.ENOENT)}"),
        ("spec", "nonsense://bucket", "'nonsense://bucket'"),
        ("spec", "README.md", f"--out 'README.md' ... {os.strerror(errno.EEXIST)}"),
        ("spec", "README.md/trial", f"--out 'README.md/trial' ... {os.strerror(errno.ENOTDIR)}"),
        ("spec", "~no-such-user/x", "--out: ... '~no-such-user/x'"),
        ("spec", "", "--out: ... empty"),
        ("old spec", "trial", "version 1 ... version 2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    make_spec, tmp_path, monkeypatch, capsys, content, out, message
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # of this process, it stays as it is
    path = tmp_path / "spec.json"
    if content is not None:
        specs = {"spec": make_spec(), "old spec": make_spec(semantics_version=1)}
        path.write_bytes(specs[content].to_json() if content in specs else content.encode())
    assert command.main([str(path), "--out", out]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert mentions(line, message)


@pytest.mark.processes
def test_the_exit_code_is_that_of_the_process() -> None:
    done = run_in_repository([*PYTHON, "-m", "trainers", "no-such.json", "--out", "trial"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no-such.json cannot be read")


class Left(BaseException):
    """In the place of the process's end."""


@pytest.mark.parametrize(("code", "waits"), [(0, True), (3, True), (2, False)])
def test_a_rank_with_bad_input_does_not_wait_for_others_that_wait_for_it(
    monkeypatch, code, waits
) -> None:
    """A corpus may be missing on one node alone; in another collective they would all hang."""
    waited = []

    def leave(found: int) -> None:
        raise Left(found)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(command.os, "_exit", leave)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.barrier", lambda: waited.append(True))
    with pytest.raises(Left, match=str(code)):
        command._leave(code)
    assert bool(waited) is waits


# --- several ranks -------------------------------------------------------------------------

#: Relative tolerances: float32 sums in another order.
NUMBERS = {
    METRICS: {"train_loss": 1e-6, "val_loss": 1e-6, "grad_norm": 1e-5},
    SPECTRA: {"hard_rank": 1e-5, "soft_rank": 1e-5, "total_variance": 1e-5},
}


@pytest.mark.processes
def test_two_ranks_give_the_numbers_of_one(run, make_spec, trial, diary, tmp_path) -> None:
    two = make_spec(layout__workers=2, layout__zero_stage=2, training__batch_tokens=128)
    one = make_spec(layout__zero_stage=2, training__batch_tokens=128)
    assert two.id == one.id
    done = run(two, *TWO_RANKS, "-m", "trainers")
    assert done.returncode == 0, done.stderr
    alone = LocalStorage(tmp_path / "alone")
    train(one, alone, diary())
    for table, columns in NUMBERS.items():
        ours, theirs = (read_records(each, table) for each in (trial, alone))
        assert ours["step"] == theirs["step"]
        for column, tolerance in columns.items():
            expected = theirs[column].drop_null().to_numpy()
            assert ours[column].drop_null().to_numpy() == pytest.approx(expected, rel=tolerance)
    assert read_records(trial, SPECTRA)["N"] == read_records(alone, SPECTRA)["N"]


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_that_were_stopped_resume_exactly(
    run, make_spec, trial, bits, tmp_path, stage
) -> None:
    spec = make_spec(
        layout__workers=2, layout__zero_stage=stage, training__batch_tokens=128,
        layout__micro_batch=2,
    )  # fmt: skip
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED.format(name="SIGTERM"))
    done = run(spec, *TWO_RANKS, str(script))
    assert mentions(done.stderr, "stopped ... step 6")
    assert records.committed_steps(trial.list()) == [4, 6]
    done = run(spec, *TWO_RANKS, "-m", "trainers")
    assert done.returncode == 0, done.stderr
    resumed = bits(trial)
    trial.root.rename(tmp_path / "resumed")
    run(spec, *TWO_RANKS, "-m", "trainers")
    assert records.get_json(trial, records.RESULT)["attempts"] == 1
    assert resumed == bits(trial)
