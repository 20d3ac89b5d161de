"""Follow a job to its end, across broken connections."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from orchestrator.jobs.server import Job, JobServer, ServerLostError
from trialstore.errors import InputError

log = logging.getLogger(__name__)

POLL_S = 1.0
#: Wait this long for the last lines of a job that is over. Ray polls its log every second.
LAST_LINES_S = 5.0
#: Give up on a head that has not answered for this long.
PATIENCE_S = 60.0


def follow(
    server: JobServer, job_id: str, write: Callable[[str], None], patience_s: float = PATIENCE_S
) -> Job:
    """Write a job's output until it is over. Reconnect when the connection breaks.

    Args:
        server: The cluster.
        job_id: A job of a sweep.
        write: Gets every character of the log once, in order.
        patience_s: Seconds to wait for a server that does not answer.

    Returns:
        The job as it ended.

    Raises:
        InputError: There is no such job, or the server refuses.
        ServerLostError: The server has not answered for `patience_s`, or has restarted.
    """
    return asyncio.run(_follow(server, job_id, write, patience_s))


def wait_until_over(server: JobServer, job_id: str, patience_s: float = PATIENCE_S) -> Job:
    """Wait until a job is over, and return it. Like `follow`, without the output."""
    heard = time.monotonic()
    while True:
        try:
            job = server.job(job_id)
            heard = time.monotonic()
            if job.over:
                return job
        except ServerLostError:
            if time.monotonic() - heard > patience_s:
                raise
        time.sleep(POLL_S)


class _Copy:
    """Writes a log once, though every new connection sends it from its first line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0  # characters

    async def follow(self, chunks: AsyncIterator[str]) -> None:
        passed = 0
        async for chunk in chunks:
            self._add(chunk, passed)
            passed += len(chunk)

    def complete(self, text: str) -> None:
        """Write the rest, given the whole log."""
        self._add(text, 0)

    def _add(self, chunk: str, passed: int) -> None:
        fresh = chunk[max(0, self._written - passed) :]
        if fresh:
            self._write(fresh)
            self._written += len(fresh)


async def _follow(
    server: JobServer, job_id: str, write: Callable[[str], None], patience_s: float
) -> Job:
    copy = _Copy(write)
    heard = time.monotonic()
    tail = asyncio.create_task(copy.follow(server.tail(job_id)))
    try:
        while True:
            await asyncio.wait({tail}, timeout=POLL_S)
            if tail.done() and not isinstance(tail.exception(), ServerLostError | None):
                tail.result()  # `write` failed: raise its error
            try:
                # Poll beside the tail: a connection can die without an error.
                job = await asyncio.to_thread(server.job, job_id)
                heard = time.monotonic()
            except ServerLostError:
                if time.monotonic() - heard > patience_s:
                    raise
                await asyncio.sleep(POLL_S)
                continue
            except InputError as error:  # a restarted head knows no jobs
                raise ServerLostError(str(error)) from error
            if job.over:
                await asyncio.wait({tail}, timeout=LAST_LINES_S)
                if not tail.done() or tail.exception() is not None:
                    with contextlib.suppress(ServerLostError):
                        copy.complete(await asyncio.to_thread(server.log, job_id))
                return job
            if tail.done():  # the connection broke, the job goes on
                log.debug("following job %s again", job_id)
                await asyncio.sleep(POLL_S)
                tail = asyncio.create_task(copy.follow(server.tail(job_id)))
    finally:
        tail.cancel()
        await asyncio.gather(tail, return_exceptions=True)
