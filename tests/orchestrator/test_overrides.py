"""Overrides: for some cells of the grid, other values of the base."""

import pytest
from messages import mentions

from orchestrator.grid.expand import Grid, expand
from orchestrator.grid.plan import make_plan
from orchestrator.grid.plan_records import plan_json
from orchestrator.sweep.load import parse_sweep
from trainers.data.sources import DataSpec
from trialstore.errors import InputError

DATA = DataSpec(corpus_fingerprint="0123456789abcdef", tokenizer_hash="fedcba9876543210")

BASE = """\
name: mini
model: {depth: 2, d_model: 64, head_dim: 16, context: 64}
grid:
  architecture: [gpt2, ngpt]
  norm: [pre, post]
  width_multiplier: [1, 4]
training: {steps: 100, batch_tokens: 2048, learning_rate: 1e-3}
"""
RECIPES = """\
overrides:
  - when: {architecture: ngpt}
    set: {warmup_fraction: 0, final_fraction: 0, learning_rate: 2e-3}
  - when: {norm: post, width_multiplier: [1, 4]}
    set: {learning_rate: 5e-4, spectra.every: 10}
"""


def grid(text: str, *settings: str) -> Grid:
    return expand(parse_sweep(text, "mini.yaml", settings), DATA, 512)


def refused(text: str, *settings: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_sweep(text, "mini.yaml", settings)
    return str(caught.value)


def test_cells_take_the_values_of_their_override():
    rates = {
        (t.axes["architecture"], t.axes["norm"]): t.spec.training.learning_rate
        for t in grid(BASE + RECIPES).trials
    }
    assert rates == {("gpt2", "pre"): 1e-3, ("gpt2", "post"): 5e-4, ("ngpt", "ngpt"): 2e-3}
    for trial in grid(BASE + RECIPES).trials:
        ngpt = trial.axes["architecture"] == "ngpt"
        assert (trial.spec.training.warmup == 0) == ngpt
        assert trial.spec.spectra.every == (10 if trial.axes["norm"] == "post" else 100)


def test_cells_are_matched_as_they_come_out():
    """An nGPT cell beside norm post is no Post-LN cell: it merges with the others of nGPT."""
    found = grid(BASE + RECIPES)
    assert len(found.trials) == 6
    assert [merged.axes["architecture"] for merged in found.merged] == ["ngpt"] * 2
    mix = BASE.replace("[pre, post]", "[pre, mix]").replace("[gpt2, ngpt]", "[gpt2]")
    only = "overrides: [{when: {norm: mix}, set: {learning_rate: 5e-4}}]\n"
    deep = grid(mix.replace("depth: 2", "depth: 4") + only).trials
    assert {t.axes["norm"]: t.spec.training.learning_rate for t in deep} == {
        "pre": 1e-3,
        "mix": 5e-4,
    }
    assert "overrides.0: matches no cell" in refused(mix + only)


def test_only_the_ids_of_the_cells_concerned_change():
    before = {t.id for t in grid(BASE).trials}
    after = {t.id for t in grid(BASE + RECIPES).trials}
    assert len(before & after) == 2  # gpt2, pre
    same = "overrides: [{when: {norm: post}, set: {learning_rate: 1e-3}}]\n"
    assert {t.id for t in grid(BASE + same).trials} == before


def test_an_override_can_set_what_a_choice_asks_for():
    text = "overrides: [{when: {norm: post}, set: {optimizer: muon, momentum: 0.9}}]\n"
    for trial in grid(BASE.replace("[gpt2, ngpt]", "gpt2") + text).trials:
        muon = trial.axes["norm"] == "post"
        assert trial.spec.training.momentum == (0.9 if muon else 0.95)
        assert trial.spec.training.gradient_clipping == (0 if muon else 1)


def test_the_plan_shows_each_override_and_how_many_trials_it_is_for():
    config = parse_sweep(BASE + RECIPES, "mini.yaml")
    made = plan_json(make_plan(config, expand(config, DATA, 512)))
    assert [override["trials"] for override in made["overrides"]] == [2, 2]
    assert made["overrides"][0]["when"] == {"architecture": ("ngpt",)}
    assert made["overrides"][1]["set"] == {"learning_rate": 5e-4, "spectra.every": 10}


def test_overrides_can_be_taken_away_on_the_command_line():
    assert parse_sweep(BASE + RECIPES, "mini.yaml", ["overrides=[]"]) == parse_sweep(
        BASE, "mini.yaml"
    )


def test_an_override_applies_over_what_is_set_on_the_command_line():
    found = grid(BASE + RECIPES, "learning_rate=3e-3").trials
    rates = {trial.spec.training.learning_rate for trial in found}
    assert rates == {3e-3, 5e-4, 2e-3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("3", "line 8: overrides: 3 is not a list of {when: {axis: value}, set: {key: value}}"),
        ("[3]", "overrides.0: 3 is not a mapping; its keys are when, set"),
        ("[{when: {norm: pre}}]", "overrides.0.set: null is not a mapping"),
        ("[{when: {}, set: {steps: 3}}]", "overrides.0.when: {} is not a mapping"),
        ("[{if: {norm: pre}, set: {steps: 3}}]", "overrides.0.if: unknown key; known are when"),
        (
            "[{when: {nrom: pre}, set: {steps: 3}}]",
            "overrides.0.when.nrom: ... norm?",
        ),
        (
            "[{when: {depth: 2}, set: {steps: 3}}]",
            "overrides.0.when.depth: ... architecture",
        ),
        (
            "[{when: {seed: 0}, set: {steps: 3}}]",
            "when.seed: replicates",
        ),
        (
            "[{when: {norm: lns}, set: {steps: 3}}]",
            "when.norm: 'lns' is not one of the grid's values ('pre', 'post')",
        ),
        ("[{when: {norm: []}, set: {steps: 3}}]", "when.norm: ... values"),
        (
            "[{when: {width_multiplier: wide}, set: {steps: 3}}]",
            "when.width_multiplier: 'wide' ... number",
        ),
        (
            "[{when: {norm: pre}, set: {stepz: 3}}]",
            "set.stepz: an override cannot set this key; did you mean steps",
        ),
        (
            "[{when: {norm: pre}, set: {every: 3}}]",
            "set.every: an override cannot set this key; write evaluation.every or spectra.every",
        ),
        (
            "[{when: {norm: pre}, set: {width_multiplier: 3}}]",
            "set.width_multiplier: is an axis of the grid",
        ),
        ("[{when: {norm: pre}, set: {norm: post}}]", "set.norm: ... axis"),
        ("[{when: {norm: pre}, set: {steps: 0}}]", "set.steps: 0 ... 1"),
        (
            "[{when: {norm: pre}, set: {steps: 3, training.steps: 4}}]",
            "set.training.steps: steps is given twice",
        ),
        (
            "[{when: {norm: pre}, set: {steps: 3}}, "
            "{when: {width_multiplier: 4}, set: {steps: 4}}]",
            "overrides.1.set.steps: 4, but override 1 of the list sets it to 3 for the same cells, "
            "such as architecture gpt2, norm pre, width_multiplier 4.0, seed 0",
        ),
    ],
)
def test_a_mistaken_override_is_named_with_its_line(override, message):
    found = refused(f"{BASE}overrides: {override}\n")
    assert found.startswith("mini.yaml, line 8: ")

    assert mentions(found, message)


def test_two_overrides_of_cells_that_never_meet_may_set_one_key():
    text = """\
overrides:
  - {when: {norm: pre}, set: {steps: 50}}
  - {when: {norm: post}, set: {steps: 60}}
  - {when: {architecture: ngpt}, set: {steps: 70}}
"""
    assert {t.spec.training.steps for t in grid(BASE + text).trials} == {50, 60, 70}


def test_both_ways_of_saying_the_warm_up_are_refused_for_one_cell():
    text = BASE.replace("steps: 100", "steps: 100, warmup_steps: 10")
    half = "overrides: [{when: {norm: post}, set: {warmup_fraction: 0}}]\n"
    assert "set.warmup_fraction: these cells have warmup_steps 10" in refused(text + half)
    whole = half.replace("warmup_fraction: 0", "warmup_fraction: 0, warmup_steps: null")
    warm_ups = {t.axes["norm"]: t.spec.training.warmup for t in grid(text + whole).trials}
    assert warm_ups == {"pre": 10, "post": 0, "ngpt": 10}


def test_widths_that_differ_in_more_than_their_width_are_warned_of():
    text = "overrides: [{when: {width_multiplier: 4}, set: {learning_rate: 5e-4}}]\n"
    config = parse_sweep(BASE + text, "mini.yaml")
    warnings = make_plan(config, expand(config, DATA, 512)).warnings
    assert any(mentions(text, "training.learning_rate ... 0.0005 at 4x") for text in warnings)


@pytest.mark.parametrize("axis", ["activation: [null, relu]", "kv_heads: [null, 2]"])
def test_null_on_an_axis_is_matched_as_what_it_stands_for(axis):
    name = axis.partition(":")[0]
    text = BASE.replace("architecture: [gpt2, ngpt]", f"architecture: [gpt2]\n  {axis}")
    only = f"overrides: [{{when: {{{name}: null}}, set: {{learning_rate: 5e-4}}}}]\n"
    taken = {
        (t.spec.model.activation, t.spec.model.kv_heads): t.spec.training.learning_rate
        for t in grid(text + only).trials
    }
    assert taken.pop((None, None)) == 5e-4
    assert list(taken.values()) == [1e-3]


def test_all_heads_are_matched_by_their_number():
    text = BASE.replace("architecture: [gpt2, ngpt]", "architecture: [gpt2]\n  kv_heads: [4, 2]")
    only = "overrides: [{when: {kv_heads: 4}, set: {learning_rate: 5e-4}}]\n"
    taken = {t.spec.model.kv_heads: t.spec.training.learning_rate for t in grid(text + only).trials}
    assert taken == {None: 5e-4, 2: 1e-3}


def test_cells_may_lie_on_devices_in_their_own_way_and_stay_the_trials_they_are():
    wide = "overrides: [{when: {width_multiplier: 4}, set: {workers: 2, resources.zero_stage: 2}}]"
    found = grid(BASE + wide).trials
    assert {
        (t.axes["width_multiplier"], t.spec.layout.workers, t.spec.layout.zero_stage) for t in found
    } == {(1, 1, 0), (4, 2, 2)}
    assert {t.id for t in found} == {t.id for t in grid(BASE).trials}


@pytest.mark.parametrize("key", ["retries", "resources.retries", "price_per_device_hour"])
def test_what_is_one_for_the_whole_sweep_cannot_be_a_cells(key: str):
    override = f"overrides: [{{when: {{norm: pre}}, set: {{{key}: 3}}}}]\n"
    assert "an override cannot set this key" in refused(BASE + override)
