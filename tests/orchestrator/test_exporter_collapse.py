"""A trial whose layers have collapsed is marked in MLflow while it runs, and only then."""

import pytest
from exporter_bench import START_MS, Bench, finish_trial, put_rows

from trialstore.records import COLLAPSE, encode_json
from trialstore.storage import LocalStorage


def mark(trial: LocalStorage, step: int) -> None:
    trial.put(COLLAPSE, encode_json({"step": step, "reason": "hard rank 3 of 256"}))


def collapsed(bench: Bench) -> str | None:
    return bench.child().data.tags.get("collapsed")


def test_the_mark_is_a_tag_on_the_run_and_the_trial_still_runs(bench: Bench) -> None:
    trial, exporter = bench.begin(), bench.exporter()
    put_rows(trial, 1, 0, 20)
    exporter.sync_once()
    assert collapsed(bench) is None
    mark(trial, 20)
    exporter.sync_once()
    assert collapsed(bench) == "since step 20"
    assert bench.child().data.tags["outcome"] == "running"
    assert bench.child().info.status == "RUNNING"


@pytest.mark.parametrize("same_exporter", [True, False])
def test_a_mark_that_is_taken_back_takes_the_tag_away(bench: Bench, same_exporter: bool) -> None:
    trial, exporter = bench.begin(), bench.exporter()
    put_rows(trial, 1, 0, 20)
    mark(trial, 20)
    exporter.sync_once()
    trial.delete(COLLAPSE)
    if not same_exporter:
        exporter = bench.exporter()
    assert exporter.sync_once().refused == 0
    assert collapsed(bench) is None
    mark(trial, 40)
    exporter.sync_once()
    assert collapsed(bench) == "since step 40"


def test_a_trial_with_the_outcome_collapsed_keeps_its_mark_and_is_finished(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    mark(trial, 20)
    finish_trial(trial, "collapsed")
    bench.exporter().finish()
    run = bench.child()
    assert collapsed(bench) == "since step 20"
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "collapsed")
    assert run.info.end_time == START_MS + 10_000


def test_a_trial_that_completed_after_all_is_not_marked(bench: Bench) -> None:
    trial, exporter = bench.begin(), bench.exporter()
    put_rows(trial, 1, 0, 40)
    mark(trial, 20)
    exporter.sync_once()
    finish_trial(trial)
    exporter.sync_once()
    assert collapsed(bench) is None
    assert bench.child().data.tags["outcome"] == "completed"
