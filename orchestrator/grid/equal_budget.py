"""Matched models: models of different FFN width with the same parameters or FLOPs.

At a fixed d_model a wider FFN is also a bigger model, and bigger models have lower losses. A search
for the best width therefore matches the models in one budget: non-embedding parameters (`params`,
the N of arXiv 2001.08361) or training FLOPs per token (`flops`). d_model shrinks as D grows.

The budget is the cost of one reference model: the sweep file's d_model at
`model.reference_multiplier`. It does not depend on the other widths of the grid, so adding a width
leaves the existing cells unchanged.

The search builds a ladder of models. The head count is fixed and head_dim is even, so d_model moves
in steps of twice the head count. At each d_model, D is the multiple of `ffn_multiple` that comes
nearest to the budget. A requested multiplier gets the rung whose D / d_model is nearest in ratio.

The budget is met closely at the expense of the width. An error of 2 % in N biases the loss by about
0.005 nats. A requested width of 2 that becomes 1.84 does no harm, because laws use the achieved
D / d_model. Rungs within 2 % of the budget are preferred; rungs beyond 5 % are refused.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Literal

from trainers.accounting import parameters, training_flops_per_token
from trainers.models.model_spec import ModelSpec
from trainers.strict import MAX_HEAD_DIM, MAX_WIDTH

Budget = Literal["params", "flops"]

#: Relative error of the budget below which rungs count as equally good; the width then decides.
PREFERRED_ERROR = 0.02
#: Relative error of the budget beyond which a cell is dropped.
LARGEST_ERROR = 0.05
#: A rung is refused if its D / d_model is off the requested multiplier by more than this factor.
WIDTH_FACTOR = 1.5

BUDGET_UNITS = {"params": "non-embedding parameters", "flops": "training FLOPs per token"}


@dataclass(frozen=True)
class MatchedModel:
    """A model matched to the budget of a reference.

    `error` is the signed relative error of its budget: 0.01 is 1 % above the reference.
    """

    model: ModelSpec
    error: float


@dataclass(frozen=True)
class Missed:
    """No model with the requested width meets the budget; `why` is a message for the user."""

    why: str


def budget_of(model: ModelSpec, budget: Budget) -> int:
    """Return the non-embedding parameters of a model, or its training FLOPs per token."""
    if budget == "params":
        return parameters(model).non_embedding
    return training_flops_per_token(model)


def match_budget(
    reference: ModelSpec, multiplier: float, budget: Budget, ffn_multiple: int
) -> MatchedModel | Missed:
    """Find the model with the reference's budget whose D / d_model is nearest to `multiplier`.

    At the reference's own multiplier the reference is the answer; callers use it directly.

    Args:
        reference: Model that sets the budget. It has the same D in all layers.
        multiplier: Requested D / d_model.
        budget: Quantity to match: `params` or `flops`.
        ffn_multiple: D is a multiple of it.

    Returns:
        The matched model with its budget error, or `Missed` if no model is close enough to
        both the budget and the multiplier.
    """
    rungs = _ladder(reference, budget, ffn_multiple)
    preferred = [rung for rung in rungs if abs(rung.error) <= PREFERRED_ERROR]
    allowed = [rung for rung in rungs if abs(rung.error) <= LARGEST_ERROR]
    for choice in (preferred, allowed):
        best = min(choice, key=lambda rung: _distance(rung, multiplier), default=None)
        if best is not None and _distance(best, multiplier) <= log(WIDTH_FACTOR):
            return best
    nearest = min(rungs, key=lambda rung: _distance(rung, multiplier))
    return Missed(
        f"no model with {reference.heads} heads has a width near {multiplier:g} and the "
        f"{budget_of(reference, budget):,} {BUDGET_UNITS[budget]} of the reference (d_model "
        f"{reference.d_model}, D {reference.ffn_widths[0]}): the nearest has d_model "
        f"{nearest.model.d_model}, D {nearest.model.ffn_widths[0]} ({_achieved(nearest):.3g}x) and "
        f"a budget off by {nearest.error:+.1%}; {LARGEST_ERROR:.0%} and a factor of "
        f"{WIDTH_FACTOR:g} in width are allowed; a smaller ffn_multiple or fewer heads (a larger "
        "head_dim) gives finer steps"
    )


@lru_cache(maxsize=256)
def _ladder(reference: ModelSpec, budget: Budget, ffn_multiple: int) -> tuple[MatchedModel, ...]:
    """One model per even head_dim, with D trimmed to the budget, smallest d_model first."""
    goal = budget_of(reference, budget)
    rungs: list[MatchedModel] = []
    # The spec limits both the width and the head dimension.
    for head_dim in range(2, min(MAX_HEAD_DIM, MAX_WIDTH // reference.heads) + 1, 2):
        thinnest = _resized(reference, head_dim, ffn_multiple)
        least = budget_of(thinnest, budget)
        # Both budgets are affine in D at a fixed d_model.
        step = budget_of(_resized(reference, head_dim, 2 * ffn_multiple), budget) - least
        multiples = min(max(1, 1 + round((goal - least) / step)), MAX_WIDTH // ffn_multiple)
        model = _resized(reference, head_dim, multiples * ffn_multiple)
        rungs.append(MatchedModel(model, budget_of(model, budget) / goal - 1))
        if least > goal:
            break
    return tuple(rungs)


def _resized(model: ModelSpec, head_dim: int, width: int) -> ModelSpec:
    """The model with the same heads, another head_dim and the same D in every layer."""
    return ModelSpec(
        **model.model_dump(exclude={"d_model", "head_dim", "ffn_widths"}),
        d_model=model.heads * head_dim,
        head_dim=head_dim,
        ffn_widths=(width,) * model.depth,
    )


def _achieved(rung: MatchedModel) -> float:
    return rung.model.ffn_widths[0] / rung.model.d_model


def _distance(rung: MatchedModel, multiplier: float) -> float:
    return abs(log(_achieved(rung) / multiplier))
