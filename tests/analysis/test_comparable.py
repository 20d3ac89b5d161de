"""Claims about judgements over trials that differ in more than their width: they are refused."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from messages import mentions
from trial_specs import change_results, write_specs
from verdicts import Build, verdicts

from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.differences import Difference, NotComparable, Setup, compare, named
from analysis.verdict.group_verdict import GroupVerdict
from trialstore.records import encode_json
from trialstore.storage import LocalStorage

WIDTHS = (1.0, 2.0, 4.0)


def setups(values: Mapping[float, Any], name: str = "training.weight_decay") -> list[Setup]:
    """One trial per width with this value of one setting, and nothing else."""
    return [Setup(f"trial-{width:g}", width, {name: value}) for width, value in values.items()]


def small(build_sweep: Build, **options: Any) -> LocalStorage:
    return build_sweep(multipliers=WIDTHS, **options)


def judged(sweep: LocalStorage) -> GroupVerdict:
    (verdict,) = verdicts(sweep)
    return verdict


def refusal(verdict: GroupVerdict) -> NotComparable:
    assert isinstance(verdict.losses[0].optimum, NotComparable)
    return verdict.losses[0].optimum


# --- what is compared ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("training.steps", 250, 400),
        ("training.weight_decay", 0.1, 0.0),
        ("training.precision", "fp32", "bf16"),
        ("training.warmup_steps", None, 20),
        ("model.context", 64, 128),
        ("model.block", None, {"path": "mine:Block", "source_hash": "12345678"}),
        ("data.tokenizer_hash", "aaaaaaaa", "bbbbbbbb"),
        ("a_section.of_a_later_version", 1, 2),
        ("parent", False, True),
        ("device", "cpu", "cuda"),
        ("tokens trained", 302_000, 512_000),
    ],
)
def test_every_setting_is_compared_that_is_not_listed(name: str, value: Any, other: Any) -> None:
    found = compare(setups({1: value, 2: other, 4: value}, name))
    assert isinstance(found, NotComparable)
    assert [difference.name for difference in found.differences] == [name]
    assert found.odd == {"trial-2"}
    assert mentions(found.reason, f"{name} ... at 2x ... elsewhere")


@pytest.mark.parametrize("name", ["model.d_model", "model.head_dim", "model.ffn_widths"])
def test_what_the_width_and_match_set_may_differ(name: str) -> None:
    assert compare(setups({1: 64, 2: 128}, name)) is None


def test_spectra_of_other_sizes_matter_to_the_rank_laws_alone() -> None:
    found = setups({1: 4096, 2: 8192}, "spectra.tokens")
    assert compare(found) is None
    assert compare(found, ranks=True) is not None


@pytest.mark.parametrize("name", ["layout.micro_batch", "versions.torch", "evaluation.every"])
def test_what_does_not_change_a_loss_is_named_and_not_refused(name: str) -> None:
    found = setups({1: 1, 2: 2}, name)
    assert compare(found) is None
    assert [difference.name for difference in named(found)] == [name]


def test_a_value_that_is_not_known_differs_from_none() -> None:
    assert compare([*setups({1: 0.1, 2: 0.1}), Setup("old", 4.0, {})]) is None
    assert compare([*setups({1: 0.1, 2: 0.0}), Setup("old", 4.0, {})]) is not None


def test_whole_numbers_are_equal_in_either_type() -> None:
    assert compare(setups({1: 0, 2: 0.0})) is None
    assert compare(setups({1: 1, 2: True})) is not None


# --- what is said --------------------------------------------------------------------------


def test_values_are_given_with_their_widths_and_the_usual_one_last() -> None:
    found = Difference("micro_batch", tuple(setups({1: 8, 2: 8, 4: 8, 8: 4}, "micro_batch")))
    assert found.sentence == "micro_batch 4 at 8x, 8 elsewhere"
    each = Difference("tokens", tuple(setups({1: 1, 2: 1, 4: 2, 8: 2}, "tokens")))
    assert each.sentence == "tokens 1 at 1x to 2x, 2 at 4x to 8x"


def test_a_single_trial_that_differs_is_named() -> None:
    seeds = [Setup(f"seed-{n}", 4.0, {"device": "cuda" if n == 1 else "cpu"}) for n in range(3)]
    found = compare([*setups({1: "cpu", 2: "cpu"}, "device"), *seeds])
    assert found is not None
    assert mentions(found.reason, "device cuda ... 4x in 1 of 3 trials (seed-1) ... cpu elsewhere")
    assert mentions(str(found.next_step), "widthlab rerun ... seed-1")


def test_values_that_round_alike_are_written_in_full() -> None:
    found = compare(setups({1: 512_000, 2: 512_256}, "tokens trained"))
    assert found is not None
    assert "512,000" in found.reason
    assert "512,256" in found.reason


def test_no_difference_is_left_out_of_a_long_refusal() -> None:
    names = [f"training.{letter}" for letter in "abcdefg"]
    found = compare(
        [Setup("one", 1.0, dict.fromkeys(names, 1)), Setup("two", 2.0, dict.fromkeys(names, 2))]
    )
    assert found is not None
    assert all(name in found.reason for name in names)


def test_learning_rates_by_width_are_sent_to_the_grid() -> None:
    found = compare(setups({1: 1e-3, 2: 2e-3}, "training.learning_rate"))
    assert found is not None
    assert "learning_rate on the grid" in str(found.next_step)


# --- from a sweep's directory to the verdict -----------------------------------------------


def tokens(axes: Mapping[str, Any]) -> dict[str, Any]:
    return {"tokens": 512_000 - 100_000 * (axes["width_multiplier"] == 4)}


def decay(axes: Mapping[str, Any]) -> dict[str, Any]:
    return {"training.weight_decay": 0.0 if axes["width_multiplier"] == 2 else 0.1}


@pytest.mark.parametrize(
    ("change", "settings", "name", "values"),
    [(change_results, tokens, "tokens trained", [412_000, 512_000]),
     (write_specs, decay, "training.weight_decay", [0.0, 0.1])],
)  # fmt: skip
def test_trials_that_differ_are_judged_neither_by_loss_nor_by_ranks(
    build_sweep: Build,
    change: Callable[..., None],
    settings: Callable[..., Any],
    name: str,
    values: list[float],
) -> None:
    sweep = small(build_sweep)
    change(sweep, settings)
    verdict = judged(sweep)
    assert verdict.verdict == "refused"
    assert name in verdict.sentence
    assert verdict.spectral.laws["soft_rank"] == verdict.spectral.refused == verdict.layers.advice
    found = json.loads(encode_json(verdict.to_dict()))["evidence"]["loss"]["params"]
    assert found["obstacle"] == "not comparable"
    (difference,) = found["differences"]
    assert difference["setting"] == name
    assert [entry["value"] for entry in difference["values"]] == values
    (anew,) = verdict.run_next
    assert (anew.trials, anew.planned) == (1, True)
    assert name in anew.why


def test_one_trial_on_another_kind_of_device_is_named(build_sweep: Build) -> None:
    sweep = small(build_sweep, seeds=[0, 1], holds=("params",))
    stray = "gpt2-pre-64-256-1"
    key = f"trials/{stray}/result.json"
    layout = {"layout": {"workers": 1, "device": "cuda", "zero_stage": 0}}
    sweep.put(key, encode_json({**json.loads(sweep.get(key)), **layout}))
    verdict = judged(sweep)
    assert mentions(verdict.sentence, f"device cuda at 4x in 1 of 2 trials ({stray})")
    assert refusal(verdict).odd == {stray}


def test_alike_specs_change_no_verdict(build_sweep: Build) -> None:
    sweep = small(build_sweep, seeds=[0, 1])
    before = judged(sweep)
    write_specs(sweep)
    after = judged(sweep)
    assert len(load_sweep(sweep).settings) == len(after.trials)
    assert encode_json(after.to_dict()) == encode_json(before.to_dict())


def test_layouts_and_versions_are_named_with_their_widths(build_sweep: Build) -> None:
    sweep = small(build_sweep)

    def own(axes: Mapping[str, Any]) -> dict[str, Any]:
        wide = axes["width_multiplier"] == 4
        layout = {"device": "cpu", "micro_batch": 4 if wide else 8, "checkpoint_every": axes["D"]}
        return {"layout": layout, "versions": {"torch": "2.14" if wide else "2.13"}}

    change_results(sweep, own)
    verdict = judged(sweep)
    assert not isinstance(verdict.losses[0].optimum, NotComparable)
    (caveat,) = [text for text in verdict.caveats if "micro_batch" in text]
    assert mentions(caveat, "micro_batch 4 at 4x, 8 elsewhere ... torch 2.14 at 4x, 2.13 elsewhere")
    assert "checkpoint_every" not in caveat


def test_settings_that_only_some_trials_record_are_said_not_to_be_compared(
    build_sweep: Build,
) -> None:
    sweep = small(build_sweep, holds=("params",))
    write_specs(sweep, decay)
    sweep.delete("trials/gpt2-pre-64-256-0/spec.json")
    sweep.put("trials/gpt2-pre-80-160-0/spec.json", b"{")
    verdict = judged(sweep)
    assert not isinstance(verdict.losses[0].optimum, NotComparable)
    assert any(mentions(text, "settings of 2 of 3 ... spec.json") for text in verdict.caveats)


def test_trials_that_no_judgement_compares_are_said_to_differ(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 8])  # no cell is of both kinds
    write_specs(sweep, lambda axes: {"training.weight_decay": 0.1 * (axes["d_model"] == 64)})
    verdict = judged(sweep)
    assert not isinstance(verdict.losses[0].optimum, NotComparable)
    assert verdict.spectral.refused is None
    assert any("training.weight_decay" in caveat for caveat in verdict.caveats)


def test_each_rate_may_differ_in_its_rate_alone(build_sweep: Build) -> None:
    sweep = small(build_sweep, rates=[1e-3, 2e-3, 4e-3], holds=("params",))
    write_specs(sweep)
    assert not isinstance(judged(sweep).losses[0].optimum, NotComparable)
    write_specs(
        sweep, lambda axes: {"training.warmup_fraction": 0.1 + (axes["learning_rate"] == 4e-3)}
    )
    assert [found.name for found in refusal(judged(sweep)).differences] == [
        "training.warmup_fraction"
    ]
