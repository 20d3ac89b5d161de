"""The word to stop: who is told, whatever the request says and the clocks show."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storages import ScriptedStorage

from orchestrator.tune import stopping
from orchestrator.tune.stopping import (
    STOP_SWEEP,
    forget_stop,
    relaying_stops,
    request_stop,
    stop_requested,
    stopping_on_signals,
)
from trialstore.lease import STOP_REQUEST
from trialstore.records import LEASE, encode_json
from trialstore.storage import LocalStorage
from trialstore.sweep_file import SWEEP_FILE, trial_storage

WIDTHS = {"D": 256, "d_model": 64}


def lease(seconds_ago: float = 0.0, **about: object) -> bytes:
    heartbeat_ms = int((time.time() - seconds_ago) * 1000)
    return encode_json(
        {"attempt": 1, "step": 3, "steps": 9, "loss": 1.0, "heartbeat_ms": heartbeat_ms, **about}
    )


@pytest.fixture
def sweep(tmp_path: Path) -> LocalStorage:
    sweep = LocalStorage(tmp_path)
    cells = [{"id": name, "axes": WIDTHS} for name in ("runs", "slow", "over", "waits")]
    content = {"name": "s", "training": {}, "resolved": {"trials": cells}}
    sweep.put(SWEEP_FILE, encode_json(content))  # JSON is YAML
    trial_storage(sweep, "runs").put(LEASE, lease())
    trial_storage(sweep, "slow").put(LEASE, lease(seconds_ago=3600))
    trial_storage(sweep, "over").put(LEASE, lease(released=True))
    return sweep


def test_a_request_holds_until_it_is_forgotten(sweep: LocalStorage):
    assert not stop_requested(sweep)
    request_stop(sweep)
    assert stop_requested(sweep)
    forget_stop(sweep)
    assert not stop_requested(sweep)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"please"])
def test_it_is_one_whatever_it_says(sweep: LocalStorage, content: bytes):
    sweep.put(STOP_SWEEP, content)
    assert stop_requested(sweep)


def test_every_trial_that_may_run_is_told_and_no_other(
    sweep: LocalStorage, monkeypatch: pytest.MonkeyPatch
):
    """The clock of a node may be slow: its trials look stale, and write all the same."""
    monkeypatch.setattr(stopping, "POLL_S", 0.001)
    told = {f"trials/{name}/{STOP_REQUEST}" for name in ("runs", "slow")}

    def requests() -> set[str]:
        return {key for key in sweep.list("trials") if key.endswith(STOP_REQUEST)}

    with relaying_stops(sweep):
        assert not requests()
        request_stop(sweep)
        until(lambda: requests() == told)
    assert requests() == told


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


# --- signals -------------------------------------------------------------------------------


@pytest.fixture
def own_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What this process does with signals by itself."""
    monkeypatch.setattr(stopping, "SIGNAL_LOOK_S", 0.001)
    heard: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(kind, lambda kind, _: heard.append(kind)) for kind in kinds]
    yield heard
    for kind, handler in zip(kinds, previous, strict=True):
        signal.signal(kind, handler)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_what_it_always_was(
    sweep: LocalStorage, own_signals: list[int], first: int, second: int
):
    said: list[str] = []
    with stopping_on_signals(sweep, said.append):
        os.kill(os.getpid(), first)
        until(lambda: bool(said))
        assert stop_requested(sweep)
        assert own_signals == []
        os.kill(os.getpid(), second)
    assert own_signals == [second]
    assert len(said) == 1
    os.kill(os.getpid(), first)
    assert own_signals == [second, first]


def test_a_storage_that_fails_when_a_signal_comes_interrupts_nothing_and_is_asked_again(
    tmp_path: Path, own_signals: list[int]
):
    sweep, said = ScriptedStorage(tmp_path), []
    sweep.before("put", OSError("curl: timeout"), times=3)
    with stopping_on_signals(sweep, said.append):
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: bool(said))
    assert stop_requested(sweep)
