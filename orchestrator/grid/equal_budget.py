"""Equal budgets: the models of a width axis that all cost what one reference model costs.

A wider FFN at equal d_model is also a bigger model, and a bigger model has a lower loss. To find
the best width, `hold` keeps the budget and lets d_model shrink as D grows: non-embedding
parameters (`params`, the N of arXiv 2001.08361) or training FLOPs per token (`flops`).

The reference is the file's d_model at `model.reference_multiplier`, whatever the grid holds, so
that no cell depends on its neighbours. The head count stays; d_model moves in steps of the head
count times two, over even head dimensions. Each d_model leaves one D that comes nearest to the
budget, in steps of `ffn_multiple`. Together they are a ladder of equally dear models, from which
each typed multiplier takes the rung whose D / d_model is nearest in ratio.

So the budget is met as closely as a d_model allows, and the spread of widths gives way: a budget
that is off is a bias of the loss (2 % of N moves it by about 0.005 nats), while laws use the
achieved D / d_model and take no harm from a typed 2 that became 1.84. Rungs are preferred within
2 % of the budget and refused beyond 5 %.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Literal

from trainers.accounting import parameters, training_flops_per_token
from trainers.models.model_spec import ModelSpec
from trainers.strict import MAX_HEAD_DIM, MAX_WIDTH

Budget = Literal["params", "flops"]

#: A rung this near to the budget is as good as any: choose by width.
NEAR = 0.02
#: Beyond this a cell is dropped.
FAR = 0.05
#: A rung whose D / d_model is off by more than this factor is not what was asked for.
WIDTH_FACTOR = 1.5

UNITS = {"params": "non-embedding parameters", "flops": "training FLOPs per token"}


@dataclass(frozen=True)
class HeldCell:
    """A model of (nearly) the reference's budget; `error` is its relative excess, signed."""

    model: ModelSpec
    error: float


@dataclass(frozen=True)
class Missed:
    """No model of the budget is near the width asked for."""

    why: str


def budget_of(model: ModelSpec, budget: Budget) -> int:
    """What a model costs: non-embedding parameters, or training FLOPs per token."""
    if budget == "params":
        return parameters(model).non_embedding
    return training_flops_per_token(model)


def hold_budget(
    reference: ModelSpec, multiplier: float, budget: Budget, ffn_multiple: int
) -> HeldCell | Missed:
    """The model of the reference's budget whose D / d_model is nearest to `multiplier`.

    `reference` has one D in all layers. At its own multiplier it is the model itself that holds
    the budget; the caller takes it as it is.
    """
    rungs = _ladder(reference, budget, ffn_multiple)
    near = [rung for rung in rungs if abs(rung.error) <= NEAR]
    allowed = [rung for rung in rungs if abs(rung.error) <= FAR]
    for choice in (near, allowed):
        best = min(choice, key=lambda rung: _distance(rung, multiplier), default=None)
        if best is not None and _distance(best, multiplier) <= log(WIDTH_FACTOR):
            return best
    nearest = min(rungs, key=lambda rung: _distance(rung, multiplier))
    return Missed(
        f"no model with {reference.heads} heads and the {budget_of(reference, budget):,} "
        f"{UNITS[budget]} of d_model {reference.d_model}, D {reference.ffn_widths[0]} has a width "
        f"near {multiplier:g}: the nearest has d_model {nearest.model.d_model}, "
        f"D {nearest.model.ffn_widths[0]} ({_achieved(nearest):.3g}x) and a budget off by "
        f"{nearest.error:+.1%}, where {FAR:.0%} and a factor of {WIDTH_FACTOR:g} in width are "
        "allowed; a smaller ffn_multiple or fewer heads (a larger head_dim) makes finer steps"
    )


@lru_cache(maxsize=256)
def _ladder(reference: ModelSpec, budget: Budget, ffn_multiple: int) -> tuple[HeldCell, ...]:
    """One model per even head dimension, its D trimmed to the budget, smallest d_model first."""
    goal = budget_of(reference, budget)
    rungs: list[HeldCell] = []
    # No model is wider or has larger heads than its spec allows.
    for head_dim in range(2, min(MAX_HEAD_DIM, MAX_WIDTH // reference.heads) + 1, 2):
        thinnest = _resized(reference, head_dim, ffn_multiple)
        least = budget_of(thinnest, budget)
        # Both budgets are affine in D, at a fixed d_model.
        step = budget_of(_resized(reference, head_dim, 2 * ffn_multiple), budget) - least
        multiples = min(max(1, 1 + round((goal - least) / step)), MAX_WIDTH // ffn_multiple)
        model = _resized(reference, head_dim, multiples * ffn_multiple)
        rungs.append(HeldCell(model, budget_of(model, budget) / goal - 1))
        if least > goal:
            break
    return tuple(rungs)


def _resized(model: ModelSpec, head_dim: int, width: int) -> ModelSpec:
    """The model with the same heads, another head dimension and the same D in every layer."""
    return ModelSpec(
        **model.model_dump(exclude={"d_model", "head_dim", "ffn_widths"}),
        d_model=model.heads * head_dim,
        head_dim=head_dim,
        ffn_widths=(width,) * model.depth,
    )


def _achieved(rung: HeldCell) -> float:
    return rung.model.ffn_widths[0] / rung.model.d_model


def _distance(rung: HeldCell, multiplier: float) -> float:
    return abs(log(_achieved(rung) / multiplier))
