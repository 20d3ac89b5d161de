"""Whatever dies, and however often: MLflow ends with what the trial directories hold, once."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from exporter_bench import (
    Bench,
    checkpoint,
    expected,
    finish_trial,
    give_up,
    put_rows,
    rows_of,
)

from orchestrator.mlflow.export_sweep import Exporter
from orchestrator.mlflow.tracking import ServerAwayError, Tracking
from trialstore import records
from trialstore.records import encode_json

#: Everything that an exporter has a server do.
CALLS = ("create", "send_params", "send_points", "send_tags", "send_artifact", "set_status")


class Killed(BaseException):
    """The process is gone."""


def whole_sweep(bench: Bench) -> None:
    """A trial that was retried, one that diverged, and one that was given up; and a report."""
    retried = bench.begin(0)
    put_rows(retried, 1, 0, 20)
    checkpoint(retried, 20, 1)
    put_rows(retried, 2, 21, 40, shift_ms=7)
    finish_trial(retried, attempt=2)
    diverged = bench.begin(1)
    put_rows(diverged, 1, 0, 20)
    finish_trial(diverged, "diverged")
    failed = bench.begin(2)
    put_rows(failed, 1, 0, 10)
    give_up(failed)
    verdict = {"groups": [{"label": "all", "sentence": "use 2.67x"}]}
    bench.sweep.put("report/recommendation.json", encode_json(verdict))
    bench.sweep.put("report/figures/loss.svg", b"<svg/>")


def assert_whole(bench: Bench) -> None:
    """MLflow holds `whole_sweep`: every point once, every file, and no run that goes on."""
    retried = expected(rows_of(0, 20)) + expected(rows_of(21, 40, shift_ms=7))
    assert bench.points(0) == retried
    assert bench.points(1) == expected(rows_of(0, 20))
    assert bench.points(2) == expected(rows_of(0, 10))
    assert len(bench.runs()) == 4
    states = {run.data.tags.get("trial_id"): run.info.status for run in bench.runs()}
    assert states == dict(zip([*bench.ids, None], ["FINISHED", *["FAILED"] * 3], strict=True))
    for number, files in ((0, {"spec.json", "result.json"}), (2, {"spec.json"})):
        run = bench.child(number)
        assert {file.path for file in bench.client.list_artifacts(run.info.run_id)} == files
        assert run.data.params["training.learning_rate"] == "0.006"
        assert run.data.params["parameters.total"] == "131072"
    parent = bench.parent()
    assert parent.data.tags["mlflow.note.content"] == (
        "**all**: use 2.67x.\n\n3 trials: 1 completed, 1 diverged, 1 failed."
    )
    assert parent.data.params["corpus_fingerprint"] == "c" * 16
    stored = {file.path for file in bench.client.list_artifacts(parent.info.run_id)}
    assert stored == {"report", "sweep.yaml"}
    for number in range(3):
        assert bench.child(number).data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.fixture
def three(make_bench: Callable[[int], Bench]) -> Bench:
    bench = make_bench(3)
    whole_sweep(bench)
    return bench


# --- the exporter dies -----------------------------------------------------------------------


def intercept(
    patched: pytest.MonkeyPatch,
    before: Callable[[int], object],
    after: Callable[[int], object],
) -> Callable[[], int]:
    """Do something before and after the n-th call of a server; returns a counter."""
    made = 0

    def watched(name: str) -> Callable[..., Any]:
        plain = getattr(Tracking, name)

        def wrapped(self: Tracking, *arguments: Any) -> Any:
            nonlocal made
            made += 1
            number = made
            before(number)
            answer = plain(self, *arguments)
            after(number)
            return answer

        return wrapped

    for name in CALLS:
        patched.setattr(Tracking, name, watched(name))
    return lambda: made


def dying_at(monkeypatch: pytest.MonkeyPatch, call: int, done: bool) -> Callable[[], int]:
    """Have the `call`-th call be the last, done by the server or not; returns a counter."""

    def die(number: int) -> None:
        if number == call:
            raise Killed

    def live(_: int) -> None:
        pass

    return intercept(monkeypatch, live if done else die, die)


def killed(bench: Bench, monkeypatch: pytest.MonkeyPatch, call: int, done: bool) -> bool:
    """An exporter that dies at a call; False if it came to its end before."""
    with monkeypatch.context() as patched:
        dying_at(patched, call, done)
        try:
            bench.exporter().finish()
        except Killed:
            return True
    return False


def test_an_exporter_killed_at_some_calls_and_its_successor_too_lose_and_double_nothing(
    three: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in (2, 5, 9):
        assert killed(three, monkeypatch, call, done=True)
        assert killed(three, monkeypatch, call - 1, done=False)
    assert three.exporter().finish().complete
    assert_whole(three)


def calls_of(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patched:
        count = dying_at(patched, 0, done=False)
        bench.exporter().finish()
    return count()


@pytest.fixture
def next_bench(make_bench: Callable[[int], Bench], template: Any) -> Iterator[Bench]:
    """The same sweep and an empty database, as often as asked."""
    bench = make_bench(3)
    whole_sweep(bench)

    def empty() -> Iterator[Bench]:
        while True:
            erase(bench)
            bench.sweep.delete("mirror.json")
            yield bench

    return empty()


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_an_exporter_killed_at_any_call_and_its_successor_too_lose_and_double_nothing(
    next_bench: Iterator[Bench], monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    calls = calls_of(next(next_bench), monkeypatch)
    assert calls > 20
    for call in range(1, calls + 1):
        bench = next(next_bench)
        assert killed(bench, monkeypatch, call, done)
        killed(bench, monkeypatch, 1 + call % 4, not done)
        assert bench.exporter().finish().complete, call
        assert_whole(bench)


@pytest.mark.long
def test_a_call_that_was_sent_twice_leaves_one_run_of_each(
    three: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = Tracking.create

    def twice(self: Tracking, *arguments: Any) -> Any:
        create(self, *arguments)
        return create(self, *arguments)

    exporter = three.exporter()
    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "create", twice)
        exporter.sync_once()
    assert len(three.runs()) == 8
    assert exporter.finish().complete
    assert_whole(three)
    assert len([r for r in caplog.records if "second run" in r.getMessage()]) == 4


# --- the server dies -----------------------------------------------------------------------


def erase(bench: Bench) -> None:
    """What is left where a server starts again on an empty database."""
    with closing(sqlite3.connect(bench.database)) as database, database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (name,) in tables.fetchall():
            if name != "alembic_version":
                database.execute(f"DELETE FROM {name}")


@pytest.mark.long
def test_a_server_emptied_in_mid_sweep_gets_everything_again(three: Bench) -> None:
    exporter = three.exporter()
    assert exporter.sync_once().points > 0
    erase(three)
    put_rows(three.begin(2), 1, 11, 12)  # something new, by which it is noticed
    assert exporter.sync_once().complete
    assert three.points(0).total() > 0
    erase(three)  # nothing new: noticed at the end
    three.sweep.child(f"trials/{three.ids[2]}").delete("metrics/part-1-11-12.parquet")
    assert exporter.finish().complete
    assert_whole(three)


def test_a_sweeps_run_deleted_on_the_server_is_made_again_with_all_trials_below_it(
    three: Bench,
) -> None:
    exporter = three.exporter()
    exporter.sync_once()
    deleted = three.parent().info.run_id
    three.client.delete_run(deleted)
    assert exporter.finish().complete
    assert three.parent().info.run_id != deleted
    assert_whole(three)


@pytest.mark.long
def test_a_server_that_dies_at_any_call_and_comes_back_has_everything_in_the_end(
    three: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        if number % 7 == 0:
            raise ServerAwayError("refused")

    def time_out(number: int) -> None:
        if number % 11 == 0:
            raise ServerAwayError("timed out")

    exporter = three.exporter()
    with monkeypatch.context() as patched:
        intercept(patched, refuse, time_out)
        reports = [exporter.sync_once() for _ in range(12)]
    assert any(report.away for report in reports)
    assert exporter.finish().complete
    assert_whole(three)


def test_a_server_that_refuses_the_sweep_is_reported_and_not_asked_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.mlflow.tracking import RefusedError

    def refuse(self: Tracking, *arguments: Any) -> Any:
        raise RefusedError("no runs here")

    monkeypatch.setattr(Tracking, "create", refuse)
    report = bench.exporter().sync_once()
    assert report.away == "no runs here"
    assert not report.complete


# --- files ---------------------------------------------------------------------------------


def test_files_that_could_not_be_stored_are_sent_at_the_end(
    three: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Tracking, run_id: str, path: str, data: bytes) -> None:
        raise OSError("timed out")

    exporter = three.exporter()
    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "send_artifact", away)
        report = exporter.sync_once()
        assert (report.refused, report.fileless, report.complete) == (0, 3, False)
        assert "widthlab.finished_ms" in three.child(0).data.tags  # the numbers are complete
    assert exporter.finish().complete
    assert_whole(three)


def test_a_later_exporter_sends_the_files_that_an_earlier_one_could_not(
    three: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Tracking, run_id: str, path: str, data: bytes) -> None:
        raise OSError("timed out")

    with monkeypatch.context() as patched:
        patched.setattr(Tracking, "send_artifact", away)
        assert three.exporter().finish().fileless == 3
    assert three.exporter().finish().complete
    assert_whole(three)


# --- a trial that failed before it had a spec ----------------------------------------------


def test_a_trial_that_failed_before_it_began_is_a_failed_run_which_its_retry_continues(
    bench: Bench,
) -> None:
    trial = bench.sweep.child(f"trials/{bench.ids[0]}")
    give_up(trial)
    report = bench.exporter().finish()
    assert (report.refused, report.complete) == (0, True)
    failed = bench.child()
    assert failed.info.status == bench.parent().info.status == "FAILED"
    assert failed.data.tags["failure"] == "train: out of memory"

    exporter = bench.exporter()
    exporter.sync_once()
    trial.delete(records.FAILURE)
    put_rows(bench.begin(), 1, 0, 40)
    exporter.sync_once()
    finish_trial(trial)
    assert exporter.finish().complete
    run = bench.child()
    assert run.info.run_id == failed.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["training.learning_rate"] == "0.006"
    assert bench.points() == expected(rows_of(0, 40))
    artifacts = bench.root / "mlartifacts" / run.info.run_id / "artifacts"
    assert json.loads((artifacts / "spec.json").read_bytes())["id"] == bench.ids[0]


def test_an_exporter_that_starts_late_sends_nothing_of_trials_that_wait(bench: Bench) -> None:
    exporter = Exporter(bench.sweep, bench.uri)
    report = exporter.finish()
    assert (report.runs, exporter.outcomes) == (0, {bench.ids[0]: "waiting"})
    assert len(bench.runs()) == 1
