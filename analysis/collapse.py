"""Whether a trial's feed-forward layers have collapsed, judged on its own record as it grows.

A collapsed layer sends every token along one direction: its hard rank is near 1 whatever its
width (arXiv 2510.00537), and a model of such layers knows the frequencies of the tokens and no
more, so that its loss is the unigram loss: the cross-entropy of the measured tokens under the
frequencies of the training split. Hard rank alone does not tell who will
end there. Pre-LN models lose it in the same way and find it again, for their residual stream passes
the layers by; in a Post-LN model nothing does, and a lost rank stays lost. Hence one criterion for
the rank and two for the loss:

- the lowest hard rank of any layer stays below `hard_rank` and below `fall` of its own peak, over
  `snapshots` snapshots and a tenth of the training so far;
- Post-LN: the loss since then is not below `near_unigram` of the unigram loss. It may still be
  on its way there from the loss of an untrained model: that is what makes the rule early;
- any other placement: the loss of the last third of the training so far is never below the unigram
  loss, and not lower than before by more than `progress` of it.

A slow start has a high rank, a healthy model's rank falls while its loss falls, and a single
snapshot or evaluation decides nothing. The thresholds were set on the sweep collapse-fit of
docs/experiments and a pilot, and judged on its siblings; docs/experiments.md has the counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class CollapseRule:
    """Thresholds; losses are in nats per token, ranks in directions."""

    #: Directions. With 2.5 to 5 every collapsed Post-LN trial was found and no other one accused,
    #: with two snapshots or three; this is the geometric middle.
    hard_rank: float = 3.5
    #: Of the peak. Matters only where D is so small that `hard_rank` is an ordinary rank.
    fall: float = 0.25
    #: Snapshots in a row that must agree.
    snapshots: int = 3
    #: Share of the training so far that they must span, should snapshots be frequent.
    span: float = 0.1
    #: Of the unigram loss. Healthy models ended below 0.9, collapsed Post-LN ones above 1.
    near_unigram: float = 0.97
    #: Share of the training so far, and evaluations at the least, in which nothing was learnt.
    stall: float = 1 / 3
    evaluations: int = 3
    #: Of the unigram loss: what the loss must come down by in that time to count as learning.
    progress: float = 0.005


@dataclass(frozen=True)
class Collapse:
    """Where a record first met the rule."""

    step: int  # optimiser updates
    layer: int  # of the lowest hard rank, counted from 0
    hard_rank: float  # of that layer
    peak: float  # of the lowest hard rank, over the record up to there
    loss: float  # held-out, nats per token
    reason: str  # in words, for people


def judge(
    steps: ArrayLike,
    hard_rank: ArrayLike,
    loss_steps: ArrayLike,
    losses: ArrayLike,
    unigram_loss: float,
    *,
    post_ln: bool,
    rule: CollapseRule | None = None,
) -> Collapse | None:
    """The first snapshot at which the record up to it met the rule, or None.

    steps [S] and hard_rank [S, L] of the snapshots at the site post, loss_steps [E] and held-out
    losses [E] in nats per token, both in order of step; unigram_loss is in the same unit.
    post_ln says that every layer is Post-LN. Raises ValueError as `judge_last` does.
    """
    ranks, at = np.asarray(hard_rank, float), np.asarray(steps)
    losses, loss_steps = np.asarray(losses, float), np.asarray(loss_steps)
    for last in range(len(at)):
        evaluated = loss_steps <= at[last]
        found = judge_last(
            at[: last + 1],
            ranks[: last + 1],
            loss_steps[evaluated],
            losses[evaluated],
            unigram_loss,
            post_ln=post_ln,
            rule=rule,
        )
        if found is not None:
            return found
    return None


def judge_last(
    steps: ArrayLike,
    hard_rank: ArrayLike,
    loss_steps: ArrayLike,
    losses: ArrayLike,
    unigram_loss: float,
    *,
    post_ln: bool,
    rule: CollapseRule | None = None,
) -> Collapse | None:
    """Whether the record so far meets the rule at its last snapshot: what a training loop asks.

    Arguments are those of `judge`; evaluations that are not finite are left out. Raises ValueError
    for arrays that do not fit each other, steps that do not rise, a rank that is not finite, or a
    unigram loss that is not positive.
    """
    rule = rule or CollapseRule()
    at, ranks = _record("steps", steps, "hard_rank", hard_rank, dimensions=2)
    evaluated, loss = _record("loss_steps", loss_steps, "losses", losses, dimensions=1)
    if not np.isfinite(ranks).all():
        raise ValueError("hard_rank holds values that are not finite")
    if not unigram_loss > 0:
        raise ValueError(f"unigram_loss {unigram_loss} must be positive, in nats per token")
    if len(at) < rule.snapshots:
        return None
    known = np.isfinite(loss) & (evaluated <= at[-1])
    evaluated, loss = evaluated[known], loss[known]
    if not len(loss):
        return None

    lowest = ranks.min(axis=1)
    peak = float(lowest.max())  # mostly that of the untrained weights
    low = _latest(at, at[-1], rule.span, rule.snapshots)
    if lowest[low].max() >= min(rule.hard_rank, rule.fall * peak):
        return None

    if post_ln:
        bound = rule.near_unigram * unigram_loss
        if evaluated[-1] < at[low][0] or loss[-1] < bound:
            return None  # what it was before the rank fell says nothing
        why = f"above {bound:.2f}, {rule.near_unigram:.0%} of the unigram loss"
    else:
        recent = _latest(evaluated, at[-1], rule.stall, rule.evaluations)
        if recent.all():
            return None  # nothing earlier to hold them against
        learnt = loss[~recent].min() - rule.progress * unigram_loss
        if loss[recent].min() < unigram_loss or loss[recent].min() <= learnt:
            return None
        why = f"above the unigram loss {unigram_loss:.2f} and without progress"
    layer = int(ranks[-1].argmin())
    return Collapse(
        step=int(at[-1]),
        layer=layer,
        hard_rank=float(ranks[-1, layer]),
        peak=peak,
        loss=float(loss[-1]),
        reason=(
            f"collapsed at step {at[-1]}: hard rank {ranks[-1, layer]:.1f} in layer {layer}, where "
            f"the lowest of any layer was {peak:.1f}; loss {loss[-1]:.2f}, {why}"
        ),
    )


def _latest(steps: NDArray[np.int64], now: int, share: float, least: int) -> Flags:
    """[n] whether a step lies in the last `share` of the training so far, or is among the last."""
    flags: Flags = steps >= now * (1 - share)
    flags[-least:] = True
    return flags


def _record(
    steps_name: str, steps: ArrayLike, values_name: str, values: ArrayLike, dimensions: int
) -> tuple[NDArray[np.int64], Floats]:
    at, found = np.asarray(steps), np.asarray(values, float)
    if at.ndim != 1 or found.ndim != dimensions or len(at) != len(found):
        raise ValueError(
            f"{steps_name} of shape {at.shape} and {values_name} of shape {found.shape}: "
            f"expected [n] and {'[n, layers]' if dimensions == 2 else '[n]'}"
        )
    if (np.diff(at) <= 0).any():
        raise ValueError(f"{steps_name} must rise: {at.tolist()}")
    return at, found
