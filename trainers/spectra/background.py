"""A background thread for eigenvalue computations, in order and with a memory limit."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Job(Generic[Result]):
    nbytes: int
    future: Future[Result]


class Background(Generic[Result]):
    """A queue of jobs on one thread. On CUDA the jobs run on a stream of their own.

    A job's exception is raised by the next call of `ready`, `drain`, `finish` or `reserve` that
    reaches the job. Results come in the order of submission.

    Args:
        limit: Bytes that all unfinished jobs together may hold.
        device: The device of the jobs' tensors.

    Attributes:
        seconds: Time that jobs have taken so far.
        closing: Set by `close`; long jobs should check it and return early.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self._limit = limit
        self._device = device
        self._stream = _stream_on(device)
        # In a new thread LAPACK uses all cores by default, and the last bits of its results depend
        # on the number of threads: use as many as the training thread does.
        self._pool = ThreadPoolExecutor(
            1, "eigenwork", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )
        self._jobs: deque[_Job[Result]] = deque()
        self._done: list[Result] = []
        self.seconds = 0.0
        self.closing = threading.Event()

    def reserve(self, nbytes: int, patience_s: float | None = None) -> bool:
        """Wait until `nbytes` more fit within the limit, or no job is left.

        Args:
            nbytes: Bytes that the next job will hold. More than the limit is allowed: such a job
                waits for all others.
            patience_s: Longest wait in seconds; None waits without end.

        Returns:
            False if the time ran out first.
        """
        return self._wait(
            lambda: sum(job.nbytes for job in self._jobs) + nbytes <= self._limit, patience_s
        )

    def submit(self, nbytes: int, work: Callable[[], Result]) -> None:
        """Queue `work`, which holds `nbytes` until it is done. Does not wait.

        On CUDA it starts after the kernels that the calling thread has queued so far.
        """
        reached = None
        if self._stream is not None:
            reached = torch.cuda.Event()  # type: ignore[no-untyped-call]
            reached.record(torch.cuda.current_stream(self._device))
        self._jobs.append(_Job(nbytes, self._pool.submit(self._do, reached, work)))

    def ready(self) -> list[Result]:
        """Return the results that became available since the last call, without waiting."""
        while self._jobs and self._jobs[0].future.done():
            self._collect()
        done, self._done = self._done, []
        return done

    def finish(self, patience_s: float | None = None) -> bool:
        """Wait for all submitted jobs. Return False if `patience_s` seconds ran out first."""
        return self._wait(lambda: False, patience_s)

    def drain(self) -> list[Result]:
        """Wait for all submitted jobs and return the results since the last call."""
        self.finish()
        return self.ready()

    def close(self) -> None:
        """Set `closing`, cancel jobs that have not started, and wait for the running one."""
        self.closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _wait(self, enough: Callable[[], bool], patience_s: float | None) -> bool:
        until = None if patience_s is None else time.monotonic() + patience_s
        while self._jobs and not enough():
            left = None if until is None else max(0.0, until - time.monotonic())
            if not wait([self._jobs[0].future], left).done:
                return False
            self._collect()
        return True

    def _collect(self) -> None:
        job = self._jobs.popleft()
        self._done.append(job.future.result())

    def _do(self, reached: torch.cuda.Event | None, work: Callable[[], Result]) -> Result:
        began = time.perf_counter()
        try:
            if reached is None or self._stream is None:
                return work()
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                self._stream.wait_event(reached)
                try:
                    return work()
                finally:
                    # After the job, the training's stream reuses the memory of its matrices: no
                    # kernel of this stream may still read them.
                    self._stream.synchronize()
        finally:
            self.seconds += time.perf_counter() - began


def _stream_on(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
