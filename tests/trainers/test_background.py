"""Background jobs run in order and within their memory limit, and no result is lost."""

import threading

import pytest
import torch

from trainers.spectra.background import Background

CPU = torch.device("cpu")


@pytest.fixture
def beside():
    background: Background[int] = Background(100, CPU)
    yield background
    background.close()


def test_results_come_in_order_and_once(beside) -> None:
    for number in range(20):
        beside.submit(1, lambda number=number: number)
    assert beside.drain() == list(range(20))
    assert beside.drain() == beside.ready() == []


def test_it_computes_with_as_many_threads_as_training() -> None:
    """LAPACK in a new thread would take all cores, and round otherwise."""
    matrix = torch.randn(256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix @ matrix.T
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            background: Background[torch.Tensor] = Background(1, CPU)
            background.submit(1, lambda: torch.linalg.eigvalsh(matrix))
            (found,) = background.drain()
            background.close()
            assert torch.equal(found, torch.linalg.eigvalsh(matrix))
    finally:
        torch.set_num_threads(before)


def test_ready_does_not_wait(beside) -> None:
    gate = threading.Event()
    beside.submit(1, lambda: 1)
    beside.submit(1, lambda: gate.wait(30) and 2)
    found = []
    while not found:
        found = beside.ready()
    assert found == [1]
    assert beside.ready() == []
    gate.set()
    assert beside.drain() == [2]


def test_reserving_more_memory_than_is_left_waits_for_the_oldest_job(beside) -> None:
    gates = [threading.Event(), threading.Event()]
    done = []

    def work(number: int) -> int:
        assert gates[number].wait(30)
        done.append(number)
        return number

    for number in (0, 1):
        beside.submit(50, lambda number=number: work(number))
    gates[0].set()
    beside.reserve(50)  # fits when the first is done, and does not wait for the second
    assert done == [0]
    gates[1].set()
    beside.reserve(100)
    assert done == [0, 1]
    assert beside.drain() == [0, 1]  # what was waited for is not lost


def test_patience_ends_and_nothing_is_lost(beside) -> None:
    gate = threading.Event()
    beside.submit(60, lambda: gate.wait(30) and 1)
    assert not beside.reserve(60, patience_s=0.01)
    assert not beside.finish(patience_s=0.01)
    gate.set()
    assert beside.finish(patience_s=30)
    assert beside.reserve(60, patience_s=0.01)
    assert beside.ready() == [1]


def test_a_job_above_the_limit_runs_alone(beside) -> None:
    beside.submit(1, lambda: 1)
    beside.reserve(1000)
    assert beside.ready() == [1]


@pytest.mark.parametrize("ask", ["ready", "drain", "reserve"])
def test_a_failure_is_raised_by_the_next_request_for_results(beside, ask) -> None:
    def fail() -> int:
        raise ArithmeticError("layer 3 is no covariance")

    beside.submit(60, fail)
    calls = {"ready": beside.ready, "drain": beside.drain, "reserve": lambda: beside.reserve(60)}

    def until_it_is_told() -> None:
        while True:
            calls[ask]()

    with pytest.raises(ArithmeticError, match="layer 3"):
        until_it_is_told()


def test_closing_begins_nothing_more() -> None:
    background: Background[None] = Background(100, CPU)
    gate, begun = threading.Event(), []
    background.submit(1, lambda: gate.wait(30) and None)
    background.submit(1, lambda: begun.append(1))
    gate.set()
    background.close()
    assert len(begun) <= 1  # the first may have ended before closing
    with pytest.raises(RuntimeError, match="shutdown"):
        background.submit(1, lambda: None)
