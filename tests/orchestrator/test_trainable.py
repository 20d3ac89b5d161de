"""What the process that runs a trial makes of a SIGTERM, and of a storage that is away."""

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
from test_placement import trial as make_trial

from analysis.records import RESULT, encode_json
from analysis.storage import LocalStorage
from orchestrator import attempt, preemption, trainable, worker_group
from orchestrator.ledger import trial_storage
from trainers.lease import STOP_REQUEST

SPEC = make_trial(workers=2)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    monkeypatch.setattr(preemption, "_node_is_drained", lambda: False)
    monkeypatch.setattr(trainable, "NOTICE_LOOK_S", 0.001)
    return LocalStorage(tmp_path)


def over_workers(sweep: LocalStorage) -> str | None:
    config = {"sweep": sweep.url, "spec": SPEC.to_json().decode()}
    return trainable._over_workers(config, SPEC)


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


@pytest.mark.parametrize(
    ("number", "waits"), [(errno.ESTALE, [attempt.AWAY_S]), (errno.EACCES, [])]
)
def test_ray_is_told_late_of_a_storage_that_does_not_answer(
    sweep: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int, waits: list[float]
):
    """It begins again at once, and as often as the budgets say: for minutes they would not do."""
    waited: list[float] = []
    monkeypatch.setattr(attempt.time, "sleep", waited.append)

    def away(url: str, key: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(trainable, "require_shared", away)
    with pytest.raises(OSError, match=os.strerror(number)):
        trainable.run_trial({"trial": {"sweep": sweep.url, "probe": "key"}})
    assert waited == waits
