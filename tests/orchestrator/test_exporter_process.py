"""An exporter beside a driver, and `widthlab sync` after it."""

import fcntl
import os
import signal
import socket
import subprocess
import threading
import time

import pytest
from exporter_bench import (
    Bench,
    expected,
    finish_trial,
    put_rows,
    rows_of,
)

from orchestrator.mlflow.exporter import (
    Orders,
    export_until_told,
    start_exporter,
    sync,
    sync_command,
)

# --- later, and beside a driver ------------------------------------------------------------


@pytest.mark.long
def test_sync_later_ends_a_sweep_that_is_over_and_leaves_another_open(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    sync(bench.sweep, bench.uri)
    assert bench.parent().info.status == "RUNNING"
    finish_trial(trial)
    assert sync(bench.sweep, bench.uri).away is None
    assert bench.parent().info.status == "FINISHED"
    assert sync(bench.sweep, bench.uri).points == 0


def test_sync_tells_what_both_of_its_looks_have_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    sync(bench.sweep, bench.uri)
    bench.client.delete_run(bench.child().info.run_id)
    put_rows(trial, 1, 11, 40)
    finish_trial(trial)
    report = sync(bench.sweep, bench.uri)  # refused at first, then made again
    assert report.points == bench.points().total() == expected(rows_of(0, 40)).total()
    assert (report.runs, report.refused) == (1, 0)


def test_the_way_to_send_the_rest_names_any_server_but_the_file_beside_the_sweep(
    bench: Bench,
) -> None:
    plain = f"widthlab sync {bench.sweep.url}"
    assert sync_command(bench.sweep, bench.uri) == plain
    elsewhere = "http://me:secret@host:5000"
    named = f"{plain} --tracking-uri http://host:5000"
    assert sync_command(bench.sweep, elsewhere) == named


def told(message: bytes) -> Orders:
    read, write = os.pipe()
    os.write(write, message)
    os.close(write)
    return Orders(read)


def test_a_driver_that_dies_leaves_the_sweep_open_with_what_is_durable(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    assert export_until_told(bench.sweep, bench.uri, 60.0, told(b""))
    assert bench.parent().info.status == "RUNNING"
    assert bench.points() == expected(rows_of(0, 10))


def test_two_exporters_of_one_sweep_never_send_at_once(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    with bench.sweep.path(".mirror.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not export_until_told(bench.sweep, bench.uri, 60.0, told(b""))
    assert bench.client.get_experiment_by_name("widthlab") is None


@pytest.mark.processes
def test_the_process_sends_while_it_lives_and_ends_the_sweep_when_told(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    process = start_exporter(bench.sweep.url, bench.uri, every_s=0.1)
    assert process.finish(timeout=120)
    assert bench.points() == expected(rows_of(0, 40))
    assert bench.parent().info.status == "FINISHED"
    assert bench.child().data.tags["mlflow.source.name"] == "widthlab"
    assert capfd.readouterr().out == ""


@pytest.mark.processes
def test_the_process_tells_that_the_server_was_away_and_never_the_password(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        process = start_exporter(bench.sweep.url, f"http://me:secret@{address}")
        # Every user of the machine can read a command line.
        command = subprocess.run(
            ["ps", "-o", "args=", "-p", str(process.pid)], capture_output=True, check=True
        )
        assert not process.finish(timeout=120)
    assert b"orchestrator.mlflow.exporter" in command.stdout
    assert b"secret" not in command.stdout
    told = capfd.readouterr().err
    assert f"widthlab sync {bench.sweep.url} --tracking-uri http://{address}" in told
    assert "secret" not in told


@pytest.mark.processes
def test_an_exporter_that_is_killed_twice_is_replaced_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orchestrator.mlflow.exporter.LOOK_S", 0.05)
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    process = start_exporter(bench.sweep.url, bench.uri, every_s=0.1)
    first = process.pid
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while process.pid == first and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert process.pid != first
    os.kill(process.pid, signal.SIGKILL)
    assert process.finish(timeout=120)
    assert bench.points() == expected(rows_of(0, 40))
    assert bench.parent().info.status == "FINISHED"
    assert any("-9" in r.getMessage() for r in caplog.records)


@pytest.mark.processes
def test_an_exporter_of_no_sweep_ends_and_is_not_started_again(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    process = start_exporter(str(bench.root / "nowhere"), bench.uri)
    assert not process.finish(timeout=120)
    assert capfd.readouterr().err.count("is not a sweep's directory") == 1
