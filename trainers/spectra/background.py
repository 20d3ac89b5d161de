"""Eigenwork beside training: in order, on one thread, with a bounded backlog, nothing lost."""

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
    """Jobs that hold memory until they are done. On CUDA they run on a stream of their own.

    What a job raises is raised by whoever asks next: in `ready`, `drain` or `reserve`.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        """`limit` is of the bytes that jobs may hold together."""
        self._limit = limit
        self._device = device
        self._stream = _stream_on(device)
        # LAPACK in a new thread takes all cores of the machine until torch is told otherwise, and
        # its last bits depend on how many those are. It takes as many as the thread that trains.
        self._pool = ThreadPoolExecutor(
            1, "eigenwork", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )
        self._jobs: deque[_Job[Result]] = deque()
        self._done: list[Result] = []
        self.seconds = 0.0  # that jobs have taken
        self.closing = threading.Event()  # for jobs to end early

    def reserve(self, nbytes: int, patience_s: float | None = None) -> bool:
        """Wait until that many bytes more are within the limit, or no job is left.

        Whether it came to that within `patience_s`.
        """
        return self._wait(
            lambda: sum(job.nbytes for job in self._jobs) + nbytes <= self._limit, patience_s
        )

    def submit(self, nbytes: int, work: Callable[[], Result]) -> None:
        """Do `work` after everything submitted before. It holds `nbytes` until then."""
        reached = None
        if self._stream is not None:
            reached = torch.cuda.Event()  # type: ignore[no-untyped-call]
            reached.record(torch.cuda.current_stream(self._device))
        self._jobs.append(_Job(nbytes, self._pool.submit(self._do, reached, work)))

    def ready(self) -> list[Result]:
        """Results since the last call, in order, without waiting."""
        while self._jobs and self._jobs[0].future.done():
            self._collect()
        done, self._done = self._done, []
        return done

    def finish(self, patience_s: float | None = None) -> bool:
        """Wait for everything submitted; whether it was done within `patience_s`."""
        return self._wait(lambda: False, patience_s)

    def drain(self) -> list[Result]:
        """Results since the last call, when everything submitted is done."""
        self.finish()
        return self.ready()

    def close(self) -> None:
        """End the thread; what has not begun is not begun."""
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
                    # The matrices go back to the training's stream when the job is over: by then
                    # nothing here may still read them.
                    self._stream.synchronize()
        finally:
            self.seconds += time.perf_counter() - began


def _stream_on(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
