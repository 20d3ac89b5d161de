"""A trial's points are in MLflow, each once, whatever dies in between."""

import logging
import math
import shutil
import socket
from collections import Counter
from typing import Any

import pytest
from exporter_bench import (
    Bench,
    checkpoint,
    expected,
    finish_trial,
    put_rows,
    rows_of,
    train_row,
)

from orchestrator.mlflow.export_sweep import Exporter
from orchestrator.mlflow.exporter import (
    forget_trial,
)
from orchestrator.mlflow.tracking import ServerAwayError, Tracking
from trialstore.errors import InputError
from trialstore.records import METRICS, put_part
from trialstore.storage import LocalStorage

# --- points --------------------------------------------------------------------------------


def test_every_point_has_the_name_step_value_and_time_of_its_record(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 25)
    report = bench.exporter().sync_once()
    assert bench.points() == expected(rows_of(0, 25))
    assert report.points == bench.points().total()
    assert report.away is None


def test_a_running_trial_is_sent_part_by_part_and_once(bench: Bench) -> None:
    trial = bench.begin()
    exporter = bench.exporter()
    for first, last in ((0, 10), (11, 20), (21, 40)):
        put_rows(trial, 1, first, last)
        assert exporter.sync_once().points > 0
        assert exporter.sync_once().points == 0
    finish_trial(trial)
    assert exporter.sync_once().points == 0
    assert bench.points() == expected(rows_of(0, 40))


def test_a_second_exporter_sends_nothing(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    assert bench.exporter().sync_once().points > 0
    again = bench.exporter().sync_once()
    assert (again.points, again.runs) == (0, 0)
    assert len(bench.runs()) == 2


@pytest.mark.long
def test_points_come_in_calls_of_at_most_a_thousand(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [train_row(step) for step in range(1, 1201)]
    put_part(bench.begin(), METRICS, 1, rows)
    calls = []
    send = Tracking.send_points
    monkeypatch.setattr(
        Tracking,
        "send_points",
        lambda self, run, points: (calls.append(len(points)), send(self, run, points)),
    )
    assert bench.exporter().sync_once().points == sum(calls) == 4 * 1200
    assert max(calls) <= 1000
    assert bench.points().total() == 4 * 1200


def test_what_is_not_finite_is_counted_and_not_sent(bench: Bench) -> None:
    trial = bench.begin()
    rows = [
        train_row(1, train_loss=math.nan),
        train_row(2, grad_norm=math.inf),
        train_row(3, grad_norm=None),
    ]
    put_part(trial, METRICS, 1, rows)
    exporter = bench.exporter()
    assert exporter.sync_once().nonfinite == 2
    put_part(trial, METRICS, 1, [train_row(4, train_loss=math.nan)])
    assert exporter.sync_once().nonfinite == 1
    assert bench.child().data.tags["widthlab.nonfinite_points"] == "3"
    keys = Counter(key for key, *_ in bench.points().elements())
    assert keys["train/loss"] == 2
    assert keys["train/grad_norm"] == 2


# --- deaths --------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


def sync_until_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the sweep that ends when the first points are in and not yet marked."""

    def dead(self: Tracking, run_id: str, tags: dict[str, str]) -> None:
        assert "widthlab.watermark" in tags, "the outcome must wait for the points"
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "send_tags", dead)
        with pytest.raises(Killed):
            bench.exporter().sync_once()


def test_an_exporter_killed_between_sending_and_marking_doubles_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 25)
    sync_until_killed(bench, monkeypatch)
    assert bench.points() == expected(rows_of(0, 25))  # in, but not marked
    put_rows(trial, 1, 26, 40)
    bench.exporter().sync_once()
    assert bench.points() == expected(rows_of(0, 40))


def test_rows_measured_anew_by_a_retry_are_neither_doubled_nor_missed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    bench.exporter().sync_once()
    checkpoint(trial, 10, 1)
    put_rows(trial, 1, 11, 25)
    sync_until_killed(bench, monkeypatch)
    # Cut off, and resumed from step 10; seen first when it has not got as far as before.
    put_rows(trial, 2, 11, 15, shift_ms=77_777)
    exporter = bench.exporter()
    assert exporter.sync_once().points == 0
    put_rows(trial, 2, 16, 40, shift_ms=77_777)
    exporter.sync_once()
    finish_trial(trial, attempt=2)
    bench.exporter().sync_once()

    points = bench.points()
    places = Counter((key, step) for key, step, *_ in points.elements())
    assert set(places) == {(key, step) for key, step, *_ in expected(rows_of(0, 40))}
    assert set(places.values()) == {1}
    late = {p for p in points if p[1] > 25}
    assert late == {p for p in expected(rows_of(11, 40, 77_777)) if p[1] > 25}


def test_an_answer_that_is_lost_doubles_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 25)
    exporter = bench.exporter()
    send = Tracking.send_points

    def lost(self: Tracking, run_id: str, points: Any) -> None:
        send(self, run_id, points)
        raise ServerAwayError("timed out")

    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "send_points", lost)
        assert exporter.sync_once().away == "timed out"
    put_rows(trial, 1, 26, 40)
    assert exporter.sync_once().away is None
    assert bench.points() == expected(rows_of(0, 40))


def test_a_server_that_is_away_stops_nothing_and_gets_everything_later(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    put_rows(bench.begin(), 1, 0, 40)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        away = Exporter(bench.sweep, f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}")
        with caplog.at_level(logging.WARNING, logger="orchestrator"):
            reports = [away.sync_once(), away.sync_once()]
    assert all(report.away and report.points == 0 for report in reports)
    (warning,) = [
        r.getMessage() for r in caplog.records if r.name == "orchestrator.mlflow.export_sweep"
    ]
    assert "127.0.0.1" in warning
    assert "secret" not in warning
    assert bench.exporter().sync_once().away is None
    assert bench.points() == expected(rows_of(0, 40))


def test_a_run_deleted_on_the_server_is_made_again(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    exporter = bench.exporter()
    exporter.sync_once()
    bench.client.delete_run(bench.child().info.run_id)
    put_rows(trial, 1, 11, 40)
    assert exporter.sync_once().refused == 1
    assert exporter.sync_once().refused == 0
    assert bench.points() == expected(rows_of(0, 40))


def test_a_trial_that_is_discarded_and_trained_anew_gets_a_new_run(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    bench.exporter().sync_once()
    old = bench.child().info.run_id
    shutil.rmtree(trial.root)
    put_rows(bench.begin(), 1, 0, 20, shift_ms=5)
    bench.exporter().sync_once()
    assert bench.child().info.run_id != old
    assert bench.points() == expected(rows_of(0, 20, shift_ms=5))


@pytest.mark.long
def test_a_trial_compacted_while_it_is_read_is_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    put_rows(trial, 1, 11, 40)
    get = LocalStorage.get

    def compacting(self: LocalStorage, key: str) -> bytes:
        if key.startswith("metrics/") and self.root == trial.root:
            monkeypatch.undo()
            finish_trial(trial)
        return get(self, key)

    bench.exporter().sync_once()
    put_rows(trial, 1, 41, 60)
    exporter = bench.exporter()
    monkeypatch.setattr(LocalStorage, "get", compacting)
    assert exporter.sync_once().refused == 0
    assert bench.points() == expected(rows_of(0, 60))
    assert not caplog.records


def test_a_trial_that_is_forgotten_starts_a_new_run(bench: Bench) -> None:
    assert forget_trial(bench.sweep, bench.uri, bench.ids[0]) == 0  # never exported
    trial = bench.begin()
    put_rows(trial, 1, 0, 25)
    bench.exporter().sync_once()
    assert forget_trial(bench.sweep, bench.uri, bench.ids[0]) == 1
    shutil.rmtree(trial.root)
    put_rows(bench.begin(), 1, 0, 10, shift_ms=5)
    bench.exporter().sync_once()
    assert bench.points() == expected(rows_of(0, 10, shift_ms=5))


def test_a_trial_is_not_forgotten_while_the_server_is_away(bench: Bench) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    bench.exporter().sync_once()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        uri = f"http://me:secret@127.0.0.1:{port}"
        with pytest.raises(InputError, match=f"http://127.0.0.1:{port}") as caught:
            forget_trial(bench.sweep, uri, bench.ids[0])
    assert "secret" not in str(caught.value)
