"""A trial is marked while its layers are collapsed, stopped where that is asked, and keeps its
records; when rows arrive, and in how many attempts, makes no difference.

The rule itself is tested beside `analysis.collapse`; here a plain one stands in for it.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from analysis.collapse import Collapse, judge_last
from trainers import collapse_watch
from trainers.collapse_watch import CollapseWatch
from trainers.train import train
from trialstore import records
from trialstore.records import METRICS, SPECTRA, get_json, read_records
from trialstore.storage import LocalStorage


def verdict(step: int) -> Collapse:
    return Collapse(step, 1, 1.2, 20.0, 5.0, f"collapsed at step {step}")


@pytest.fixture
def collapsed_at(monkeypatch):
    """Have the rule met at exactly these snapshots."""

    def set_rule(*steps: int) -> None:
        def rule(at, ranks, loss_steps, losses, entropy, *, post_ln):
            assert len(at) == len(ranks)
            assert all(len(layers) == 2 for layers in ranks)
            assert entropy > 0
            return verdict(at[-1]) if at[-1] in steps else None

        monkeypatch.setattr(collapse_watch, "judge_last", rule)

    return set_rule


class Watcher:
    """A log that looks at the mark after every update."""

    def __init__(self, trial, die_at_checkpoint: int | None = None) -> None:
        self.trial, self.die_at, self.seen = trial, die_at_checkpoint, {}

    def started(self, *_) -> None:
        pass

    def progress(self, step, *_) -> None:
        mark = get_json(self.trial, records.COLLAPSE)
        self.seen[step] = mark and mark["step"]

    def checkpointed(self, step) -> None:
        if step == self.die_at:
            raise KeyboardInterrupt


@pytest.mark.long
def test_a_collapsed_trial_goes_on_and_is_marked_meanwhile(
    make_spec, trial, collapsed_at, monkeypatch
) -> None:
    collapsed_at(4, 6, 8, 10)
    log = Watcher(trial)
    end = train(make_spec(spectra__every=2, layout__checkpoint_every=1), trial, log)
    # With a checkpoint a step no snapshot is waited for longer than until the next update.
    assert log.seen == {step: 4 if step > 4 else None for step in range(1, 11)}
    assert (end.outcome, end.step) == ("collapsed", 10)
    assert end.result["reason"] == "collapsed at step 4"
    assert end.result["collapse"]["hard_rank"] == 1.2
    assert end.result["final"]["val_loss"] > 0
    assert get_json(trial, records.COLLAPSE)["step"] == 4
    assert set(read_records(trial, SPECTRA)["step"].to_pylist()) == {0, 2, 4, 6, 8, 10}


@pytest.mark.long
def test_one_that_recovers_is_unmarked_and_completes(make_spec, trial, collapsed_at) -> None:
    collapsed_at(2, 4)
    log = Watcher(trial)
    end = train(make_spec(spectra__every=2, layout__checkpoint_every=1), trial, log)
    assert log.seen[4] == log.seen[6] == 2
    assert log.seen[7] is None
    assert end.outcome == "completed"
    assert end.result["collapse"] is end.result["reason"] is None
    assert get_json(trial, records.COLLAPSE) is None


def stopping(make_spec, **changes):
    return make_spec(
        training__stop_on_collapse=True, spectra__every=2, spectra__method="lanczos",
        training__steps=12, **changes,
    )  # fmt: skip


@pytest.mark.long
def test_one_that_is_to_be_stopped_ends_at_the_next_snapshot_exactly_measured(
    make_spec, trial, collapsed_at
) -> None:
    collapsed_at(4)  # what is seen at 6 changes nothing: at 4 it was to be stopped
    end = train(stopping(make_spec), trial, Watcher(trial))
    assert (end.outcome, end.step) == ("collapsed", 6)
    assert end.result["reason"] == "collapsed at step 4"
    assert get_json(trial, records.COLLAPSE)["step"] == end.result["collapse"]["step"] == 4
    rows = read_records(trial, SPECTRA).to_pylist()
    assert {row["method"] for row in rows if row["step"] == 6} == {"exact"}
    evaluated = read_records(trial, METRICS).to_pylist()[-1]
    assert (evaluated["step"], evaluated["kind"]) == (6, "train")
    assert end.result["final"]["val_loss"] is not None
    assert records.committed_steps(trial.list()) == [6]


@pytest.mark.parametrize("checkpoint", [4, 6])
@pytest.mark.long
def test_where_it_stops_does_not_depend_on_attempts(
    make_spec, tmp_path, trial, collapsed_at, bits, checkpoint
) -> None:
    """At 6 it dies with everything done but the result."""
    collapsed_at(4)
    spec = stopping(make_spec, layout__checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(spec, trial, Watcher(trial, die_at_checkpoint=checkpoint))
    again = train(spec, trial, Watcher(trial))
    whole = LocalStorage(tmp_path / "whole")
    undisturbed = train(spec, whole, Watcher(whole))
    assert (again.outcome, again.step) == (undisturbed.outcome, undisturbed.step)
    assert bits(trial) == bits(whole)


@pytest.mark.long
def test_one_that_recovers_by_its_last_step_has_not_collapsed(
    make_spec, trial, collapsed_at
) -> None:
    """There is nothing left to be stopped."""
    collapsed_at(10)
    end = train(stopping(make_spec), trial, Watcher(trial))
    assert (end.outcome, end.step, end.result["collapse"]) == ("completed", 12, None)
    assert get_json(trial, records.COLLAPSE) is None


def test_without_the_site_that_is_judged_nothing_can_be_stopped(make_spec) -> None:
    with pytest.raises(ValidationError, match=r"stop_on_collapse .*\['pre'\].* post"):
        make_spec(training__stop_on_collapse=True, spectra__sites=["pre"])


# --- however the rows arrive ---------------------------------------------------------------


class Writer:
    """What a watch needs of a writer: the record that it resumes, and the mark."""

    def __init__(self, history) -> None:
        self.history, self.marks = history, []

    def read(self, table, columns):
        return SimpleNamespace(to_pylist=lambda: self.history[table])

    def mark_collapse(self, collapse) -> None:
        self.marks.append(collapse and collapse["step"])


def watch_of(history) -> CollapseWatch:
    spec = SimpleNamespace(model=SimpleNamespace(is_post_ln=True, depth=2))
    return CollapseWatch(spec, Writer(history), 5.0)


@given(
    ranks=st.lists(st.floats(1, 40), min_size=2, max_size=25),
    losses=st.lists(st.floats(3, 6), min_size=25, max_size=25),
    resumed=st.integers(0, 25),
    lag=st.integers(0, 4),
)
def test_verdicts_are_those_of_the_whole_record_whenever_rows_arrive(
    ranks, losses, resumed, lag
) -> None:
    """Spectra may come several snapshots later than evaluations, or from before a restart."""
    spectra = [
        {"step": 10 * i, "site": site, "layer": layer, "bucket": bucket, "hard_rank": rank + layer}
        for i, rank in enumerate(ranks)
        for site, bucket in (("post", "all"), ("pre", "all"), ("post", "tail"))
        for layer in (0, 1)
    ]
    metrics = [{"step": 10 * i, "val_loss": loss} for i, loss in enumerate(losses[: len(ranks)])]

    def upto(rows, low, high):
        return [row for row in rows if 10 * low <= row["step"] < 10 * high]

    watch = watch_of({METRICS: upto(metrics, 0, resumed), SPECTRA: upto(spectra, 0, resumed)})
    for i in range(resumed, len(ranks) + lag):
        watch.add(upto(metrics, i, i + 1))
        watch.add(upto(spectra, max(i - lag, resumed), i - lag + 1))
    for i in range(len(ranks)):
        expected = judge_last(
            np.arange(i + 1) * 10,
            [[rank, rank + 1] for rank in ranks[: i + 1]],
            np.arange(i + 1) * 10,
            losses[: i + 1],
            5.0,
            post_ln=True,
        )
        assert watch.before(10 * i + 1) == expected
    marked = watch._writer.marks[-1]
    assert marked == (watch.since and watch.since.step)
