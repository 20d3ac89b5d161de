"""Something done every few seconds beside the work."""

import logging
import threading

import pytest

from trialstore.heartbeat import every


def test_it_is_done_again_and_again_and_ends_with_the_block() -> None:
    thrice = threading.Event()
    threads = set()
    calls = []

    def call() -> None:
        calls.append(None)
        threads.add(threading.current_thread())
        if len(calls) >= 3:
            thrice.set()

    with every(0.001, call):
        assert thrice.wait(10)
    assert threads
    assert not any(thread.is_alive() for thread in threads)


def test_what_goes_wrong_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    twice = threading.Event()
    calls = []

    def fail() -> None:
        calls.append(None)
        if len(calls) >= 2:
            twice.set()
        raise ValueError("no such luck")

    with caplog.at_level(logging.WARNING), every(0.001, fail):
        assert twice.wait(10)
    assert "no such luck" in caplog.text


def test_what_stays_wrong_in_the_same_way_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    enough = threading.Event()
    ends = iter(["full", "full", "full", None, "full", "gone", "gone"])
    seen = []

    def call() -> None:
        end = next(ends, None)
        if end is None and len(seen) > 5:
            enough.set()
        seen.append(end)
        if end is not None:
            raise OSError(end)

    with caplog.at_level(logging.WARNING), every(0.001, call):
        assert enough.wait(10)
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "full", "full", "gone",
    ]  # fmt: skip
