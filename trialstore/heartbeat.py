"""Something done every few seconds beside the work: heartbeats, looks at a storage."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Call `call` every so many seconds from a thread, for the time of the block.

    Nothing that goes wrong in it ends it, or the work beside it: it is logged, once for as long as
    it stays the same, and tried again.
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
