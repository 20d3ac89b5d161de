"""A real MLflow server and a real exporter, killed at random moments of a sweep."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from exporter_bench import Bench, expected, finish_trial, put_rows, rows_of

from orchestrator.mlflow.exporter import ExporterProcess, start_exporter
from orchestrator.mlflow.tracking import CLIENT_ENVIRONMENT
from orchestrator.mlflow.ui import SERVER_ENVIRONMENT, free_port, server_command
from trialstore.storage import LocalStorage

TRIALS, STEPS = 4, 120
PATIENCE_S = 120.0


class Server:
    """MLflow on one port and one database, which may lose everything while it is down."""

    def __init__(self, bench: Bench, template: Path) -> None:
        self._bench, self._template = bench, template
        self.port = free_port(0)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command, url = server_command(LocalStorage(self._bench.root), self.port)
        assert url == self.uri
        environment = {**os.environ, **CLIENT_ENVIRONMENT, **SERVER_ENVIRONMENT}
        self._process = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health"):
                return
            threading.Event().wait(0.2)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def empty(self) -> None:
        for left in self._bench.root.glob("mlflow.db-*"):
            left.unlink()
        shutil.copyfile(self._template, self._bench.database)


@pytest.fixture
def bench(tmp_path: Path, template: Path, plain_environment: None) -> Bench:
    return Bench(tmp_path, template, TRIALS)


@pytest.fixture
def server(bench: Bench, template: Path) -> Iterator[Server]:
    server = Server(bench, template)
    try:
        yield server
    finally:
        server.kill()


def train(bench: Bench, number: int, pace_s: float) -> None:
    """A trial as its trainer writes it, over some time."""
    trial = bench.begin(number)
    for first in range(0, STEPS, 5):
        put_rows(trial, 1, first + (first > 0), first + 5)
        threading.Event().wait(pace_s)
    finish_trial(trial)


def disturb(
    kind: str,
    server: Server,
    exporter: ExporterProcess,
    chance: random.Random,
    over: threading.Event,
) -> None:
    while not over.wait(chance.uniform(1.0, 5.0)):
        if kind == "exporter":
            with contextlib.suppress(ProcessLookupError):
                os.kill(exporter.pid, signal.SIGKILL)
            continue
        server.kill()
        over.wait(chance.uniform(0.0, 4.0))
        if kind == "emptied":
            server.empty()
        server.start()


def assert_exported(bench: Bench) -> None:
    for number in range(TRIALS):
        assert bench.points(number) == expected(rows_of(0, STEPS)), number
        run = bench.child(number)
        assert run.info.status == "FINISHED"
        files = bench.root.glob(f"mlartifacts/*/{run.info.run_id}/artifacts/*.json")
        assert {path.name for path in files} == {"spec.json", "result.json"}
    assert len(bench.runs()) == TRIALS + 1
    assert bench.parent().info.status == "FINISHED"
    assert f"{TRIALS} completed" in bench.parent().data.tags["mlflow.note.content"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["exporter", "server", "emptied"])
def test_what_is_killed_again_and_again_leaves_every_point_once(
    bench: Bench, server: Server, kind: str, seed: int
) -> None:
    server.start()
    exporter = start_exporter(bench.sweep.url, server.uri, every_s=0.2)
    trainers = [
        threading.Thread(target=train, args=(bench, number, 0.5 + 0.2 * number))
        for number in range(TRIALS)
    ]
    over = threading.Event()
    trouble = threading.Thread(
        target=disturb, args=(kind, server, exporter, random.Random(seed), over)
    )
    try:
        for thread in (*trainers, trouble):
            thread.start()
        for thread in trainers:
            thread.join()
    finally:
        over.set()
        trouble.join()
    assert exporter.finish(timeout=PATIENCE_S)
    server.kill()
    assert_exported(bench)


@pytest.mark.slow
def test_a_server_that_was_never_up_gets_everything_from_a_later_exporter(
    bench: Bench, server: Server
) -> None:
    exporter = start_exporter(bench.sweep.url, server.uri, every_s=0.2)
    for number in range(TRIALS):
        train(bench, number, 0.0)
    assert not exporter.finish(timeout=PATIENCE_S)
    server.start()
    assert start_exporter(bench.sweep.url, server.uri).finish(timeout=PATIENCE_S)
    server.kill()
    assert_exported(bench)
