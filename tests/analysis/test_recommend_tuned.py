"""Verdicts on sweeps over learning rates: one with three rates, and what two of them lack."""

import json
from typing import Any

import pytest
from messages import mentions
from verdicts import Build, verdicts

from analysis.pipeline import analyse
from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.recommend import recommend
from analysis.verdict.summary import summarise
from trialstore.records import encode_json
from trialstore.storage import LocalStorage

RATES = [2e-3, 4e-3, 8e-3]


def tunable(build_sweep: Build, rates: list[float], **options: Any) -> LocalStorage:
    """A sweep with learning rates whose losses are made up to be alike."""
    return build_sweep(seeds=[0, 1], rates=rates, **options)


@pytest.mark.long
def test_three_learning_rates_give_one_verdict_with_each_width_at_its_own(
    build_sweep: Build,
) -> None:
    (tuned,) = verdicts(tunable(build_sweep, RATES))
    assert tuned.group["learning_rate"] == "tuned per width"
    assert tuned.interval is not None
    assert tuned.interval[0] < 2.8 < tuned.interval[1]
    assert any("its own learning rate" in caveat for caveat in tuned.caveats)
    assert set(tuned.spectral.used["learning_rate"]) == {tuned.tuned.common_rate}
    assert len(tuned.to_dict()["learning_rates"]) == 7
    edges = tuned.tuned.edges
    asked = [cells for cells in tuned.run_next if "learning rate" in cells.why]
    assert bool(edges) == bool(asked)
    for cells in asked:
        assert cells.grid["learning_rate"][0] in (1e-3, 16e-3)


@pytest.mark.long
@pytest.mark.usefixtures("undrawn")
def test_what_each_rate_shows_is_evidence_and_no_verdict(build_sweep: Build) -> None:
    sweep = tunable(build_sweep, RATES, multipliers=[1, 2, 2.67, 4])
    tables = load_sweep(sweep)
    found = recommend(tables)
    (group,) = json.loads(encode_json(found.to_dict()))["groups"]
    at_rates = group["at_learning_rates"]
    assert [at["learning_rate"] for at in at_rates] == RATES
    assert not any(at["is_verdict"] for at in at_rates)
    for at, judged in zip(at_rates, found.groups[0].at_rates, strict=True):
        assert set(judged.losses[0].used["learning_rate"]) == {at["learning_rate"]}
        assert at["laws"]["soft_rank"]["fitted"]
        if at["optimum"] is not None:
            assert at["interval"][0] < 2.8 < at["interval"][1]
    summary = summarise(tables, found)
    assert all(f"learning rate {rate:g}" in summary for rate in RATES)
    analyse(sweep)
    page = sweep.get("report/report.html").decode()
    assert "At one learning rate for all widths" in page
    laws = sweep.get("report/tables/laws.csv").decode()
    assert all(f",{name}," in laws for name in ("tuned per width", *map(str, RATES)))


def test_three_rates_without_equal_budgets_have_one_verdict_too(build_sweep: Build) -> None:
    (tuned,) = verdicts(build_sweep(multipliers=[1, 2, 4], rates=RATES, holds=("none",)))
    assert tuned.verdict == "refused"
    (asked,) = tuned.run_next
    assert asked.grid["learning_rate"] == RATES
    assert len(tuned.at_rates) == 3


def test_planned_cells_of_every_rate_are_first_to_run(build_sweep: Build) -> None:
    sweep = build_sweep(
        multipliers=[1, 2, 4],
        rates=RATES,
        outcomes=lambda cell: "waiting" if cell.multiplier == 2 else "completed",
    )
    (tuned,) = verdicts(sweep)
    assert tuned.run_next[0].planned
    assert tuned.run_next[0].trials == 6
    assert tuned.run_next[0].grid["learning_rate"] == RATES


def test_two_learning_rates_are_two_groups_and_a_third_is_asked_for(build_sweep: Build) -> None:
    found = verdicts(build_sweep(multipliers=[1, 2, 4], rates=[2e-3, 4e-3]))
    assert [verdict.group["learning_rate"] for verdict in found] == [2e-3, 4e-3]
    for verdict in found:
        assert verdict.tuned is None
        assert verdict.to_dict()["at_learning_rates"] is None
        assert any(mentions(caveat, "own group ... 3 rates") for caveat in verdict.caveats)
        (asked,) = [cells for cells in verdict.run_next if "third" in cells.why]
        assert asked.grid["learning_rate"][0] in (1e-3, 8e-3)
        assert asked.grid["width_multiplier"] == [1, 2, 4]
        assert asked.match == ("params",)
        assert asked.trials == 3


def test_the_third_rate_lies_beyond_the_better_of_two(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], rates=[2e-3, 4e-3], holds=("params",))
    tables = load_sweep(sweep)
    for better, third in ((2e-3, 1e-3), (4e-3, 8e-3)):
        tables.trials["val_loss"] = 3.0 + (tables.trials["learning_rate"] != better)
        for verdict in recommend(tables).groups:
            (asked,) = [cells for cells in verdict.run_next if "third" in cells.why]
            assert asked.grid["learning_rate"] == [third]
