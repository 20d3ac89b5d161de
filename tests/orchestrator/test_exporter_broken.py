"""What nobody can read keeps only its own trial out of MLflow."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from exporter_bench import (
    Bench,
    expected,
    finish_trial,
    put_rows,
    rows_of,
    spec,
)

from orchestrator.mlflow.exporter import (
    forget_trial,
    sync,
)
from orchestrator.mlflow.tracking import RefusedError, Tracking
from trialstore import records
from trialstore.records import encode_json


@pytest.mark.long
def test_a_broken_trial_does_not_keep_the_others_out(
    make_bench: Callable[[int], Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(2)
    bench.begin(0).put("metrics/part-1-0-10.parquet", b"not Parquet")
    put_rows(bench.begin(1), 1, 0, 10)
    exporter = bench.exporter()
    assert [exporter.sync_once().refused for _ in range(2)] == [1, 1]
    assert len([r for r in caplog.records if "cannot be read" in r.getMessage()]) == 1
    assert bench.points(1) == expected(rows_of(0, 10))


NESTED = b"[" * 200_000


@pytest.mark.parametrize(
    "key",
    [records.RESULT, records.FAILURE, records.LEASE, records.SPEC, records.COLLAPSE],
)
@pytest.mark.long
def test_records_that_nobody_can_read_keep_only_their_own_trial_out(
    make_bench: Callable[[int], Bench], key: str
) -> None:
    broken = [b"", b'{"outc', b"[]", b"{}", b'"text"', b"\xff", NESTED]
    bench = make_bench(len(broken) + 1)
    for number, data in enumerate(broken):
        trial = bench.begin(number)
        put_rows(trial, 1, 0, 0)
        trial.put(key, data)
    put_rows(bench.begin(len(broken)), 1, 0, 10)
    report = bench.exporter().sync_once()
    assert report.away is None
    # An empty failure is one without a message, and nothing rests on a lease.
    missed = {records.FAILURE: len(broken) - 1, records.LEASE: 0}.get(key, len(broken))
    assert report.refused == missed
    assert bench.points(len(broken)) == expected(rows_of(0, 10))


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "banana"},
        {"outcome": []},
        {"records": []},
        {"records": {"metrics": 3}},
        {"finished_ms": "noon"},
        {"finished_ms": 10**40},
    ],
    ids=str,
)
@pytest.mark.long
def test_a_result_that_is_not_one_keeps_only_its_own_trial_out(
    make_bench: Callable[[int], Bench], change: dict[str, Any]
) -> None:
    bench = make_bench(2)
    trial = bench.begin(0)
    put_rows(trial, 1, 0, 10)
    finish_trial(trial)
    result = json.loads(trial.get(records.RESULT))
    trial.put(records.RESULT, encode_json(result | change))
    put_rows(bench.begin(1), 1, 0, 10)
    report = bench.exporter().sync_once()
    assert (report.refused, report.away) == (1, None)
    assert bench.points(1) == expected(rows_of(0, 10))


def test_text_that_no_database_takes_is_sent_without_it(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 10)
    trial.put(records.SPEC, encode_json(spec(bench.ids[0]) | {"kind": "a\ud800\0b"}))
    failure = {"stage": "train", "message": "a\ud800\0b", "attempt": 1, "gave_up": True}
    trial.put(records.FAILURE, encode_json(failure))
    report = bench.exporter().sync_once()
    assert (report.refused, report.away) == (0, None)
    assert bench.child().data.tags["failure"] == "train: a??b"
    assert bench.child().data.params["kind"] == "a??b"


def test_a_sweep_whose_only_trial_is_broken_ends_as_failed(bench: Bench) -> None:
    bench.begin().put(records.RESULT, b"{}")
    assert sync(bench.sweep, bench.uri).refused == 1
    assert bench.parent().info.status == "FAILED"


def test_a_trial_given_up_is_counted_until_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_rows(bench.begin(), 1, 0, 10)

    def refuse(self: Tracking, run_id: str, points: Any) -> None:
        raise RefusedError("no")

    monkeypatch.setattr(Tracking, "send_points", refuse)
    exporter = bench.exporter()
    reports = [exporter.sync_once(), exporter.sync_once(), exporter.sync_once(), exporter.finish()]
    assert [report.refused for report in reports] == [1, 1, 1, 1]


def test_a_run_that_was_refused_something_is_the_one_that_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_rows(bench.begin(), 1, 0, 10)
    send, refusals = Tracking.send_points, iter(["once"])

    def refuse_once(self: Tracking, run_id: str, points: Any) -> None:
        if next(refusals, None):
            raise RefusedError("not now")
        send(self, run_id, points)

    monkeypatch.setattr(Tracking, "send_points", refuse_once)
    exporter = bench.exporter()
    assert [exporter.sync_once().refused for _ in range(2)] == [1, 0]
    assert len(bench.runs()) == 2  # the sweep's and the trial's
    assert bench.points() == expected(rows_of(0, 10))


def test_a_recommendation_that_is_not_one_is_left_out_of_the_note(bench: Bench) -> None:
    for data in (b'{"groups": [3]}', b'{"groups": 3}', b"[]", NESTED):
        bench.sweep.put("report/recommendation.json", data)
        assert bench.exporter().sync_once().away is None
        assert bench.parent().data.tags["mlflow.note.content"] == "1 trials: 1 waiting."


# --- the sweep's identity ------------------------------------------------------------------

NO_IDENTITY = [b"junk", b"{}", b"[]", b'{"identity": 3}', b'{"identity": null}', NESTED]
NO_IDENTITY += [b'{"identity": "it\'s"}']


@pytest.mark.parametrize("data", NO_IDENTITY, ids=range(len(NO_IDENTITY)))
@pytest.mark.long
def test_an_identity_that_is_broken_is_made_anew_with_a_warning(
    bench: Bench, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bench.sweep.put("mirror.json", data)
    assert forget_trial(bench.sweep, bench.uri, bench.ids[0]) == 0
    put_rows(bench.begin(), 1, 0, 10)
    caplog.clear()
    assert sync(bench.sweep, bench.uri).away is None
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "mirror.json" in warning
    assert bench.points() == expected(rows_of(0, 10))
    assert sync(bench.sweep, bench.uri).points == 0
    assert len(caplog.records) == 1
