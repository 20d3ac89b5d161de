"""Claims about verdicts: what was planted is found, the rest is refused with a way on."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml
from messages import mentions
from verdicts import Build, verdicts

from analysis.laws.power_law import PowerLaw
from analysis.laws.spectral import SpectralStop
from analysis.refusal import Refusal
from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.recommend import recommend
from trialstore.errors import InputError
from trialstore.records import encode_json

KEYS = {
    *("group", "verdict", "width_multiplier", "interval", "rule"),
    *("alternatives", "evidence", "caveats", "run_next"),
}


def planted(**truth: Any) -> dict[tuple[str, str], Any]:
    """One group with a truth that differs from the default in what is named."""
    return {("gpt2", "pre"): truth}


@pytest.mark.long
def test_a_clear_optimum_is_recommended_with_the_planted_place_in_its_interval(
    build_sweep: Build,
) -> None:
    (verdict,) = verdicts(build_sweep(seeds=[0, 1, 2]))
    assert verdict.verdict == "recommended"
    assert verdict.interval is not None
    assert verdict.interval[0] < 2.8 < verdict.interval[1]
    # 0.05 ln(m/2.8)^2 < 0.01 from m = 1.79 on; the grid has 2x.
    assert verdict.width_multiplier == pytest.approx(2.0)
    assert "D = 160 at d_model = 80" in verdict.sentence
    assert not verdict.run_next


def test_the_spectral_laws_rest_only_on_cells_of_equal_d_model(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep())
    assert set(verdict.spectral.used["d_model"]) == {64.0}
    assert len(verdict.spectral.used) == 7
    assert len(verdict.trials) == 13


def test_each_combination_of_the_other_axes_is_judged_by_itself(build_sweep: Build) -> None:
    one, other = planted(), planted(best=4.2)
    groups = {**one, ("gpt2", "post"): other["gpt2", "pre"]}
    found = {verdict.group["norm"]: verdict for verdict in verdicts(build_sweep(groups))}
    assert found["post"].interval is not None
    assert found["pre"].interval is not None
    assert found["post"].interval[0] > found["pre"].interval[1]


def test_the_json_has_the_keys_of_the_contract_and_no_nan(build_sweep: Build) -> None:
    sweep = build_sweep(outcomes=lambda c: "diverged" if c.multiplier == 8 else "completed")
    content = json.loads(encode_json(recommend(load_sweep(sweep)).to_dict()))
    assert content["sweep"] == "made-up"
    (group,) = content["groups"]
    assert group.keys() >= KEYS
    assert group["group"] == {"architecture": "gpt2", "norm": "pre", "depth": 2}
    cells = group["evidence"]["cells"]
    assert (cells["planned"], cells["completed"], cells["diverged"]) == (13, 11, 2)
    assert cells["used_by_laws"] == 6
    assert cells["used_by_loss"] == 6
    law = group["evidence"]["laws"]["soft_rank"]
    assert law["beta_interval"][0] < law["beta"] < law["beta_interval"][1]
    assert group["evidence"]["loss"]["params"]["inadmissible"] == [8.0]
    assert [a["width_multiplier"] for a in group["alternatives"]] == sorted(
        a["width_multiplier"] for a in group["alternatives"]
    )


@pytest.mark.long
def test_a_width_with_a_diverged_replicate_is_passed_over_and_counted(build_sweep: Build) -> None:
    sweep = build_sweep(
        seeds=[0, 1, 2],
        outcomes=lambda c: (
            "diverged" if c.multiplier == 2 and c.seed == 1 and "params" in c.holds else "completed"
        ),
    )
    (verdict,) = verdicts(sweep)
    assert verdict.width_multiplier == pytest.approx(192 / 72)  # 2.67x, not 2x
    assert any("collapsed or diverged at 2x" in caveat for caveat in verdict.caveats)


def test_a_flat_loss_is_refused_with_replicates_to_run_next(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep(planted(curvature=0.0, noise=0.02)))
    assert verdict.verdict == "refused"
    assert verdict.width_multiplier is None
    assert verdict.interval is None
    more = [cells for cells in verdict.run_next if cells.grid["seed"] == [1, 2]]
    assert more
    assert more[0].trials == 14
    assert more[0].grid["width_multiplier"] == [1, 1.5, 2, 2.67, 4, 5.33, 8]


def test_a_falling_loss_is_refused_with_wider_layers_to_run_next(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep(planted(curvature=0.0, slope=-0.05)))
    assert verdict.verdict == "refused"
    assert verdict.losses[0].optimum.obstacle == "upper edge"
    (wider,) = verdict.run_next
    assert wider.grid["width_multiplier"] == [12.0, 16.0]
    assert wider.match == ("params",)


def test_the_cost_of_what_to_run_next_follows_from_what_has_run(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep(planted(curvature=0.0, slope=-0.05)))
    (wider,) = verdict.run_next
    done = verdict.losses[0].planned
    assert wider.flops == pytest.approx(
        2 * done["flops"].mean(), rel=0.3
    )  # all but the head is equal
    # The made-up trials take 1.1 s for 2e9 FLOPs.
    assert wider.seconds == pytest.approx(wider.flops * 1.1 / 2e9)


def test_without_equal_budgets_the_missing_cells_are_named_and_priced(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep(holds=("none",)))
    assert verdict.verdict == "refused"
    assert "add `params` or `flops` to `match`" in verdict.rule
    assert any("add `params` or `flops` to `match`" in caveat for caveat in verdict.caveats)
    (asked,) = verdict.run_next
    assert asked.match == ("params",)
    reference = verdict.trials.set_index("D").loc[256.0, "flops"]  # the budget of the 4x model
    assert asked.flops == pytest.approx(7 * reference)
    assert isinstance(verdict.spectral.laws["soft_rank"], PowerLaw)


def test_the_missing_cells_are_asked_for_at_the_widths_that_a_verdict_takes(
    build_sweep: Build,
) -> None:
    (verdict,) = verdicts(build_sweep(multipliers=[2.67], holds=("none",)))
    (asked,) = verdict.run_next
    widths = asked.grid["width_multiplier"]
    assert len(widths) == 6
    assert 2.67 in widths
    assert min(widths) < 2 < 4 < max(widths)


def test_without_a_fixed_d_model_the_loss_is_judged_and_the_spectra_are_not(
    build_sweep: Build,
) -> None:
    (verdict,) = verdicts(build_sweep(holds=("params",), seeds=[0, 1, 2]))
    assert verdict.verdict == "recommended"
    assert verdict.agrees is None
    assert any("add `none` to `match`" in caveat for caveat in verdict.caveats)
    assert "add `none` to `match`" in verdict.spectral_sentence
    assert not isinstance(verdict.spectral.laws["soft_rank"], PowerLaw)


def test_without_a_fixed_d_model_the_layers_are_refused_with_what_to_add(
    build_sweep: Build,
) -> None:
    (verdict,) = recommend(load_sweep(build_sweep(holds=("params",)))).groups
    layers = verdict.layers
    assert layers.advice == verdict.spectral.no_cells
    assert "add `none` to `match`" in layers.sentence
    assert layers.to_dict()["judged"] is False


def test_few_widths_with_one_replicate_are_refused_and_asked_for(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep(multipliers=[1, 2, 4, 8]))
    assert "4 widths" in verdict.rule
    (asked,) = verdict.run_next
    assert len(asked.grid["width_multiplier"]) == 2
    assert all(1 < m < 8 for m in asked.grid["width_multiplier"])


def test_planned_cells_without_a_result_are_first_to_run(build_sweep: Build) -> None:
    states = {5.33: "failed", 8.0: "waiting"}
    sweep = build_sweep(outcomes=lambda c: states.get(c.multiplier, "completed"))
    (verdict,) = verdicts(sweep)
    assert verdict.run_next[0].trials == 4
    assert "2 failed" in verdict.run_next[0].why
    assert verdict.run_next[0].grid["width_multiplier"] == [5.33, 8.0]
    assert verdict.run_next[0].planned  # the file has them: there is nothing to paste
    assert verdict.run_next[0].to_yaml() == ""
    assert not any(cells.planned for cells in verdict.run_next[1:])
    assert any("without a result: 4 of 13" in caveat for caveat in verdict.caveats)


def test_caveats_say_what_the_verdict_rests_on(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep(samples=3000))
    said = " ".join(verdict.caveats)
    assert "equal non-embedding parameters" in said
    assert "learning rate was not tuned per width (0.006 for all widths)" in said
    assert "one replicate" in said
    assert "undersampled" in said


def test_no_one_learning_rate_is_named_where_an_override_sets_another(build_sweep: Build) -> None:
    sweep = load_sweep(build_sweep())
    override = {"when": {"norm": ["post"]}, "set": {"learning_rate": 1e-3}}
    config = {**sweep.config, "overrides": [override]}
    (verdict,) = recommend(replace(sweep, config=config)).groups
    assert "The learning rate was not tuned per width." in verdict.caveats


def test_mixed_versions_and_layouts_are_said_with_their_widths(build_sweep: Build) -> None:
    sweep = build_sweep()
    key = "trials/gpt2-pre-64-128-0/result.json"
    result = json.loads(sweep.get(key))
    sweep.put(key, encode_json({**result, "versions": {"torch": "9"}, "layout": {"workers": 2}}))
    (verdict,) = verdicts(sweep)
    said = " ".join(verdict.caveats)
    assert mentions(said, "workers 2 at 2x in 1 of 2 trials ... 1 elsewhere")
    assert mentions(said, "torch 9 at 2x ... 2.13.0 elsewhere")


def test_one_width_without_snapshots_and_without_losses_is_still_judged(
    build_sweep: Build,
) -> None:
    sweep = build_sweep(multipliers=[4], outcomes=lambda c: "diverged")
    (verdict,) = verdicts(sweep)
    assert verdict.verdict == "refused"
    assert isinstance(verdict.losses[0].optimum, Refusal)
    assert isinstance(verdict.spectral.stop, Refusal)


@pytest.mark.parametrize(
    ("stop", "headline", "agrees"),
    [
        (SpectralStop(4.0, ""), 2.67, True),  # within a factor of 1.5
        (SpectralStop(4.0, ""), 2.0, False),
        (SpectralStop(None, ""), 2.0, False),  # eDim still grows at the largest width
    ],
)
def test_the_spectral_stop_agrees_within_half_a_width(
    stop: SpectralStop, headline: float, agrees: bool
) -> None:
    assert stop.agrees(headline) is agrees


@pytest.mark.long
def test_a_plateau_of_the_ranks_is_found_where_it_begins(build_sweep: Build) -> None:
    # Eigenvalues that fall as k^-2.5: beyond a few directions nothing is added by more width.
    truth = planted(decay=2.5, jitter=0.0)
    (verdict,) = verdicts(build_sweep(truth, seeds=[0, 1, 2]))
    stop = verdict.spectral.stop
    assert isinstance(stop, SpectralStop)
    assert stop.multiplier is not None
    assert stop.multiplier < 8
    assert np.isfinite(stop.multiplier)


@pytest.mark.long
def test_the_choices_for_quality_and_efficiency_say_what_they_cost_and_save(
    build_sweep: Build,
) -> None:
    (verdict,) = verdicts(build_sweep(seeds=[0, 1, 2]))
    quality, efficiency = verdict.choices
    bounds = {a["width_multiplier"]: a["excess_upper_nats"] for a in verdict.alternatives}
    assert bounds[quality.width_multiplier] == min(bounds.values())
    assert efficiency.width_multiplier is not None
    assert bounds[efficiency.width_multiplier] < 0.03
    # At equal parameters a wider FFN has a smaller d_model, and so a cheaper head.
    assert verdict.width_multiplier is not None
    assert efficiency.width_multiplier > verdict.width_multiplier
    assert efficiency.inference_flops_change is not None
    assert efficiency.inference_flops_change < 0
    assert "fewer inference FLOPs" in efficiency.sentence
    content = verdict.to_dict()["choices"]
    assert content["efficiency"]["sentence"] == efficiency.sentence


def test_a_refusal_offers_no_choices(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep(planted(curvature=0.0, noise=0.02)))
    assert verdict.choices == ()


def test_budgets_that_were_not_held_are_said_to_be_unknown(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep())
    found = verdict.to_dict()["at_equal"]
    assert list(found) == ["params", "flops", "seconds", "inference"]
    assert found["params"]["optimum"] == verdict.losses[0].optimum.optimum
    assert found["params"]["source"] == "cells of equal budget"
    assert found["seconds"]["optimum"] is None
    assert found["seconds"]["source"] in found["seconds"]["sentence"]
    assert "measured training time" in found["seconds"]["sentence"]


@pytest.mark.long
def test_a_target_beyond_one_size_is_refused_with_what_it_needs(build_sweep: Build) -> None:
    target = {"params": 1e9, "tokens": 2e10}
    sweep = build_sweep(seeds=[0, 1, 2], analysis={"tolerance_nats": 0.01, "target": target})
    recommendation = recommend(load_sweep(sweep))
    (found,) = recommendation.transfers
    assert found.width_multiplier is None
    assert "has 1 (and 0 without one)" in found.sentence
    assert len(found.sizes) == 1
    assert recommendation.to_dict()["transfer"][0]["target"] == target


@pytest.mark.long
def test_a_loss_that_is_not_finite_is_left_out_and_counted(build_sweep: Build) -> None:
    tables = load_sweep(build_sweep(seeds=[0, 1, 2]))
    trials = tables.trials.copy()
    held = trials.index[["params" in holds for holds in trials["holds"]]]
    trials.loc[held[4], "val_loss"] = np.nan
    (verdict,) = recommend(replace(tables, trials=trials)).groups
    assert verdict.losses[0].left_out == {"loss not finite": 1}
    assert any(mentions(caveat, "finite ... loss: 1") for caveat in verdict.caveats)
    assert verdict.verdict == "recommended"
    planned, used = verdict.losses[0].planned, verdict.losses[0].used
    assert len(planned) == len(used) + 1


def test_groups_whose_labels_make_one_file_name_keep_their_own_files(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2], seeds=[0, 1, 2])
    content = yaml.safe_load(sweep.get("sweep.yaml"))
    for cell in content["resolved"]["trials"]:
        cell["axes"]["data"] = ("日本", "中国", "Z" * 300)[cell["axes"]["seed"]]
    sweep.put("sweep.yaml", yaml.safe_dump(content, allow_unicode=True).encode())
    slugs = [verdict.slug for verdict in verdicts(sweep)]
    assert len({slug.lower() for slug in slugs}) == 3
    assert max(map(len, slugs)) < 200


def test_an_integer_axis_stays_one_beside_groups_that_leave_it_open(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2], seeds=[0, 1])
    content = yaml.safe_load(sweep.get("sweep.yaml"))
    for cell in content["resolved"]["trials"]:
        cell["axes"]["kv_heads"] = (None, 2)[cell["axes"]["seed"]]
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    found = verdicts(sweep)
    assert {type(verdict.group["kv_heads"]) for verdict in found} == {int, type(None)}
    assert any("kv heads 2" in verdict.label.split(", ") for verdict in found)


@pytest.mark.long
def test_losses_that_never_differ_call_for_no_cure_of_noise(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep(planted(noise=0.0, curvature=0.0), seeds=[0, 1, 2]))
    assert verdict.losses[0].optimum.obstacle == "all within tolerance"
    assert not any("noise" in cells.why for cells in verdict.run_next)
    assert not any("loss curve" in caveat for caveat in verdict.caveats)


def test_widths_given_as_d_alone_are_judged_and_priced(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], seeds=[0, 1], holds=("none",))
    content = yaml.safe_load(sweep.get("sweep.yaml"))
    for cell in content["resolved"]["trials"]:
        del cell["axes"]["width_multiplier"]
        del cell["flops"]
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    (verdict,) = verdicts(sweep)
    assert set(verdict.run_next[0].grid["width_multiplier"]) > {1.0, 2.0, 4.0}
    assert "trials" in verdict.run_next[0].cost


@pytest.mark.parametrize(
    "analysis",
    [
        {"tolerance_nats": "much"},
        {"tolerance_nats": -1},
        {"target": {"params": "1B", "tokens": 1e9}},
        {"target": {"params": 1e9}},
    ],
)
def test_a_tolerance_or_target_that_is_no_number_above_0_is_named(
    build_sweep: Build, analysis: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="analysis"):
        verdicts(build_sweep(multipliers=[1, 2], analysis=analysis))


@pytest.mark.long
def test_rows_in_another_order_and_replicates_of_another_name_get_the_same_verdict(
    build_sweep: Build,
) -> None:
    sweep = build_sweep(seeds=[0, 1, 2], groups=planted(noise=0.01))
    (one,) = verdicts(sweep)
    content = yaml.safe_load(sweep.get("sweep.yaml"))
    content["resolved"]["trials"].reverse()
    for cell in content["resolved"]["trials"]:
        cell["axes"]["seed"] = (70, -3, 5)[cell["axes"]["seed"]]
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    (other,) = verdicts(sweep)
    assert other.sentence == one.sentence
    assert other.width_multiplier == one.width_multiplier
    assert other.interval == pytest.approx(one.interval, rel=1e-6)
