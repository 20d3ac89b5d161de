"""A grid: which trials a sweep comes to, their ids, their order, and what is left out."""

from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions

from orchestrator.grid.expand import Grid, expand, on_device
from orchestrator.sweep.load import parse_sweep
from trainers.accounting import parameters
from trainers.data.sources import DataSpec
from trainers.spec import TrialSpec
from trialstore.errors import InputError

DATA = DataSpec(corpus_fingerprint="0123456789abcdef", tokenizer_hash="fedcba9876543210")

BASE = """\
name: mini
model: {depth: 2, d_model: 64, head_dim: 16, context: 64}
grid:
  architecture: [gpt2, llama]
  norm: [pre, post]
  width_multiplier: [1, 2.67, 4]
training: {steps: 100, batch_tokens: 2048, learning_rate: 1e-3}
"""


def grid(*overrides: str, text: str = BASE) -> Grid:
    """Of two overrides of one key the last counts."""
    last = {override.partition("=")[0]: override for override in overrides}
    return expand(parse_sweep(text, "mini.yaml", [*last.values()]), DATA, 512)


def one(*overrides: str) -> TrialSpec:
    """The only trial of a grid of one cell."""
    single = ("architecture=gpt2", "norm=pre", "width_multiplier=4")
    (trial,) = grid(*single, *overrides).trials
    return trial.spec


def ids(found: Grid) -> set[str]:
    return {trial.id for trial in found.trials}


# --- the product ---------------------------------------------------------------------------


def test_the_grid_is_the_product_of_its_axes():
    found = grid("seed=[0, 1]")
    assert len(found.trials) == found.cells == 2 * 2 * 3 * 2
    assert len(ids(found)) == len(found.trials)
    assert found.dropped == found.merged == []


def test_a_trial_is_complete():
    spec = one("seed=3", "workers=2", "spectra.every=7", "tie_embeddings=true")
    assert spec.model.ffn_widths == (256, 256)
    assert spec.model.vocab_size == 512
    assert spec.model.tie_embeddings
    assert spec.replicate == 3
    assert spec.data == DATA
    assert spec.training.steps == 100
    assert spec.spectra.every == 7
    assert spec.layout.workers == 2
    assert spec.source.corpus.kind == "python-source"


def test_axes_name_the_cell_as_typed_and_what_it_came_to():
    assert one("grid.learning_rate=[1e-2]", "width_multiplier=2.67").axes == {
        "architecture": "gpt2",
        "norm": "pre",
        "depth": 2,
        "width_multiplier": 2.67,
        "seed": 0,
        "learning_rate": 0.01,
        "d_model": 64,
        "D": 168,
    }


def test_every_axis_reaches_its_place_in_the_spec():
    found = grid(
        "grid.learning_rate=[1e-3, 2e-3]", "grid.spectra.every=[5, 6]", "grid.depth=[1, 3]"
    )
    seen = {
        (t.spec.training.learning_rate, t.spec.spectra.every, t.spec.model.depth)
        for t in found.trials
    }
    assert seen == {(lr, every, L) for lr in (1e-3, 2e-3) for every in (5, 6) for L in (1, 3)}


@given(multiplier=st.floats(1e-3, 64), d_model=st.integers(1, 64), multiple=st.integers(1, 64))
def test_d_is_the_nearest_multiple_and_never_nothing(multiplier, d_model, multiple):
    spec = one(
        f"width_multiplier={multiplier!r}",
        f"model.d_model={4 * d_model}",
        "head_dim=4",
        f"ffn_multiple={multiple}",
    )
    D = spec.model.ffn_widths[0]
    assert D >= multiple
    assert D % multiple == 0
    if D > multiple:
        assert abs(D - multiplier * 4 * d_model) <= multiple / 2 + 1e-9
    assert D == max(1, floor(multiplier * 4 * d_model / multiple + 0.5)) * multiple


def test_explicit_widths_are_taken_as_they_are():
    found = grid("ffn_width=[100, [64, 96]]", "architecture=gpt2", "norm=pre")
    widths = {trial.spec.model.ffn_widths: trial.axes for trial in found.trials}
    assert widths.keys() == {(100, 100), (64, 96)}
    assert widths[100, 100]["D"] == 100
    assert widths[100, 100]["width_multiplier"] == 100 / 64
    assert widths[64, 96]["D"] == [64, 96]
    assert widths[64, 96]["width_multiplier"] == 80 / 64
    assert "ffn_width" not in widths[64, 96]


# --- identity ------------------------------------------------------------------------------


def test_ids_of_every_version_stand():
    """Stored trials are found by these: never edit them, raise SEMANTICS_VERSION."""
    found = {
        (*(t.axes[a] for a in ("architecture", "norm", "width_multiplier", "d_model")),): t
        for t in grid("match=[none, params]", "norm=pre", "width_multiplier=[1, 4]").trials
    }
    before = {
        cell: t.spec.model_copy(update={"semantics_version": 1}).id for cell, t in found.items()
    }
    assert before == {
        ("gpt2", "pre", 1.0, 64): "75ec093e9269",
        ("gpt2", "pre", 1.0, 88): "9c3cf8ed60c9",
        ("gpt2", "pre", 4.0, 64): "6d29e66c8357",
        ("llama", "pre", 1.0, 64): "e2d7d56b6ab3",
        ("llama", "pre", 1.0, 96): "ac3eaf67c734",
        ("llama", "pre", 4.0, 64): "37b59e80fd83",
    }
    assert {cell: t.id for cell, t in found.items()} == {
        ("gpt2", "pre", 1.0, 64): "6e1f0a656d12",
        ("gpt2", "pre", 1.0, 88): "82519cb0eef0",
        ("gpt2", "pre", 4.0, 64): "8963b39e021a",
        ("llama", "pre", 1.0, 64): "cbd82c667410",
        ("llama", "pre", 1.0, 96): "670950e1b315",
        ("llama", "pre", 4.0, 64): "a2acb4fdd738",
    }


@pytest.mark.parametrize(
    "more",
    [
        "width_multiplier=[1, 2.67, 4, 8]",
        "width_multiplier=[8, 4, 2.67, 1, 0.5]",
        "seed=[0, 1]",
        "seed=[5, 0]",
        "match=[none, params, flops]",
        "grid.depth=[2, 4]",
        "architecture=[llama, gpt2]",
    ],
)
@pytest.mark.parametrize("match", ["none", "[none, params]"])
def test_adding_to_the_grid_leaves_every_other_id_as_it_was(more, match):
    before = grid(f"match={match}")
    after = grid(f"match={match}", more)
    assert ids(before) < ids(after) or (ids(before) == ids(after) and "architecture" in more)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "workers=2",
        "zero_stage=2",
        "micro_batch=4",
        "device=cuda",
        "checkpoint_every=7",
        "retries=0",
        "concurrent=1",
        "tolerance_nats=0.5",
        "reference_multiplier=2",
        "corpus={kind: text, paths: [elsewhere]}",
        "match=params",
    ],
)
def test_what_is_no_part_of_a_trial_leaves_its_id_alone(override):
    reference = ("reference_multiplier=4", override) if "match" in override else (override,)
    assert one(*reference).id == one().id


@pytest.mark.parametrize(
    "override",
    [
        "architecture=llama",
        "norm=post",
        "depth=3",
        "model.d_model=128",
        "head_dim=32",
        "context=32",
        "tie_embeddings=true",
        "width_multiplier=8",
        "seed=1",
        "steps=101",
        "batch_tokens=4096",
        "learning_rate=2e-3",
        "precision=bf16",
        "evaluation.every=7",
        "spectra.tokens=4096",
        "spectra.sites=[pre]",
    ],
)
def test_what_is_part_of_a_trial_changes_its_id(override):
    assert one(override).id != one().id


def test_the_data_are_part_of_a_trial():
    config = parse_sweep(BASE, "mini.yaml")
    other = DATA.model_copy(update={"tokenizer_hash": "0" * 16})
    assert not ids(expand(config, DATA, 512)) & ids(expand(config, other, 512))
    assert not ids(expand(config, DATA, 512)) & ids(expand(config, DATA, 513))


# --- equal budgets -------------------------------------------------------------------------


def test_the_reference_cell_is_one_trial_of_all_matchings():
    found = grid("match=[none, params, flops]")
    shared = [trial for trial in found.trials if trial.matchings == ("none", "params", "flops")]
    assert len(shared) == 4  # of each architecture and norm
    assert {trial.axes["width_multiplier"] for trial in shared} == {4.0}
    assert {trial.axes["d_model"] for trial in shared} == {64}
    assert all(trial.budget_errors == {"params": 0.0, "flops": 0.0} for trial in shared)


def test_a_half_without_the_other_has_its_own_trials_only():
    both, params = grid("match=[none, params]"), grid("match=params")
    assert ids(params) == {trial.id for trial in both.trials if "params" in trial.matchings}
    assert {trial.matchings for trial in params.trials} == {("params",)}


def test_matched_cells_have_the_parameters_of_the_reference():
    for trial in grid("match=params").trials:
        overrides = [f"{axis}={trial.axes[axis]}" for axis in ("architecture", "norm")]
        reference = parameters(one(*overrides).model).non_embedding
        found = parameters(trial.spec.model).non_embedding
        assert found / reference - 1 == pytest.approx(trial.budget_errors["params"])


def test_the_budget_does_not_depend_on_the_grid():
    alone = grid("match=params", "width_multiplier=2.67")
    assert ids(alone) < ids(grid("match=params", "width_multiplier=[1, 2.67, 4]"))


def test_two_widths_that_come_to_one_model_are_merged_and_told():
    found = grid("match=params", "architecture=gpt2", "norm=pre", "width_multiplier=[1.5, 2]")
    (trial,) = found.trials
    (merged,) = found.merged
    assert merged.into == trial.id
    assert merged.axes["width_multiplier"] == 2.0
    assert mentions(merged.why, "width_multiplier 1.5 ... d_model 80 ... D 144")


def test_a_value_that_is_listed_twice_is_merged_and_told():
    found = grid("architecture=gpt2", "norm=pre", "width_multiplier=[4, 4.0]", "seed=[0, 0]")
    assert len(found.trials) == 1
    assert [merged.why for merged in found.merged] == ["the grid has this cell twice"] * 3


def test_widths_that_round_to_one_d_are_merged():
    found = grid("architecture=gpt2", "norm=pre", "width_multiplier=[2.66, 2.67]")
    assert [trial.axes["D"] for trial in found.trials] == [168]
    assert mentions(found.merged[0].why, "width_multiplier 2.66 ... d_model 64 ... D 168")


def test_a_width_without_a_model_of_the_budget_is_dropped_with_the_reason():
    found = grid(
        "match=[none, params]", "norm=pre", "width_multiplier=[4, 1000]", "memory_mb=20000"
    )
    assert {cell.matching for cell in found.dropped} == {"params"}
    assert {cell.axes["width_multiplier"] for cell in found.dropped} == {1000.0}
    assert all("non-embedding parameters" in cell.why for cell in found.dropped)
    assert len(found.trials) + len(found.dropped) + 2 == found.cells  # two shared references


# --- what cannot be ------------------------------------------------------------------------


def test_a_combination_that_cannot_be_is_dropped_with_the_reason():
    found = grid("grid.head_dim=[16, 24]")
    assert len(found.trials) == len(found.dropped) == 12
    assert {cell.axes["head_dim"] for cell in found.dropped} == {24}

    (why,) = {cell.why for cell in found.dropped}
    assert mentions(why, "head_dim 24 ... d_model 64")


def test_widths_for_another_depth_are_dropped():
    found = grid("ffn_width=[[64, 96]]", "grid.depth=[2, 3]", "architecture=gpt2", "norm=pre")

    (cell,) = found.dropped
    assert mentions(cell.why, "ffn_width [64, 96] ... 2 ... depth ... 3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head_dim=24", "head_dim 24.*d_model 64"),
        ("batch_tokens=2000", "batch_tokens 2000.*64"),
        ("workers=5", "32 sequences .*5 workers"),
        ("spectra.tokens=32", r"spectra\.tokens 32.*64"),
    ],
)
def test_a_grid_without_a_single_trial_is_bad_input(override, message):
    with pytest.raises(InputError, match=f"sweep mini: .*12 .*: .*{message}"):
        grid(override)


# --- order and devices ---------------------------------------------------------------------


def test_trials_come_by_replicate_and_then_by_cost():
    found = grid("seed=[7, 0]", "match=[none, params]").trials
    replicates = [trial.spec.replicate for trial in found]
    assert replicates == sorted(replicates, key=[7, 0].index)
    for replicate in (7, 0):
        costs = [trial.flops for trial in found if trial.spec.replicate == replicate]
        assert costs == sorted(costs, reverse=True)


def test_the_grid_is_the_same_every_time():
    assert grid("match=[none, params]") == grid("match=[none, params]")


@pytest.mark.parametrize(
    ("written", "here", "meant"),
    [
        ("auto", "cpu", "cpu"),
        ("auto", "cuda", "cuda"),
        ("cpu", "cuda", "cpu"),
        ("cuda", "cpu", "cuda"),
    ],
)
def test_the_device_is_that_of_the_file_or_of_the_nodes(written, here, meant):
    found = on_device(grid(f"device={written}"), here)
    assert {trial.spec.layout.device for trial in found.trials} == {meant}


def test_the_device_changes_neither_ids_nor_order():
    found = grid("hold=[none, params]")
    moved = on_device(found, "cuda")
    assert [trial.id for trial in moved.trials] == [trial.id for trial in found.trials]
    assert on_device(moved, "cpu") == found


def test_a_block_of_no_name_is_not_no_block():
    with pytest.raises(InputError, match=r"block: ''.*package\.module:Class"):
        grid("block=''")
