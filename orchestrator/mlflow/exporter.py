"""The exporter process: it sends a sweep to MLflow while others train, and cannot hurt them.

    python -m orchestrator.mlflow.exporter SWEEP_URL [--tracking-uri URI] [--every SECONDS]

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
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TextIO

from orchestrator.mlflow.export_sweep import Exporter, SyncReport
from orchestrator.mlflow.identity import forget_trial
from orchestrator.mlflow.images import DRAWING_S
from orchestrator.mlflow.tracking import (
    URI_VARIABLE,
    embedded_uri,
    redacted,
    storage_of,
    tracking_uri,
)
from trialstore.errors import InputError
from trialstore.heartbeat import every
from trialstore.storage import LocalStorage, Storage, open_storage
from trialstore.sweep_file import read_sweep_file

log = logging.getLogger(__name__)

__all__ = [
    "Exporter",
    "ExporterProcess",
    "SyncReport",
    "forget_trial",
    "start_exporter",
    "sync",
    "sync_command",
]

LOCK_FILE = ".mirror.lock"
EVERY = 3.0  # seconds between two looks
LONGEST_PAUSE = 60.0  # seconds, while the server is away
LOCK_PAUSE = 1.0  # seconds between two tries for the lock
LOOK_S = 5.0  # between two looks whether the exporter lives
BAD_INPUT = 2  # its exit code

Order = Literal["finish", "gone"]


# --- for the driver ------------------------------------------------------------------------


class ExporterProcess:
    """An exporter beside a driver. If the driver dies, it sends what is durable and ends; if the
    exporter dies, another takes its place: nothing is lost with it."""

    def __init__(self, start: Callable[[], "subprocess.Popen[bytes]"]) -> None:
        self._start = start
        self._process = start()
        self._rest_s = LOOK_S
        self._rested_at = time.monotonic()
        self._watch = contextlib.ExitStack()
        self._watch.enter_context(every(LOOK_S, self._replace_dead))

    @property
    def pid(self) -> int:
        return self._process.pid

    def finish(self, timeout: float) -> bool:
        """End the sweep's run; True if MLflow has everything, within `timeout` seconds."""
        return self._end(b"finish\n", timeout)

    def leave(self, timeout: float) -> bool:
        """End the exporter but not the sweep's run: the sweep will be continued."""
        return self._end(b"", timeout)

    def _replace_dead(self) -> None:
        """Start another, ever less often, unless this one has said that it cannot go on."""
        code = self._process.poll()
        if code in (None, BAD_INPUT) or time.monotonic() < self._rested_at:
            return
        log.warning("the exporter has ended by itself with code %s; another goes on", code)
        self._replace()
        self._rested_at = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, LONGEST_PAUSE)

    def _replace(self) -> None:
        self._process.communicate()  # closes the pipe to the dead one
        self._process = self._start()

    def _end(self, order: bytes, timeout: float) -> bool:
        self._watch.close()
        deadline = time.monotonic() + timeout
        if self._process.poll() not in (None, BAD_INPUT):
            self._replace()
        while True:
            try:
                self._process.communicate(order, max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()  # it may be killed at any point: the server knows how far
                self._process.wait()
            if self._process.returncode >= 0 or time.monotonic() >= deadline:
                return self._process.returncode == 0
            self._replace()  # somebody has killed it


def start_exporter(sweep_url: str, uri: str, every_s: float = EVERY) -> ExporterProcess:
    """Start an exporter of a sweep, whose sweep.yaml exists; returns at once."""
    # -P: a folder named `analysis` where the user stands is not ours.
    command = [sys.executable, "-P", "-m", "orchestrator.mlflow.exporter", sweep_url]
    command += ["--every", str(every_s)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", URI_VARIABLE: uri}

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=2,  # the driver's standard output may be one JSON object
            env=environment,
            start_new_session=True,  # an interrupt from the keyboard is for the driver to judge
        )

    return ExporterProcess(start)


def sync(sweep: Storage, uri: str) -> SyncReport:
    """Send what MLflow has not seen of a sweep; end the sweep's run if every trial is over.

    Waits for another exporter of the same sweep. Raises InputError where `sweep` is no sweep.
    """
    exporter = Exporter(sweep, uri)
    with contextlib.ExitStack() as stack:
        lock = _open_lock(sweep, stack)
        if lock is not None and not _try_lock(lock):
            log.warning("another exporter is sending %s; waiting for it to end", sweep.url)
            fcntl.flock(lock, fcntl.LOCK_EX)
        first = exporter.sync_once()
        if first.away or {"waiting", "running"} & set(exporter.outcomes.values()):
            return first
        last = exporter.finish()
        return replace(  # what either has sent; what is missing is as it is at the end
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


def export_until_told(sweep: Storage, uri: str, every_s: float, orders: Orders) -> bool:
    """Exporter a sweep until the driver ends it or is gone; True if MLflow has everything.

    Raises InputError where `sweep` is no sweep.
    """
    read_sweep_file(sweep)  # refused before a lock is left where there is no sweep
    with contextlib.ExitStack() as stack:
        lock = _open_lock(sweep, stack)
        while lock is not None and not _try_lock(lock):
            order = orders.wait(LOCK_PAUSE)
            if order == "gone":
                return False
            if order == "finish":
                fcntl.flock(lock, fcntl.LOCK_EX)  # the driver has set a limit to this
                break
        exporter = Exporter(sweep, uri, DRAWING_S)
        pause = every_s
        while True:
            began = time.monotonic()
            away = exporter.sync_once().away
            took = time.monotonic() - began
            # Looking takes half the time at most, however large the sweep and slow its storage.
            pause = min(2 * pause, LONGEST_PAUSE) if away else max(every_s, took)
            order = orders.wait(pause)
            if order is not None:
                report = exporter.finish() if order == "finish" else exporter.sync_once()
                return report.complete


def _open_lock(sweep: Storage, stack: contextlib.ExitStack) -> TextIO | None:
    """The file whose lock says who sends; an object store has none, and one driver."""
    if not isinstance(sweep, LocalStorage):
        return None
    try:
        return stack.enter_context(sweep.path(LOCK_FILE).open("w"))
    except OSError as error:
        raise InputError(
            f"{sweep.url_of(LOCK_FILE)} cannot be written: {error.strerror}; two exporters of one "
            "sweep keep apart by it, so copy the sweep to where you may write"
        ) from error


def _try_lock(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: everything is in MLflow; 1: something is not yet; 2: bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.mlflow.exporter", description=__doc__
    )
    parser.add_argument("sweep")
    parser.add_argument("--tracking-uri", help=f"default: {URI_VARIABLE}, or beside the sweep")
    parser.add_argument("--every", type=float, default=EVERY)
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    os.nice(5)  # training comes first
    # Who stops a job or an allocation signals all its processes; this one ends after its driver.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        sweep = open_storage(given.sweep)
        uri = tracking_uri(storage_of(sweep), given.tracking_uri)
        complete = export_until_told(sweep, uri, given.every, Orders(sys.stdin.fileno()))
    except InputError as error:
        log.error("%s", error)
        return BAD_INPUT
    if not complete:
        log.warning("MLflow does not have all of %s yet: %s", sweep.url, sync_command(sweep, uri))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
