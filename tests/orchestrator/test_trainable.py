"""What the process that runs a trial makes of a SIGTERM, and of a storage that is away."""

import errno
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
from small_spec import trial_laid_out as make_trial

from orchestrator.tune import preemption, trainable, worker_group
from orchestrator.tune.trial_request import REQUEST, TrialRequest
from trialstore.lease import STOP_REQUEST
from trialstore.records import RESULT, encode_json
from trialstore.retries import Budget
from trialstore.storage import LocalStorage
from trialstore.sweep_file import trial_storage

SPEC = make_trial(workers=2)


def request(sweep: str) -> TrialRequest:
    return TrialRequest(sweep, "driver", "key", SPEC, Budget(2, 50))


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    monkeypatch.setattr(preemption, "_node_is_drained", lambda: False)
    monkeypatch.setattr(trainable, "NOTICE_LOOK_S", 0.001)
    return LocalStorage(tmp_path)


def over_workers(sweep: LocalStorage) -> str | None:
    return trainable._train_on_workers(request(sweep.url))


def test_workers_are_told_of_a_sigterm_of_the_process_that_waits_for_them(
    sweep: LocalStorage, monkeypatch: pytest.MonkeyPatch
):
    """It must outlive it: Ray kills the workers of one that is gone, in the middle of an update."""
    trial = trial_storage(sweep, SPEC.id)

    def run_on_workers(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(2):  # the first is taken for an old one, by workers that only begin
            deadline = time.monotonic() + 30
            while STOP_REQUEST not in trial.list():
                assert time.monotonic() < deadline
                threading.Event().wait(0.002)
            trial.delete(STOP_REQUEST)

    monkeypatch.setattr(worker_group, "run_on_workers", run_on_workers)
    before = signal.getsignal(signal.SIGTERM)
    assert over_workers(sweep) is None
    assert signal.getsignal(signal.SIGTERM) == before


def test_nobody_is_told_to_stop_where_nothing_was_heard(
    sweep: LocalStorage, monkeypatch: pytest.MonkeyPatch
):
    trial = trial_storage(sweep, SPEC.id)
    result = {"outcome": "completed", "step": 1, "steps": 1, "final": {}, "records": {}}

    def run_on_workers(*_: Any) -> None:
        trial.put(RESULT, encode_json({**result, "trial_id": SPEC.id}))

    monkeypatch.setattr(worker_group, "run_on_workers", run_on_workers)
    assert over_workers(sweep) == "completed"
    assert trial.list() == [RESULT]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that goes by in sleep alone, `slept` by `slept`."""
    slept: list[float] = []
    clock = SimpleNamespace(slept=slept, sleep=slept.append, monotonic=lambda: sum(slept))
    monkeypatch.setattr(trainable, "time", clock)
    return clock


def answering(after: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that answers when it has been asked so many times."""
    asked = iter(range(after))

    def require_shared(url: str, key: str) -> None:
        if next(asked, None) is not None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(trainable, "require_shared", require_shared)


WHERE = request("/s")


def test_a_storage_that_does_not_answer_is_waited_for(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    """Ray begins again at once, and as often as the budgets say: for minutes they would not do."""
    answering(3, errno.ESTALE, monkeypatch)
    trainable._wait_for_storage(WHERE)
    assert clock.slept == [trainable.AWAY_LOOK_S] * 3


def test_but_not_for_ever_for_another_node_may_reach_it(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    answering(100_000, errno.ESTALE, monkeypatch)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        trainable._wait_for_storage(WHERE)
    assert sum(clock.slept) == pytest.approx(trainable.AWAY_S, abs=2 * trainable.AWAY_LOOK_S)


def test_one_that_has_answered_is_not(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    answering(3, errno.EACCES, monkeypatch)
    with pytest.raises(PermissionError):
        trainable.run_trial({REQUEST: WHERE})
    assert clock.slept == []
