"""Claims about comparisons between groups: paired, simultaneous, nothing dropped in silence."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from compared_tables import LNS_AHEAD, PLACEMENTS, WIDTHS, noisy, tables

from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.compare import compare
from analysis.verdict.comparison_lines import MOST_LINES, comparison_lines
from analysis.verdict.comparisons import Comparison


def only(sweep: SweepTables) -> Comparison:
    (found,) = compare(sweep).pairs
    return found


# --- what is told --------------------------------------------------------------------------


def test_twelve_of_twelve_pairs_ahead_are_said_with_their_interval() -> None:
    found = only(tables(LNS_AHEAD, PLACEMENTS))
    assert (found.groups.baseline, found.groups.other) == ("pre", "lns")
    assert found.ahead == (12, 12)
    assert found.outcome == "told"
    assert found.interval is not None
    assert found.interval[0] < -0.03 < found.interval[1] < 0
    assert "12 of 12 pairs" in found.sentence


def test_the_mean_and_its_error_are_those_of_the_replicates() -> None:
    sweep = tables(LNS_AHEAD, PLACEMENTS)
    loss = sweep.trials.pivot_table(index="replicate", columns=["norm", "m"], values="val_loss")
    each = (loss["lns"] - loss["pre"]).mean(axis=1)
    found = only(sweep)
    assert found.difference is not None
    assert found.limit is not None
    assert found.difference.mean == pytest.approx(each.mean())
    assert found.limit.error == pytest.approx(each.std(ddof=1) / np.sqrt(3))


def test_luck_that_a_seed_shares_with_its_widths_is_not_averaged_away() -> None:
    """Four widths of one seed are no four replicates."""

    def loss(cell: Mapping[str, Any], rng: np.random.Generator) -> float:
        own = (-0.04, 0.0, 0.06)[cell["replicate"]] if cell["norm"] == "lns" else 0.0
        return 3.5 + own + 1e-4 * rng.standard_normal()

    found = only(tables(loss, PLACEMENTS))
    assert found.outcome == "not told"
    assert found.limit is not None
    assert found.limit.error == pytest.approx(np.std([-0.04, 0.0, 0.06], ddof=1) / 3**0.5, rel=0.02)
    assert found.limit.smallest_told > 0.1


def test_no_difference_is_no_claim_and_says_what_could_have_been_told() -> None:
    found = only(tables(noisy({}), PLACEMENTS))
    assert found.outcome == "not told"
    assert found.limit is not None
    assert found.limit.smallest_told > found.limit.half_width > 0
    assert "no difference can be told" in found.sentence
    assert f"{found.limit.smallest_told:.2g} nats" in found.sentence


def test_an_interval_is_wider_where_more_is_compared() -> None:
    two = only(tables(noisy({}), PLACEMENTS, seeds=5))
    six = compare(tables(noisy({}), {"norm": [f"n{i}" for i in range(6)]}, seeds=5))
    assert six.judged == 15
    assert two.limit is not None
    reach = two.limit.half_width / two.limit.error
    for pair in six.pairs:
        assert pair.limit is not None
        assert pair.limit.half_width / pair.limit.error > reach


def test_one_replicate_has_counts_and_no_interval() -> None:
    found = only(tables(LNS_AHEAD, PLACEMENTS, seeds=1))
    assert found.outcome == "no interval"
    assert found.ahead == (4, 4)
    assert found.to_dict()["interval"] is None
    assert "4 of 4 pairs" in found.sentence
    assert "run 3" in found.sentence


# --- widths --------------------------------------------------------------------------------


def test_a_difference_that_changes_sign_with_the_width_is_not_hidden_in_a_mean() -> None:
    def loss(cell: Mapping[str, Any], rng: np.random.Generator) -> float:
        own = 0.03 * np.log(cell["m"] / 8**0.5) if cell["norm"] == "lns" else 0.0
        return float(3.5 + own + 0.002 * rng.standard_normal())

    found = only(tables(loss, PLACEMENTS))
    assert found.depends_on_width
    assert found.turns == (["1x", "2x"], ["4x", "8x"])
    assert "changes sign" in found.sentence
    rows = found.to_dict()["widths"]
    assert [row["width_multiplier"] for row in rows] == list(WIDTHS)
    assert rows[0]["difference"] == pytest.approx(0.03 * np.log(1 / 8**0.5), abs=0.006)


def test_a_common_difference_depends_on_no_width() -> None:
    assert not only(tables(LNS_AHEAD, PLACEMENTS, seeds=5)).depends_on_width


# --- pairs that are missing ----------------------------------------------------------------


def test_collapsed_trials_are_counted_and_named() -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        return {"state": "collapsed"} if row["norm"] == "post" and row["m"] == 8 else {}

    sweep = tables(noisy({"post": 0.05}), {"norm": ["pre", "post"]}, change=change)
    found = only(sweep)
    assert found.ahead == (0, 9)
    assert found.to_dict()["broken"] == {"baseline": 0, "other": 3}
    assert found.to_dict()["missing"] == {"collapsed": 3}
    assert "post in 3 of 12 cells" in found.sentence


def test_all_collapsed_is_said_and_not_compared() -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        return {"state": "diverged"} if row["norm"] == "post" else {}

    found = only(tables(noisy({}), {"norm": ["pre", "post"]}, change=change))
    assert found.outcome == "refused"
    assert "12 diverged" in found.sentence


def test_missing_pairs_are_counted_by_reason() -> None:
    def change(row: dict[str, Any]) -> dict[str, Any] | None:
        if row["norm"] == "lns" and row["m"] == 1:
            return None
        return {"state": "waiting"} if row["id"] == "pre-2.0-0" else {}

    found = only(tables(LNS_AHEAD, PLACEMENTS, change=change))
    assert found.to_dict()["missing"] == {"planned in one group only": 3, "waiting": 1}
    assert found.ahead == (8, 8)
    assert found.outcome == "told"


def test_a_missing_pair_does_not_bend_the_mean() -> None:
    """The lost pair is of the luckiest seed: the others' widths say what it would have been."""

    def loss(cell: Mapping[str, Any], rng: np.random.Generator) -> float:
        own = 0.1 * cell["replicate"] + 0.02 * cell["m"] if cell["norm"] == "lns" else 0.0
        return 3.5 + own

    def change(row: dict[str, Any]) -> dict[str, Any]:
        return {"state": "waiting"} if row["id"] == "lns-8.0-2" else {}

    found = only(tables(loss, PLACEMENTS, change=change))
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(0.1 + 0.02 * np.mean(WIDTHS))


def test_seeds_that_share_no_width_give_no_interval() -> None:
    def change(row: dict[str, Any]) -> dict[str, Any] | None:
        return {} if row["replicate"] == int(row["m"] > 2) else None

    found = only(tables(LNS_AHEAD, PLACEMENTS, seeds=2, change=change))
    assert found.outcome == "no interval"
    assert found.ahead == (4, 4)


def test_other_tokens_are_refused() -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": 5.1e5 if row["norm"] == "lns" else 3.0e5}

    found = only(tables(LNS_AHEAD, PLACEMENTS, change=change))
    assert found.outcome == "refused"
    assert "300k and 510k" in found.sentence


# --- what is equal -------------------------------------------------------------------------


def test_what_is_equal_is_measured_and_what_is_not_has_its_ratio() -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        gated = row["architecture"] == "llama"
        return {
            "parameters_non_embedding": row["parameters_non_embedding"] * (1.33 if gated else 1),
            "layout": "one" if gated else "another",
        }

    sweep = tables(noisy({}), {"architecture": ["gpt2", "llama"]}, change=change)
    found = compare(sweep).pairs[0]
    assert found.paired.equal == ("flops",)
    assert found.paired.ratios["parameters"] == pytest.approx((1.33, 1.33, 1.33))
    assert "parameters x1.33" in found.basis
    assert "seconds" not in found.paired.ratios  # the layouts differ


def test_losses_are_interpolated_to_equal_parameters_where_equal_widths_differ_in_them() -> None:
    """The loss depends on the parameters alone, so the gate buys nothing."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        size = row["m"] * (1.5 if row["architecture"] == "llama" else 1.0)
        luck = 0.05 * row["replicate"]
        return {"parameters_non_embedding": 1e5 * size, "val_loss": 3.5 - 0.1 * np.log(size) + luck}

    axes = {"architecture": ["gpt2", "llama"]}
    at_width, at_size = compare(tables(noisy({}), axes, change=change)).pairs
    assert at_width.difference.mean == pytest.approx(-0.1 * np.log(1.5))
    assert (at_size.cells, at_size.primary) == ("parameters", False)
    assert at_size.difference.mean == pytest.approx(0, abs=1e-9)
    assert list(at_size.difference.widths) == [2.0, 4.0, 8.0]  # 1x has no equal in the gated one
    assert at_size.to_dict()["missing"] == {"its cost is beyond the widths of the other group": 3}
    assert at_size.paired.ratios["parameters"] == pytest.approx((1, 1, 1))
    assert at_size.paired.ratios["flops"] == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_cells_of_equal_parameters_decide_where_they_are_equal() -> None:
    both = ("none", "params")
    equal = compare(tables(LNS_AHEAD, PLACEMENTS, holds=both)).pairs
    assert [(own.cells, own.primary) for own in equal] == [("params", True), ("none", False)]

    def change(row: dict[str, Any]) -> dict[str, Any]:
        return {"parameters_non_embedding": 2e5 if row["norm"] == "lns" else 1e5}

    unequal = compare(tables(LNS_AHEAD, PLACEMENTS, holds=both, change=change)).pairs
    assert [(own.cells, own.primary) for own in unequal] == [("none", True), ("params", False)]


def test_settings_of_overrides_stand_beside_the_comparison() -> None:
    config = {
        "training": {"learning_rate": 4e-3},
        "overrides": [{"when": {"norm": ["lns"]}, "set": {"learning_rate": 2e-2}}],
    }
    found = only(tables(LNS_AHEAD, PLACEMENTS, config=config))
    assert found.groups.settings == ("learning_rate 0.004 and 0.02",)
    assert found.groups.settings[0] in found.sentence


# --- which groups --------------------------------------------------------------------------


def labels(sweep: SweepTables) -> set[tuple[str, str, str]]:
    return {(own.groups.axis, own.label, own.place) for own in compare(sweep).pairs}


def test_groups_that_differ_in_two_axes_are_not_compared() -> None:
    found = labels(tables(noisy({}), {**PLACEMENTS, "depth": [2, 4]}, seeds=1))
    assert found == {
        ("norm", "lns - pre", "depth 2"),
        ("norm", "lns - pre", "depth 4"),
        ("depth", "depth 4 - depth 2", "pre"),
        ("depth", "depth 4 - depth 2", "lns"),
    }


def test_an_axis_that_follows_from_another_does_not_count() -> None:
    def change(row: dict[str, Any]) -> dict[str, Any] | None:
        own = row["architecture"] == "ngpt"
        return None if own != (row["norm"] == "ngpt") else {}

    axes = {"architecture": ["llama", "ngpt"], "norm": ["pre", "post", "ngpt"]}
    assert labels(tables(noisy({}), axes, seeds=1, change=change)) == {
        ("architecture", "ngpt - llama, pre", ""),
        ("architecture", "ngpt - llama, post", ""),
        ("norm", "post - pre", "llama"),
    }


def test_three_rates_are_compared_tuned_as_well() -> None:
    def loss(cell: Mapping[str, Any], rng: np.random.Generator) -> float:
        best = 2e-3 if cell["norm"] == "pre" else 8e-3
        bowl = 0.1 * np.log(cell["learning_rate"] / best) ** 2
        return float(3.5 + bowl + 0.001 * rng.standard_normal())

    axes = {**PLACEMENTS, "learning_rate": [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]}
    found = compare(tables(loss, axes, seeds=3)).pairs
    tuned, *fixed = [own for own in found if own.groups.axis == "norm"]
    assert tuned.place == "tuned per width"
    assert tuned.outcome == "not told"  # each at its own rate, neither is better
    assert len(fixed) == 5
    assert {own.outcome for own in fixed} == {"told", "not told"}  # 4e-3 favours neither
    assert [own.groups.axis for own in found[6:]] == ["learning_rate"] * 20


# --- the terminal --------------------------------------------------------------------------


def test_the_summary_has_a_handful_of_lines_and_counts_the_rest() -> None:
    found = compare(tables(noisy({"n0": 0.1}), {"norm": [f"n{i}" for i in range(6)]}))
    lines = list(comparison_lines(found))
    assert sum("nats" in line for line in lines[2:]) <= 2 * MOST_LINES
    assert any(f"{len(found.pairs) - MOST_LINES} more" in line for line in lines)
    assert "n0" in " ".join(lines[2:5])  # what is told comes first
    assert not list(comparison_lines(compare(tables(noisy({}), {"norm": ["pre"]}))))
