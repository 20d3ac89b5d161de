"""The lease: one writer per trial, known by its attempt, that notices when it is replaced."""

import threading
import time
from collections.abc import Callable

import pytest

from trialstore import lease as lease_module
from trialstore.claims import claims, take
from trialstore.lease import STALE_S, STOP_REQUEST, Lease, LeaseLostError, is_fresh
from trialstore.records import LEASE, get_json
from trialstore.storage import LocalStorage


@pytest.fixture
def no_heartbeat(monkeypatch) -> None:
    """The thread waits longer than the test lasts."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 1e6)


@pytest.fixture
def fast_heartbeat(monkeypatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.001)


class Watched(LocalStorage):
    """Lets a test wait for heartbeats, and do something to the storage just before one."""

    def __init__(self, root) -> None:
        super().__init__(root)
        self.beats = threading.Semaphore(0)
        self.before_a_beat: Callable[[], None] = lambda: None

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        if threading.current_thread().name == "lease":
            self.beats.release()

    def list(self, prefix: str = "") -> list[str]:
        if threading.current_thread().name == "lease":
            before_a_beat, self.before_a_beat = self.before_a_beat, lambda: None
            before_a_beat()
            self.before_a_beat = before_a_beat
        return super().list(prefix)

    def await_beats(self, count: int) -> None:
        """That many from now on; all that the first began before has then been done."""
        while self.beats.acquire(blocking=False):
            pass
        for _ in range(count):
            assert self.beats.acquire(timeout=30)


# --- attempts ------------------------------------------------------------------------------


def test_every_taker_counts_one_higher(trial, no_heartbeat) -> None:
    for attempt in (1, 2, 3):
        with Lease(trial, steps=10) as lease:
            assert lease.attempt == attempt
            assert get_json(trial, LEASE)["attempt"] == attempt


def test_the_object_says_who_how_far_and_when(trial, no_heartbeat) -> None:
    before = time.time_ns() // 1_000_000
    with Lease(trial, steps=10) as lease:
        lease.progress(3, 2.5, 1000.0, 2, 1)
    content = get_json(trial, LEASE)
    assert set(content) == {
        "attempt", "owner", "host", "pid", "began", "step", "steps", "loss", "tokens_per_s",
        "spikes", "spiking_since", "started_ms", "heartbeat_ms", "released",
    }  # fmt: skip
    assert (content["step"], content["steps"]) == (3, 10)
    assert (content["loss"], content["tokens_per_s"]) == (2.5, 1000.0)
    assert (content["spikes"], content["spiking_since"]) == (2, 1)
    assert content["heartbeat_ms"] >= content["started_ms"] >= before


def test_it_is_released_after_an_exception_too(trial, no_heartbeat) -> None:
    with pytest.raises(ZeroDivisionError), Lease(trial, steps=10):
        1 / 0  # noqa: B018
    assert get_json(trial, LEASE)["released"]


def test_it_ends_its_thread(trial, no_heartbeat) -> None:
    before = threading.active_count()
    with Lease(trial, steps=10):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


# --- losing it -----------------------------------------------------------------------------


def test_the_older_attempt_has_lost_it_and_does_not_touch_it_again(trial, no_heartbeat) -> None:
    with Lease(trial, steps=10) as older:
        older.check()
        with Lease(trial, steps=10) as newer:
            newer.check()
            taken = trial.get(LEASE)
            for _ in range(2):
                with pytest.raises(LeaseLostError, match="attempt 1 "):
                    older.check()
            assert trial.get(LEASE) == taken
        released = trial.get(LEASE)
    assert trial.get(LEASE) == released


def test_a_heartbeat_that_comes_late_takes_nothing_back(trial, no_heartbeat) -> None:
    """A process halted in the middle of a heartbeat puts an old lease over its successor's."""
    with Lease(trial, steps=10) as older:
        late = trial.get(LEASE)
        with Lease(trial, steps=10) as newer:
            trial.put(LEASE, late)
            newer.check()
            with pytest.raises(LeaseLostError):
                older.check()
            with Lease(trial, steps=10) as third:
                assert third.attempt == 3


def test_the_heartbeat_notices_the_loss(tmp_path, fast_heartbeat) -> None:
    trial = Watched(tmp_path)
    with Lease(trial, steps=10) as lease:
        trial.before_a_beat = lambda: None if len(claims(trial)) > 1 else take(trial)
        lease._thread.join(30)
        assert not lease._thread.is_alive()
        held = trial.get(LEASE)
    assert trial.get(LEASE) == held


def test_a_trial_that_was_discarded_is_not_held_any_more(trial, no_heartbeat) -> None:
    with Lease(trial, steps=10) as lease:
        for key in trial.list():
            trial.delete(key)
        with pytest.raises(LeaseLostError):
            lease.check()
    assert trial.list() == []


# --- the heartbeat -------------------------------------------------------------------------


def test_it_beats_with_the_latest_progress(tmp_path, fast_heartbeat) -> None:
    trial = Watched(tmp_path)
    with Lease(trial, steps=10) as lease:
        first = get_json(trial, LEASE)["heartbeat_ms"]
        lease.progress(4, 1.25, 50.0)
        trial.await_beats(2)
        content = get_json(trial, LEASE)
        assert (content["step"], content["loss"]) == (4, 1.25)
        assert content["heartbeat_ms"] >= first
        assert "released" not in content


def test_a_storage_that_hiccups_does_not_end_the_heartbeat(tmp_path, fast_heartbeat) -> None:
    trial = Watched(tmp_path)
    failed = threading.Event()

    def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("unreachable")

    with Lease(trial, steps=10) as lease:
        trial.before_a_beat = fail_once
        assert failed.wait(30)
        trial.await_beats(2)
        lease.check()


def test_a_stop_request_is_seen_at_the_next_heartbeat(tmp_path, fast_heartbeat) -> None:
    trial = Watched(tmp_path)
    with Lease(trial, steps=10) as lease:
        trial.await_beats(2)
        assert not lease.stop_requested
        trial.put(STOP_REQUEST, b"{}")
        trial.await_beats(3)
        assert lease.stop_requested


def test_a_request_from_before_is_not_meant_for_this_attempt(trial, no_heartbeat) -> None:
    trial.put(STOP_REQUEST, b"{}")
    with Lease(trial, steps=10):
        assert STOP_REQUEST not in trial.list()


@pytest.mark.parametrize(
    ("lease", "fresh"),
    [
        (None, False),
        ({"heartbeat_ms": 1_000_000}, True),
        ({"heartbeat_ms": 1_000_000, "released": True}, False),
        ({"heartbeat_ms": 1_000_000 - STALE_S * 1000 + 1}, True),
        ({"heartbeat_ms": 1_000_000 - STALE_S * 1000}, False),
        ({}, False),
        ({"heartbeat_ms": "1000000"}, False),
        ({"heartbeat_ms": None}, False),
    ],
)
def test_a_lease_is_fresh_while_it_beats_and_is_not_released(lease, fresh) -> None:
    assert is_fresh(lease, now_ms=1_000_000) is fresh
