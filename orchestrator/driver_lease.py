"""One driver per sweep: two would train the same trials side by side."""

import os
import socket
import threading
import time
from types import TracebackType

import psutil

from analysis.errors import InputError
from analysis.records import encode_json, get_json
from analysis.storage import Storage

DRIVER = "driver.json"

HEARTBEAT_S = 5.0
#: A driver of another machine that has not been heard of for this long is gone.
STALE_S = 60.0


class DriverLease:
    """Held for the time of a run. Raises InputError if another driver has the sweep."""

    def __init__(self, sweep: Storage) -> None:
        self._sweep = sweep
        other = get_json(sweep, DRIVER)
        if other is not None and _alive(other):
            raise InputError(
                f"{sweep.url} is being run by process {other['pid']} on {other['host']}; "
                "follow it with `widthlab status`, or end it with `widthlab stop`"
            )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="driver-lease", daemon=True)

    def __enter__(self) -> "DriverLease":
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._sweep.delete(DRIVER)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            self._write()

    def _write(self) -> None:
        self._sweep.put(
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
