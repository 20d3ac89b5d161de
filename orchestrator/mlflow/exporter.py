"""The MLflow exporter: a process that sends a sweep to MLflow while trials train.

    python -m orchestrator.mlflow.exporter SWEEP_URL [--tracking-uri URI] [--every SECONDS]

The driver passes the URI, which may hold a password, in MLFLOW_TRACKING_URI: other users of the
machine can read command lines.

The exporter reads its standard input. The line ``finish`` means that the sweep is over. The end of
input without that line means that the driver is gone: the exporter sends the rest and leaves the
sweep's run RUNNING for the next driver. `sync` does the same work for a sweep without a driver.
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
from trialstore.errors import BAD_INPUT, InputError
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
EVERY = 3.0  # seconds between two passes over the sweep
LONGEST_PAUSE = 60.0  # seconds, while the server does not answer
LOCK_PAUSE = 1.0  # seconds between two tries for the lock
LOOK_S = 5.0  # seconds between two checks that the exporter lives

Order = Literal["finish", "gone"]


# --- for the driver ------------------------------------------------------------------------


class ExporterProcess:
    """The MLflow exporter as a child process of the driver.

    If the driver dies, the exporter sends the durable records and exits. If the exporter dies, the
    driver starts another, and nothing is lost.

    Args:
        start: Starts the process, with a pipe to its standard input.
    """

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
        """End the sweep's run and the exporter. Return whether MLflow got everything.

        Args:
            timeout: Seconds, after which the exporter is killed.
        """
        return self._end(b"finish\n", timeout)

    def leave(self, timeout: float) -> bool:
        """End the exporter and leave the sweep's run RUNNING. Otherwise like `finish`."""
        return self._end(b"", timeout)

    def _replace_dead(self) -> None:
        """Replace a dead exporter, with growing pauses. Exit code 2 is final."""
        code = self._process.poll()
        if code in (None, BAD_INPUT) or time.monotonic() < self._rested_at:
            return
        log.warning("the MLflow exporter died with exit code %s; another one continues", code)
        self._replace()
        self._rested_at = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, LONGEST_PAUSE)

    def _replace(self) -> None:
        self._process.communicate()  # closes the pipe
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
                self._process.kill()  # safe: the server knows how far it got
                self._process.wait()
            if self._process.returncode >= 0 or time.monotonic() >= deadline:
                return self._process.returncode == 0
            self._replace()  # killed by a signal: start another


def start_exporter(sweep_url: str, uri: str, every_s: float = EVERY) -> ExporterProcess:
    """Start the MLflow exporter of a sweep. Return at once.

    Args:
        sweep_url: The sweep's directory, which holds sweep.yaml.
        uri: The tracking URI.
        every_s: Seconds between two passes over the sweep.
    """
    # -P: do not import a folder named `analysis` in the current directory.
    command = [sys.executable, "-P", "-m", "orchestrator.mlflow.exporter", sweep_url]
    command += ["--every", str(every_s)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", URI_VARIABLE: uri}

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=2,  # the driver's standard output may be one JSON object
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the driver only
        )

    return ExporterProcess(start)


def sync(sweep: Storage, uri: str) -> SyncReport:
    """Send everything that MLflow lacks of a sweep. End the sweep's run if every trial is over.

    Waits for another exporter of the same sweep. Raises InputError if `sweep` is not a sweep's
    directory.
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
        return replace(  # sent: the sum; missing: as of the last pass
            last,
            points=first.points + last.points,
            runs=first.runs + last.runs,
            nonfinite=first.nonfinite + last.nonfinite,
        )


def sync_command(sweep: Storage, uri: str) -> str:
    """Return the command that sends the rest of a sweep to `uri`, without any password."""
    words = ["widthlab", "sync", sweep.url]
    storage = storage_of(sweep)
    if not isinstance(storage, LocalStorage) or uri != embedded_uri(storage):
        words += ["--tracking-uri", redacted(uri)]
    return shlex.join(words)


# --- the process ---------------------------------------------------------------------------


class Orders:
    """The driver's orders, read from a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._heard = b""
        self._order: Order | None = None

    def wait(self, seconds: float) -> Order | None:
        """Wait for an order; None if none came in time. Later calls return the same order."""
        if self._order is None and select.select([self._descriptor], [], [], seconds)[0]:
            heard = os.read(self._descriptor, 4096)
            self._heard += heard
            if b"finish\n" in self._heard:
                self._order = "finish"
            elif not heard:
                self._order = "gone"
        return self._order


def export_until_told(sweep: Storage, uri: str, every_s: float, orders: Orders) -> bool:
    """Export a sweep until the driver ends it or is gone. Return whether MLflow has everything.

    Raises InputError if `sweep` is not a sweep's directory.
    """
    read_sweep_file(sweep)  # raises before a lock file is created in some other folder
    with contextlib.ExitStack() as stack:
        lock = _open_lock(sweep, stack)
        while lock is not None and not _try_lock(lock):
            order = orders.wait(LOCK_PAUSE)
            if order == "gone":
                return False
            if order == "finish":
                fcntl.flock(
                    lock, fcntl.LOCK_EX
                )  # waits; the driver kills this process after its timeout
                break
        exporter = Exporter(sweep, uri, DRAWING_S)
        pause = every_s
        while True:
            began = time.monotonic()
            away = exporter.sync_once().away
            took = time.monotonic() - began
            # A pass takes at most half of the time, also with a large sweep or a slow storage.
            pause = min(2 * pause, LONGEST_PAUSE) if away else max(every_s, took)
            order = orders.wait(pause)
            if order is not None:
                report = exporter.finish() if order == "finish" else exporter.sync_once()
                return report.complete


def _open_lock(sweep: Storage, stack: contextlib.ExitStack) -> TextIO | None:
    """Return the lock file of the sweep's exporter; None in an object store, which has no locks."""
    if not isinstance(sweep, LocalStorage):
        return None
    try:
        return stack.enter_context(sweep.path(LOCK_FILE).open("w"))
    except OSError as error:
        raise InputError(
            f"{sweep.url_of(LOCK_FILE)} cannot be written: {error.strerror}; this lock keeps two "
            "exporters of one sweep apart, so copy the sweep to a folder that you may write to"
        ) from error


def _try_lock(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the exporter. Exit code 0: MLflow has everything; 1: not yet; 2: bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.mlflow.exporter", description=__doc__
    )
    parser.add_argument("sweep")
    parser.add_argument("--tracking-uri", help=f"default: {URI_VARIABLE}, or beside the sweep")
    parser.add_argument("--every", type=float, default=EVERY)
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    os.nice(5)  # training comes first
    # Slurm and others signal all processes of a job. The exporter outlives its driver.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        sweep = open_storage(given.sweep)
        uri = tracking_uri(storage_of(sweep), given.tracking_uri)
        complete = export_until_told(sweep, uri, given.every, Orders(sys.stdin.fileno()))
    except InputError as error:
        log.error("%s", error)
        return BAD_INPUT
    if not complete:
        log.warning(
            "MLflow lacks a part of %s; send it with: %s", sweep.url, sync_command(sweep, uri)
        )
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
