"""Cells that say one thing in several ways are one trial, and the plan says why."""

from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions
from rich.console import Console

from orchestrator.grid.expand import Grid, PlannedTrial, expand
from orchestrator.grid.plan import make_plan
from orchestrator.grid.plan_records import plan_json
from orchestrator.grid.plan_view import render_plan
from orchestrator.sweep.canonical import post_layers
from orchestrator.sweep.load import parse_sweep
from trainers.data.sources import DataSpec

DATA = DataSpec(corpus_fingerprint="0123456789abcdef", tokenizer_hash="fedcba9876543210")

BASE = """\
name: mini
model: {architecture: gpt2, norm: pre, depth: 2, d_model: 64, head_dim: 16, context: 64}
grid: {width_multiplier: [4]}
training: {steps: 100, batch_tokens: 2048, learning_rate: 1e-3}
"""


def grid(*settings: str, text: str = BASE) -> Grid:
    return expand(parse_sweep(text, "mini.yaml", settings), DATA, 512)


def one(*settings: str) -> PlannedTrial:
    (trial,) = grid(*settings).trials
    return trial


def shown(*settings: str) -> str:
    config = parse_sweep(BASE, "mini.yaml", settings)
    console = Console(width=300, color_system=None)
    with console.capture() as capture:
        console.print(render_plan(make_plan(config, expand(config, DATA, 512))))
    return capture.get()


def adjusted(*settings: str) -> list[tuple[str, object, object, int]]:
    config = parse_sweep(BASE, "mini.yaml", settings)
    found = plan_json(make_plan(config, expand(config, DATA, 512)))["adjusted"]
    return [(each["key"], each["from"], each["to"], each["trials"]) for each in found]


# --- Mix-LN --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "depth", "layers"),
    [(0.25, 2, 0), (0.25, 4, 1), (0.29, 100, 29), (0.5, 3, 1), (0, 24, 0), (1, 24, 24)],
)
def test_the_share_of_post_layers_is_floored_as_it_is_written(alpha, depth, layers):
    assert post_layers(float(alpha), depth) == layers


@given(hundredths=st.integers(0, 100), depth=st.integers(1, 200))
def test_no_rounding_of_floats_moves_a_layer(hundredths, depth):
    assert post_layers(hundredths / 100, depth) == floor(hundredths * depth // 100)


def test_mix_with_all_layers_post_keeps_its_final_norm_and_is_not_post():
    found = grid("grid.norm=[post, mix]", "mix_alpha=1")
    assert {trial.spec.model.norm: trial.spec.model.post_layers for trial in found.trials} == {
        "post": 0,
        "mix": 2,
    }
    assert found.merged == []


@pytest.mark.parametrize("order", ["[pre, mix]", "[mix, pre]"])
def test_mix_without_a_post_layer_is_pre(order):
    found = grid(f"grid.norm={order}")
    (trial,) = found.trials
    assert trial.id == one().id
    assert trial.axes["norm"] == "pre"
    assert trial.changes == ()
    (merged,) = found.merged
    assert merged.axes["norm"] == "mix"
    assert merged.why == "mix with alpha 0.25 at depth 2 has no Post-LN layer, which is pre"


def test_mix_without_a_post_layer_is_pre_even_alone():
    trial = one("norm=mix")
    assert trial.id == one().id
    assert adjusted("norm=mix") == [("norm", "mix", "pre", 1)]


def test_alpha_means_nothing_but_to_mix():
    found = grid("grid.norm=[pre, mix]", "grid.mix_alpha=[0.25, 0.5]", "depth=4")
    axes = {(t.axes["norm"], t.axes["mix_alpha"], t.spec.model.post_layers) for t in found.trials}
    assert axes == {("pre", None, 0), ("mix", 0.25, 1), ("mix", 0.5, 2)}
    assert [merged.why for merged in found.merged] == ["mix_alpha applies only to norm mix"]


def test_two_alphas_of_as_many_layers_are_one_model():
    found = grid("norm=mix", "grid.mix_alpha=[0.25, 0.3, 0.5]", "depth=4")
    assert [trial.axes["mix_alpha"] for trial in found.trials] == [0.25, 0.5]
    assert [merged.why for merged in found.merged] == [
        "several values of mix_alpha make 1 of 4 layers Post-LN"
    ]


# --- nGPT ----------------------------------------------------------------------------------


def test_ngpt_has_its_own_placement_whatever_the_grid_says():
    found = grid("grid.architecture=[gpt2, ngpt]", "grid.norm=[pre, post]")
    cells = {(trial.axes["architecture"], trial.axes["norm"]) for trial in found.trials}
    assert cells == {("gpt2", "pre"), ("gpt2", "post"), ("ngpt", "ngpt")}

    (merged,) = found.merged
    assert mentions(merged.why, "nGPT ... norm")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("grid.ffn_weight=[weight_norm, plain]", {"plain"}),
        ("grid.tie_embeddings=[true, false]", {False}),
        ("grid.activation=[gelu, swiglu, null]", {"swiglu"}),
        ("grid.qk_norm=[true, false]", {False}),
        ("grid.initialisation=[depth_scaled, plain]", {"plain"}),
        ("grid.weight_decay=[0.1, 0]", {0.0}),
    ],
)
def test_what_ngpt_leaves_no_choice_of_is_one_trial(setting, named):
    found = grid("architecture=ngpt", "norm=ngpt", setting)
    axis = setting.partition("=")[0].removeprefix("grid.")
    assert {trial.axes[axis] for trial in found.trials} == named
    assert len(found.trials) == 1
    assert all("nGPT" in merged.why for merged in found.merged if axis != "activation")


def test_what_is_changed_without_being_merged_is_told():
    assert adjusted("architecture=ngpt") == [
        ("norm", "pre", "ngpt", 1),
        ("weight_decay", 0.1, 0, 1),
    ]
    assert adjusted("architecture=ngpt", "norm=ngpt", "weight_decay=0") == []
    assert (
        "adjusted: weight_decay is 0, not 0.1, in 1 trial: nGPT has no weight decay: its matrices "
        "are normalised after every update"
    ) in shown("architecture=ngpt")


def test_a_placement_of_ngpt_is_dropped_for_others():
    found = grid("grid.architecture=[gpt2, ngpt]", "norm=ngpt")
    assert [trial.axes["architecture"] for trial in found.trials] == ["ngpt"]
    assert mentions(found.dropped[0].why, "norm ngpt ... gpt2")


# --- the other spellings -------------------------------------------------------------------


def test_an_activation_that_is_the_architectures_own_is_no_other_trial():
    found = grid("grid.activation=[null, gelu, relu2]")
    assert [trial.axes["activation"] for trial in found.trials] == ["gelu", "relu2"]
    assert found.trials[0].id == one().id
    assert [merged.why for merged in found.merged] == ["the default activation of gpt2 is gelu"]


def test_as_many_kv_heads_as_heads_are_no_other_trial():
    found = grid("grid.kv_heads=[null, 4, 1, 3]")
    assert sorted(str(trial.axes["kv_heads"]) for trial in found.trials) == ["1", "None"]
    assert [merged.why for merged in found.merged] == [
        "the model has 4 heads, the default of kv_heads"
    ]
    assert "kv_heads 3 does not divide the 4 heads" in found.dropped[0].why


def test_a_budget_keeps_heads_and_so_kv_heads():
    found = grid("kv_heads=2", "match=[none, params, flops]", "width_multiplier=[1, 4, 8]")
    assert len(found.trials) == 7
    assert {(t.spec.model.heads, t.spec.model.kv_heads) for t in found.trials} == {(4, 2)}
    assert all(abs(e) <= 0.05 for t in found.trials for e in t.budget_errors.values())


def test_muon_is_not_clipped_and_adamw_has_no_momentum():
    found = grid("grid.optimizer=[adamw, muon]", "grid.momentum=[0.9, 0.95]")
    cells = {(t.axes["optimizer"], t.axes["momentum"]) for t in found.trials}
    assert cells == {("adamw", None), ("muon", 0.9), ("muon", 0.95)}
    clipping = {t.spec.training.optimizer: t.spec.training.gradient_clipping for t in found.trials}
    assert clipping == {"adamw": 1, "muon": 0}
    assert [merged.why for merged in found.merged] == ["momentum applies only to muon"]


def test_a_value_that_nothing_asks_for_is_told():
    assert adjusted("decay_fraction=0.5", "momentum=0.5", "mix_alpha=0.5") == [
        ("mix_alpha", 0.5, None, 1),
        ("momentum", 0.5, None, 1),
        ("decay_fraction", 0.5, None, 1),
    ]
    assert adjusted() == []


def test_a_number_of_warm_up_steps_says_it_all():
    spec = one("warmup_steps=10").spec
    assert (spec.training.warmup, spec.training.warmup_fraction) == (10, 0.1)


# --- reading it ----------------------------------------------------------------------------


def test_a_grid_of_three_architectures_and_four_placements_is_told_in_a_few_lines():
    text = shown(
        "grid.architecture=[gpt2, llama, ngpt]",
        "grid.norm=[pre, post, mix, lns]",
        "width_multiplier=[1, 2, 4]",
        "seed=[0, 1, 2]",
    )
    lines = [line.strip() for line in text.splitlines()]
    first = next(n for n, line in enumerate(lines) if line.startswith("merged"))
    assert lines[first : first + 5] == [
        "merged: mix with alpha 0.25 at depth 2 has no Post-LN layer, which is pre",
        "architecture gpt2 or llama, norm mix, every width_multiplier and seed (18 cells)",
        "merged: nGPT has its own norm placement",
        "architecture ngpt, norm post or mix or lns, every width_multiplier and seed (27 cells)",
        "adjusted: weight_decay is 0, not 0.1, in 9 trials: nGPT has no weight decay: its "
        "matrices are normalised after every update",
    ]


def test_cells_of_one_group_have_equal_axes():
    """The analysis groups trials by all axes but width and seed."""
    found = grid(
        "grid.architecture=[gpt2, ngpt]",
        "grid.norm=[pre, mix]",
        "grid.mix_alpha=[0.25, 0.5, 0.6]",
        "grid.activation=[null, gelu, swiglu]",
        "grid.depth=[2, 4]",
        "width_multiplier=[1, 4]",
        "seed=[0, 1]",
        "match=[none, params]",
    )
    groups: dict[str, set[str]] = {}
    for trial in found.trials:
        key = {k: v for k, v in trial.axes.items() if k not in ("seed", "width_multiplier")}
        model = trial.spec.model
        identity = (model.architecture, model.norm, model.post_layers, model.depth)
        shape = {"d_model", "D"}
        axes = repr({k: v for k, v in key.items() if k not in shape})
        groups.setdefault(axes, set()).add(repr((*identity, model.ffn_activation)))
    assert all(len(models) == 1 for models in groups.values())
    models = {model for group in groups.values() for model in group}
    assert len(models) == len(groups)
