"""Claims about passes over the data and overfitting: what is said, and the verdict beside it."""

import json
import math
from collections.abc import Callable
from html import unescape
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.pipeline import analyse
from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.recommend import recommend
from analysis.verdict.summary import headline, summarise
from analysis.verdict.supply import PASSES_WORTH_NEW, SELECTION, judge_supply
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]
CURVATURE, TOLERANCE = 0.05, 0.01

pytestmark = pytest.mark.usefixtures("undrawn")  # its words, not its figures


def judged(sweep: LocalStorage) -> GroupVerdict:
    (verdict,) = recommend(load_sweep(sweep)).groups
    return verdict


def told(verdict: GroupVerdict, words: str) -> list[str]:
    return [caveat for caveat in verdict.caveats if words in caveat]


def rows(final: list[float], best: list[float], **columns: Any) -> pd.DataFrame:
    """Completed trials with these losses."""
    count = len(final)
    about = {"passes": [1.0] * count, "unknown_share": [0.0] * count, **columns}
    return pd.DataFrame(
        {"id": map(str, range(count)), "state": "completed", "val_loss": final,
         "best_val_loss": best, **about}
    )  # fmt: skip


# --- passes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("passes", "silent"), [(0.5, True), (4.0, True), (4.01, False)])
def test_more_passes_than_are_worth_new_data_are_a_caveat(passes: float, silent: bool) -> None:
    found = judge_supply(rows([3.0], [3.0], passes=[passes]), TOLERANCE, lambda trials: ())
    assert PASSES_WORTH_NEW == 4
    assert found.repeats is not silent


def test_passes_are_in_table_headline_caveat_and_recommendation(build_sweep: Build) -> None:
    """512,000 tokens over 20,078 of a training split: 25.5 passes."""
    sweep = build_sweep(multipliers=[1.0, 2.0, 4.0], passes=25.5)
    tables = load_sweep(sweep)
    assert tables.trials["passes"].to_numpy() == pytest.approx(250 * 2048 / 20_078)
    assert set(tables.trials["window_tokens"]) == {20_078}
    assert headline(tables).endswith("; 25.5 passes over the training data")
    verdict = judged(sweep)
    (caveat,) = told(verdict, "pass over their training data 25.5 times")
    assert "arXiv 2305.16264" in caveat
    supply = verdict.to_dict()["evidence"]["supply"]
    assert supply["passes"] == pytest.approx([25.5, 25.5], abs=1e-3)


@pytest.mark.long
def test_the_report_lists_passes_where_data_were_repeated(build_sweep: Build) -> None:
    sweeps = [
        build_sweep(multipliers=[1.0, 2.0], holds=("none",), passes=passes, name=f"p{passes}")
        for passes in (1.0, 2.0)
    ]
    for sweep in sweeps:
        analyse(sweep)
    once, twice = (sweep.get("report/report.html").decode() for sweep in sweeps)
    assert "Passes:" not in once
    assert "Passes:" in twice
    assert "tokens 512k, passes 2." in twice


def test_less_than_a_pass_is_said_nowhere_but_in_the_table(build_sweep: Build) -> None:
    tables = load_sweep(build_sweep(multipliers=[1.0, 2.0, 4.0]))
    assert "passes" not in headline(tables)
    assert not [text for text in recommend(tables).groups[0].caveats if "pass over" in text]
    assert tables.trials["passes"].to_numpy() == pytest.approx(0.5)


# --- overfitting ---------------------------------------------------------------------------


def test_a_run_that_ends_above_its_best_by_the_tolerance_does_not_overfit_yet() -> None:
    """Above it by 0.25, 0.5 and 0.75 nats, at a tolerance of 0.5: one of three does."""
    trials = rows([3.25, 3.5, 3.75], [3.0, 3.0, 3.0])
    found = judge_supply(trials, 0.5, lambda trials: ())
    assert (found.judged, found.overfitted, found.largest_excess) == (3, 1, 0.75)


def test_only_completed_runs_with_both_losses_are_judged() -> None:
    trials = rows([3.9, 3.9, math.nan], [3.0, 3.0, 3.0], state=["completed", "diverged", "stopped"])
    found = judge_supply(trials, 0.5, lambda trials: ())
    assert (found.judged, found.overfitted) == (1, 1)


def parabola(multiplier: float, best: float) -> float:
    return CURVATURE * math.log(multiplier / best) ** 2


@pytest.fixture
def overfitted(build_sweep: Build) -> LocalStorage:
    """Final losses are lowest at 2x, best losses at 4x: wide layers overfit more."""

    def rise(cell: Any) -> float:
        m = cell.width / cell.d_model
        return 0.2 + parabola(m, 2.0) - parabola(m, 4.0)

    return build_sweep(
        {("gpt2", "pre"): {"best": 2.0, "curvature": CURVATURE}}, seeds=[0, 1, 2], rises=rise
    )


@pytest.mark.long
def test_the_verdict_on_best_losses_stands_beside_that_on_final_ones(
    overfitted: LocalStorage,
) -> None:
    verdict = judged(overfitted)
    evidence = verdict.to_dict()["evidence"]
    final, best = evidence["loss"]["params"], evidence["best_loss"]["loss"]["params"]
    assert final["interval"][0] < 2.0 < final["interval"][1]
    assert best["interval"][0] < 4.0 < best["interval"][1]
    assert final["optimum"] == pytest.approx(2.0, rel=0.1)
    assert best["optimum"] == pytest.approx(4.0, rel=0.1)
    assert evidence["best_loss"]["verdict"] == "recommended"
    assert evidence["best_loss"]["width_multiplier"] != verdict.width_multiplier
    (caveat,) = told(verdict, "above their best")
    assert f"Of {len(verdict.trials)} completed trials, {len(verdict.trials)} end" in caveat


@pytest.mark.long
def test_it_is_that_of_a_sweep_whose_final_losses_are_these_best_ones(
    overfitted: LocalStorage,
) -> None:
    beside = judged(overfitted).to_dict()["evidence"]["best_loss"]
    for key in overfitted.list("trials"):
        if key.endswith("result.json"):
            result = json.loads(overfitted.get(key))
            result["final"]["val_loss"] = result["best_val_loss"]
            result["records"] = {}  # they say the true final loss
            overfitted.put(key, json.dumps(result).encode())
    alone = judged(overfitted)
    assert alone.to_dict()["evidence"]["loss"] == beside["loss"]
    assert alone.sentence == beside["sentence"]
    assert alone.to_dict()["evidence"]["best_loss"] is None


@pytest.mark.long
def test_both_verdicts_and_the_selection_are_in_summary_and_report(
    overfitted: LocalStorage,
) -> None:
    done = analyse(overfitted)
    (group,) = done.recommendation["groups"]
    words = " ".join(done.summary.split())
    sentence = group["evidence"]["best_loss"]["sentence"]
    assert f"{sentence}. {SELECTION}" in words
    page = unescape(overfitted.get("report/report.html").decode())
    assert "Verdict by best loss" in page
    assert SELECTION in page


@pytest.mark.long
def test_where_the_final_losses_are_the_best_there_is_one_verdict(build_sweep: Build) -> None:
    sweep = build_sweep(seeds=[0, 1])
    verdict = judged(sweep)
    assert verdict.on_best is None
    assert verdict.to_dict()["evidence"]["best_loss"] is None
    tables = load_sweep(sweep)
    assert "best loss" not in summarise(tables, recommend(tables))


@pytest.mark.long
def test_tuned_widths_are_judged_by_their_best_losses_too(build_sweep: Build) -> None:
    """Every run rises by as much, so each verdict beside is the one that it stands beside."""
    sweep = build_sweep(
        seeds=[0, 1], holds=("params",), rates=[3e-3, 6e-3, 12e-3], rises=lambda cell: 0.3
    )
    for verdict in recommend(load_sweep(sweep)).groups:
        final, best = verdict.losses[0].optimum, verdict.supply.on_best[0].optimum
        assert best.optimum == pytest.approx(final.optimum, rel=1e-6)
        assert np.asarray(best.loss) == pytest.approx(np.asarray(final.loss) - 0.3)


# --- what the tokenizer does ---------------------------------------------------------------


def test_unknown_tokens_are_a_caveat(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0, 4.0])
    assert not told(judged(sweep), "unknown")
    key = "trials/gpt2-pre-64-64-0/result.json"
    result = json.loads(sweep.get(key))
    result["data"]["unknown_share"] = 0.021
    sweep.put(key, json.dumps(result).encode())
    (caveat,) = told(judged(sweep), "unknown")
    assert "2.1 % of the tokens" in caveat
