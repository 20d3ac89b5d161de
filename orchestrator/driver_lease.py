"""One driver per sweep: two would train the same trials side by side."""

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil

from analysis.errors import InputError
from analysis.records import BrokenRecordError, encode_json, get_json
from analysis.storage import Storage
from trainers.heartbeat import every

logger = logging.getLogger(__name__)

DRIVER = "driver.json"

HEARTBEAT_S = 5.0
#: A driver of another machine that has not been heard of for this long is gone.
STALE_S = 60.0
#: Two drivers that start at once have both written within this time.
SETTLE_S = 0.2


@contextlib.contextmanager
def driving(sweep: Storage) -> Iterator[None]:
    """Be the driver of a sweep for the time of the block.

    Raises InputError if another process is.
    """
    _refuse(_driver(sweep))
    owner = uuid.uuid4().hex

    def beat() -> None:
        sweep.put(
            DRIVER,
            encode_json(
                {
                    "owner": owner,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "started": psutil.Process().create_time(),
                    "heartbeat_ms": time.time_ns() // 1_000_000,
                }
            ),
        )

    def beat_on() -> None:
        if (_driver(sweep) or {}).get("owner") == owner:
            beat()

    beat()
    # Of two that found nobody at once, the one that wrote last stays.
    time.sleep(SETTLE_S)
    found = _driver(sweep)
    if found is not None and found.get("owner") != owner:
        _refuse(found)
    try:
        with every(HEARTBEAT_S, beat_on):
            yield
    finally:
        if (_driver(sweep) or {}).get("owner") == owner:
            sweep.delete(DRIVER)


def is_driven(sweep: Storage) -> bool:
    """Whether a driver is at work on a sweep."""
    driver = _driver(sweep)
    return driver is not None and _alive(driver)


def _driver(sweep: Storage) -> dict[str, Any] | None:
    try:
        return get_json(sweep, DRIVER)
    except BrokenRecordError as error:
        logger.warning("%s; taken for no driver", error)
        return None


def _refuse(other: dict[str, Any] | None) -> None:
    if other is not None and _alive(other):
        raise InputError(
            f"sweep is being run by process {other.get('pid')} on {other.get('host')}; "
            "follow it with `widthlab status`, or end it with `widthlab stop`"
        )


def _alive(driver: dict[str, Any]) -> bool:
    if driver.get("host") == socket.gethostname():
        # Of this machine we know at once: a killed driver need not be waited for.
        try:
            process = psutil.Process(int(str(driver["pid"])))
            return bool(abs(process.create_time() - float(str(driver["started"]))) < 1.0)
        except (psutil.NoSuchProcess, KeyError, ValueError):
            return False
    silent_ms = time.time() * 1000 - float(str(driver.get("heartbeat_ms", 0)))
    return silent_ms < STALE_S * 1000
