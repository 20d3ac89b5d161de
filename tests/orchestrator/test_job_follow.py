"""A job's log is copied once and whole, whatever becomes of the connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

import pytest

from orchestrator.jobs import follow as job_follow
from orchestrator.jobs.follow import follow, wait_until_over
from orchestrator.jobs.server import Job, ServerLostError
from trialstore.errors import InputError

LOG = "".join(f"line {number}\n" for number in range(7))


class Server:
    """A job server whose answers are written down: job states in turn, and tails that are cut."""

    def __init__(self, states: Iterable[str], tails: Iterable[int | None]) -> None:
        self._states, self._tails = iter(states), iter(tails)
        self.asked = 0

    def job(self, job_id: str) -> Job:
        self.asked += 1
        state = next(self._states)
        if state == "away":
            raise ServerLostError("no answer")
        if state == "forgotten":
            raise InputError("no such job")
        return Job(job_id, "s", "/shared", state)

    def log(self, job_id: str) -> str:
        return LOG

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """The log's first characters, in chunks; then the connection breaks, or at None hangs."""
        length = next(self._tails)
        for start in range(0, len(LOG) if length is None else length, 5):
            yield LOG[start : min(start + 5, length or len(LOG))]
        if length is None:
            await asyncio.Event().wait()
        if length != len(LOG):
            raise ServerLostError("hung up")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_follow, "POLL_S", 0.001)
    monkeypatch.setattr(job_follow, "LAST_LINES_S", 0.01)


RUNNING = ["running"] * 4


@pytest.mark.parametrize(
    ("states", "tails"),
    [
        ([*RUNNING, "failed"], [len(LOG)] * 9),
        ([*RUNNING, "failed"], [0, 3, 4, 11, 20]),  # cut off again and again, the rest is fetched
        ([*RUNNING, "failed"], [None]),  # whole, and never ended
        (["away", *RUNNING, "away", "failed"], [3, 20, len(LOG), len(LOG), len(LOG), len(LOG)]),
    ],
)
def test_no_line_is_missing_or_doubled(states: list[str], tails: list[int | None]):
    written: list[str] = []
    job = follow(Server(states, tails), "id", written.append)  # type: ignore[arg-type]
    assert job.state == "failed"
    assert "".join(written) == LOG


@pytest.mark.parametrize("state", ["away", "forgotten"])
def test_a_server_that_stays_away_or_has_forgotten_the_job_is_given_up(state: str):
    server = Server(["running", *[state] * 10_000], [None])
    with pytest.raises(ServerLostError):
        follow(server, "id", lambda text: None, patience_s=0.05)  # type: ignore[arg-type]


def test_a_reader_that_hangs_up_ends_the_following():
    def write(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        follow(Server(RUNNING, [None]), "id", write)  # type: ignore[arg-type]


def test_an_interrupt_ends_the_following_and_asks_the_server_for_nothing():
    def write(text: str) -> None:
        raise KeyboardInterrupt

    server = Server(RUNNING, [None])
    with pytest.raises(KeyboardInterrupt), contextlib.redirect_stderr(None):
        follow(server, "id", write)  # type: ignore[arg-type]
    assert server.asked <= 1


def test_waiting_outlasts_a_server_that_is_away_for_a_while():
    server = Server(["running", "away", "running", "stopped"], [])
    assert wait_until_over(server, "id").state == "stopped"  # type: ignore[arg-type]
    with pytest.raises(ServerLostError):
        wait_until_over(Server(["away"] * 10_000, []), "id", patience_s=0.05)  # type: ignore[arg-type]
