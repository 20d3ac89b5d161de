"""The mirror process: it sends a sweep to MLflow while others train, and cannot hurt them.

    python -m orchestrator.mirror SWEEP_URL [--tracking-uri URI] [--every SECONDS]

The driver hands it the URI, which may hold a password, in MLFLOW_TRACKING_URI: every user of a
machine sees the command lines of all.

It obeys its standard input: the line ``finish`` means that the sweep is over, and the end of the
input without it that the driver is gone; then the sweep's run stays RUNNING for the next driver.
`sync` is the same path for a sweep that nobody is running.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import select
import shlex
import subprocess
import sys
from dataclasses import replace
from typing import Literal, TextIO

from analysis.errors import InputError
from analysis.storage import LocalStorage, Storage, open_storage
from orchestrator.mirror_images import DRAWING_S
from orchestrator.mirror_sweep import Mirror, SyncReport, forget_trial
from orchestrator.tracking import URI_VARIABLE, embedded_uri, redacted, storage_of, tracking_uri

log = logging.getLogger(__name__)

__all__ = [
    "Mirror",
    "MirrorProcess",
    "SyncReport",
    "forget_trial",
    "start_mirror",
    "sync",
    "sync_command",
]

LOCK_FILE = ".mirror.lock"
EVERY = 3.0  # seconds between two looks
LONGEST_PAUSE = 60.0  # seconds, while the server is away
LOCK_PAUSE = 1.0  # seconds between two tries for the lock

Order = Literal["finish", "gone"]


# --- for the driver ------------------------------------------------------------------------


class MirrorProcess:
    """A mirror beside a driver. If the driver dies, it sends what is durable and ends."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def finish(self, timeout: float) -> bool:
        """End the sweep's run; True if MLflow has everything, within `timeout` seconds."""
        return self._end(b"finish\n", timeout)

    def leave(self, timeout: float) -> bool:
        """End the mirror but not the sweep's run: the sweep will be continued."""
        return self._end(b"", timeout)

    def _end(self, order: bytes, timeout: float) -> bool:
        try:
            self._process.communicate(order, timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()  # it may be killed at any point: the watermark is on the server
            self._process.wait()
        return self._process.returncode == 0


def start_mirror(sweep_url: str, uri: str, every: float = EVERY) -> MirrorProcess:
    """Start a mirror of a sweep, whose sweep.yaml exists; returns at once."""
    # -P: a folder named `analysis` where the user stands is not ours.
    command = [sys.executable, "-P", "-m", "orchestrator.mirror", sweep_url]
    command += ["--every", str(every)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=2,  # the driver's standard output may be one JSON object
        env={**os.environ, "OMP_NUM_THREADS": "1", URI_VARIABLE: uri},
        start_new_session=True,  # an interrupt from the keyboard is for the driver to judge
    )
    return MirrorProcess(process)


def sync(sweep: Storage, uri: str) -> SyncReport:
    """Send what MLflow has not seen of a sweep; end the sweep's run if every trial is over.

    Waits for another mirror of the same sweep. Raises InputError where `sweep` is no sweep.
    """
    mirror = Mirror(sweep, uri)
    with contextlib.ExitStack() as stack:
        lock = _open_lock(sweep, stack)
        if lock is not None and not _try_lock(lock):
            log.warning("another mirror is sending %s; waiting for it to end", sweep.url)
            fcntl.flock(lock, fcntl.LOCK_EX)
        first = mirror.sync_once()
        if first.away or {"waiting", "running"} & set(mirror.outcomes.values()):
            return first
        last = mirror.finish()
        return replace(  # what either has sent; `refused` and `away` are as they are at the end
            last,
            points=first.points + last.points,
            runs=first.runs + last.runs,
            nonfinite=first.nonfinite + last.nonfinite,
        )


def sync_command(sweep: Storage, uri: str) -> str:
    """What a user types to send the rest of a sweep to `uri`, without user name and password."""
    words = ["widthlab", "sync", sweep.url]
    storage = storage_of(sweep)
    if not isinstance(storage, LocalStorage) or uri != embedded_uri(storage):
        words += ["--tracking-uri", redacted(uri)]
    return shlex.join(words)


# --- the process ---------------------------------------------------------------------------


class Orders:
    """What the driver says on the other end of a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._heard = b""
        self._order: Order | None = None

    def wait(self, seconds: float) -> Order | None:
        """The order, None if there is none within the time; an order stays given."""
        if self._order is None and select.select([self._descriptor], [], [], seconds)[0]:
            heard = os.read(self._descriptor, 4096)
            self._heard += heard
            if b"finish\n" in self._heard:
                self._order = "finish"
            elif not heard:
                self._order = "gone"
        return self._order


def mirror_until_told(sweep: Storage, uri: str, every: float, orders: Orders) -> bool:
    """Mirror a sweep until the driver ends it or is gone; True if MLflow has everything."""
    with contextlib.ExitStack() as stack:
        lock = _open_lock(sweep, stack)
        while lock is not None and not _try_lock(lock):
            order = orders.wait(LOCK_PAUSE)
            if order == "gone":
                return False
            if order == "finish":
                fcntl.flock(lock, fcntl.LOCK_EX)  # the driver has set a limit to this
                break
        mirror = Mirror(sweep, uri, DRAWING_S)
        misses = 0
        while True:
            misses = misses + 1 if mirror.sync_once().away else 0
            order = orders.wait(min(every * 2**misses, LONGEST_PAUSE))
            if order is not None:
                report = mirror.finish() if order == "finish" else mirror.sync_once()
                return report.away is None and report.refused == 0


def _open_lock(sweep: Storage, stack: contextlib.ExitStack) -> TextIO | None:
    """The file whose lock says who sends; an object store has none, and one driver."""
    if not isinstance(sweep, LocalStorage):
        return None
    return stack.enter_context(sweep.path(LOCK_FILE).open("w"))


def _try_lock(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: everything is in MLflow; 1: something is not yet; 2: bad input."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.mirror", description=__doc__)
    parser.add_argument("sweep")
    parser.add_argument("--tracking-uri", help=f"default: {URI_VARIABLE}, or beside the sweep")
    parser.add_argument("--every", type=float, default=EVERY)
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    os.nice(5)  # training comes first
    try:
        sweep = open_storage(given.sweep)
        uri = tracking_uri(storage_of(sweep), given.tracking_uri)
        complete = mirror_until_told(sweep, uri, given.every, Orders(sys.stdin.fileno()))
    except InputError as error:
        log.error("%s", error)
        return 2
    if not complete:
        log.warning("MLflow does not have all of %s yet: %s", sweep.url, sync_command(sweep, uri))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
