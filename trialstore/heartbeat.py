"""Repeat a call every few seconds beside the work, and the timing of heartbeats."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

#: Seconds between two heartbeats of a trainer or a driver.
HEARTBEAT_S = 5.0
#: Seconds of silence after which its process counts as gone.
STALE_S = 60.0


@contextlib.contextmanager
def every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Call `call` every `seconds` from a thread while the block runs.

    An exception from `call` ends neither the repetition nor the block. It is logged, once for as
    long as its message stays the same.
    """
    ended = threading.Event()

    def beat() -> None:
        logged = ""
        while not ended.wait(seconds):
            try:
                call()
                logged = ""
            except Exception as error:
                if str(error) != logged:
                    logger.warning("%s; tried again every %g s", error, seconds)
                logged = str(error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
