"""Something done every few seconds beside the work."""

import logging
import threading

import pytest

from trainers.heartbeat import every


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
