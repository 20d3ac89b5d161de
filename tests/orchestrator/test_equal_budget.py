"""Matched models cost what the reference costs, at nearly the requested width."""

from math import log

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from messages import mentions

from orchestrator.grid.equal_budget import (
    LARGEST_ERROR,
    PREFERRED_ERROR,
    WIDTH_FACTOR,
    MatchedModel,
    Missed,
    budget_of,
    match_budget,
)
from trainers.accounting import parameters, training_flops_per_token
from trainers.models.model_spec import ModelSpec

BUDGETS = ["params", "flops"]


def reference(architecture="gpt2", heads=4, head_dim=16, depth=2, norm="pre", context=64, V=512):
    d_model = heads * head_dim
    return ModelSpec(
        architecture=architecture,
        norm=norm,
        d_model=d_model,
        head_dim=head_dim,
        ffn_widths=(4 * d_model,) * depth,
        context=context,
        vocab_size=V,
    )


references = st.builds(
    reference,
    architecture=st.sampled_from(["gpt2", "llama"]),
    heads=st.integers(1, 16),
    head_dim=st.integers(2, 64).map(lambda half: 2 * half),
    depth=st.integers(1, 24),
    norm=st.sampled_from(["pre", "post"]),
    context=st.sampled_from([32, 256, 2048]),
    V=st.sampled_from([257, 512, 32000]),
)


def test_a_budget_is_what_the_accounting_says():
    model = reference()
    assert budget_of(model, "params") == parameters(model).non_embedding
    assert budget_of(model, "flops") == training_flops_per_token(model)


@given(
    model=references,
    multiplier=st.floats(0.25, 16),
    budget=st.sampled_from(BUDGETS),
    ffn_multiple=st.sampled_from([1, 8, 64]),
)
def test_a_matched_model_keeps_budget_heads_and_everything_but_the_shape(
    model, multiplier, budget, ffn_multiple
):
    cell = match_budget(model, multiplier, budget, ffn_multiple)
    assume(isinstance(cell, MatchedModel))
    assert abs(budget_of(cell.model, budget) / budget_of(model, budget) - 1) <= LARGEST_ERROR
    assert cell.error == budget_of(cell.model, budget) / budget_of(model, budget) - 1
    assert cell.model.heads == model.heads
    assert cell.model.head_dim % 2 == 0
    assert len(set(cell.model.ffn_widths)) == 1
    assert cell.model.ffn_widths[0] % ffn_multiple == 0
    shape = {"d_model", "head_dim", "ffn_widths"}
    assert cell.model.model_dump(exclude=shape) == model.model_dump(exclude=shape)
    achieved = cell.model.ffn_widths[0] / cell.model.d_model
    assert abs(log(achieved / multiplier)) <= log(WIDTH_FACTOR) + 1e-12


@given(
    architecture=st.sampled_from(["gpt2", "llama"]),
    heads=st.integers(2, 16),
    multiplier=st.floats(1, 8),
    budget=st.sampled_from(BUDGETS),
)
def test_models_of_a_usual_size_always_find_a_cell_near_the_budget(
    architecture, heads, multiplier, budget
):
    cell = match_budget(reference(architecture, heads, 64), multiplier, budget, 8)
    assert isinstance(cell, MatchedModel)
    assert abs(cell.error) <= PREFERRED_ERROR
    assert abs(log(cell.model.ffn_widths[0] / cell.model.d_model / multiplier)) < log(1.1)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_wider_ffn_stands_in_a_narrower_model(architecture, budget):
    cells = [
        match_budget(reference(architecture, 2, 32), multiplier, budget, 8)
        for multiplier in (1, 2, 4, 8)
    ]
    shapes = [(cell.model.d_model, cell.model.ffn_widths[0]) for cell in cells]
    assert [d for d, _ in shapes] == sorted({d for d, _ in shapes}, reverse=True)
    assert [D for _, D in shapes] == sorted({D for _, D in shapes})


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_reference_is_on_its_own_ladder(budget):
    """A multiplier next to the reference's is the reference: both matchings share that cell."""
    assert match_budget(reference(), 3.99, budget, 8) == MatchedModel(reference(), 0.0)


@given(model=references, multiplier=st.floats(0.5, 8), budget=st.sampled_from(BUDGETS))
def test_no_other_width_of_the_same_d_model_is_nearer_to_the_budget(model, multiplier, budget):
    cell = match_budget(model, multiplier, budget, 8)
    assume(isinstance(cell, MatchedModel))
    D = cell.model.ffn_widths[0]
    for other in (D - 8, D + 8):
        if other > 0:
            moved = cell.model.model_copy(update={"ffn_widths": (other,) * model.depth})
            error = budget_of(moved, budget) / budget_of(model, budget) - 1
            assert abs(error) >= abs(cell.error) - 1e-12


def test_a_width_that_no_model_of_the_budget_has_is_missed_with_the_numbers():
    missed = match_budget(reference(), 1000, "params", 8)
    assert isinstance(missed, Missed)
    assert "near 1000 and the 100,096 non-embedding parameters of the reference" in missed.why
    assert "the nearest has d_model 8, D " in missed.why
    assert "5% and a factor of 1.5 in width are allowed" in missed.why


def test_steps_too_coarse_for_the_budget_are_missed():
    """With D in steps of 512 no d_model but the reference's can keep this budget."""
    missed = match_budget(reference(), 2, "params", 512)
    assert isinstance(missed, Missed)
    assert mentions(missed.why, "ffn_multiple ... heads")


@pytest.mark.parametrize(
    ("architecture", "budget", "shapes"),
    [
        ("gpt2", "params", [(88, 104), (72, 200), (64, 256), (48, 416)]),
        ("llama", "params", [(96, 96), (72, 208), (64, 256), (48, 392)]),
        ("llama", "flops", [(88, 96), (72, 192), (64, 256), (48, 432)]),
    ],
)
def test_the_cells_of_the_demo_stand(architecture, budget, shapes):
    cells = [match_budget(reference(architecture), m, budget, 8) for m in (1, 2.67, 4, 8)]
    assert [(cell.model.d_model, cell.model.ffn_widths[0]) for cell in cells] == shapes
