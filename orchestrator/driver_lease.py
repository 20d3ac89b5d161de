"""One driver per sweep: two would train the same trials side by side."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import psutil

from analysis.errors import InputError
from analysis.records import encode_json, get_json
from analysis.storage import Storage
from trainers.heartbeat import every

DRIVER = "driver.json"

HEARTBEAT_S = 5.0
#: A driver of another machine that has not been heard of for this long is gone.
STALE_S = 60.0


@contextlib.contextmanager
def driving(sweep: Storage) -> Iterator[None]:
    """Be the driver of a sweep for the time of the block.

    Raises InputError if another process is.
    """
    other = get_json(sweep, DRIVER)
    if other is not None and _alive(other):
        raise InputError(
            f"{sweep.url} is being run by process {other['pid']} on {other['host']}; "
            "follow it with `widthlab status`, or end it with `widthlab stop`"
        )

    def beat() -> None:
        sweep.put(
            DRIVER,
            encode_json(
                {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "started": psutil.Process().create_time(),
                    "heartbeat_ms": time.time_ns() // 1_000_000,
                }
            ),
        )

    beat()
    try:
        with every(HEARTBEAT_S, beat):
            yield
    finally:
        sweep.delete(DRIVER)


def is_driven(sweep: Storage) -> bool:
    """Whether a driver is at work on a sweep."""
    driver = get_json(sweep, DRIVER)
    return driver is not None and _alive(driver)


def _alive(driver: dict[str, object]) -> bool:
    if driver.get("host") == socket.gethostname():
        # Of this machine we know at once: a killed driver need not be waited for.
        try:
            process = psutil.Process(int(str(driver["pid"])))
            return bool(abs(process.create_time() - float(str(driver["started"]))) < 1.0)
        except (psutil.NoSuchProcess, KeyError, ValueError):
            return False
    silent_ms = time.time() * 1000 - float(str(driver.get("heartbeat_ms", 0)))
    return silent_ms < STALE_S * 1000
