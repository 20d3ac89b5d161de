"""The collapse rule: whether a trial's feed-forward layers have collapsed, from its record so far.

A collapsed layer sends every token along one direction: its hard rank is near 1 at any width
(arXiv 2510.00537). A model of such layers knows only the token frequencies, so its loss is the
unigram loss: the cross-entropy of the measured tokens under the frequencies of the training split.

Hard rank alone does not predict that end. A Pre-LN model can lose its rank and recover, because the
residual stream bypasses its layers. A Post-LN model has no bypass and does not recover. The rule
therefore has one criterion for the rank and two for the loss:

- Rank: the lowest hard rank of any layer stays below `hard_rank` and below `fall` times its own
  peak, over `snapshots` snapshots and a tenth of the training so far.
- Loss, Post-LN: the loss since then is at least `near_unigram` times the unigram loss. It may still
  be falling from the loss of an untrained model, which makes the rule early.
- Loss, other placements: in the last third of the training so far the loss is never below the
  unigram loss, and it improves on earlier losses by less than `progress` times the unigram loss.

A slow start keeps a high rank, and in a healthy model the loss falls along with the rank. No single
snapshot or evaluation decides. The thresholds were set on the sweep collapse-fit of
docs/experiments and a pilot, and tested on its sibling sweeps; docs/experiments.md has the counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class CollapseRule:
    """The thresholds of the rule. Losses are in nats per token, ranks in directions."""

    #: Directions. Any value from 2.5 to 5, with two or three snapshots, found every collapsed
    #: Post-LN trial and no other trial; this is the geometric middle.
    hard_rank: float = 3.5
    #: Share of the peak rank. Matters only at small D, where `hard_rank` is an ordinary rank.
    fall: float = 0.25
    #: Consecutive snapshots that must agree.
    snapshots: int = 3
    #: Share of the training so far that these snapshots must span.
    span: float = 0.1
    #: Share of the unigram loss. Healthy models ended below 0.9, collapsed Post-LN models above 1.
    near_unigram: float = 0.97
    #: Share of the training so far that is checked for progress.
    stall: float = 1 / 3
    #: Least number of evaluations that are checked for progress.
    evaluations: int = 3
    #: Share of the unigram loss that the loss must fall by in that time to count as learning.
    progress: float = 0.005


@dataclass(frozen=True)
class Collapse:
    """The point of a record at which the rule was met."""

    step: int  # updates
    layer: int  # the layer of the lowest hard rank, counted from 0
    hard_rank: float  # of that layer, directions
    peak: float  # the largest value so far of the lowest hard rank of any layer
    loss: float  # held-out, nats per token
    reason: str  # one sentence


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
    """Find the first snapshot at which the record up to that snapshot meets the rule.

    Args:
        steps: [S] updates at each snapshot, ascending.
        hard_rank: [S, L] hard rank of every layer at the site `post`, directions.
        loss_steps: [E] updates at each evaluation, ascending.
        losses: [E] held-out losses, nats per token.
        unigram_loss: nats per token, on the same tokens.
        post_ln: whether every layer is Post-LN.
        rule: the thresholds; those of `CollapseRule` by default.

    Returns:
        The collapse, or None if no snapshot meets the rule.

    Raises:
        ValueError: as in `judge_last`.
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
    """Judge a record at its last snapshot, as a training loop does.

    Arguments are those of `judge`. Evaluations that are not finite are left out.

    Returns:
        The collapse, or None if the last snapshot does not meet the rule.

    Raises:
        ValueError: shapes do not match, steps do not rise, a rank is not finite, or the unigram
            loss is not positive.
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
    peak = float(lowest.max())  # usually at the untrained weights
    low = _latest(at, at[-1], rule.span, rule.snapshots)
    if lowest[low].max() >= min(rule.hard_rank, rule.fall * peak):
        return None

    if post_ln:
        bound = rule.near_unigram * unigram_loss
        if evaluated[-1] < at[low][0] or loss[-1] < bound:
            return None  # the last evaluation is from before the rank fell
        why = f"above {bound:.2f}, {rule.near_unigram:.0%} of the unigram loss"
    else:
        recent = _latest(evaluated, at[-1], rule.stall, rule.evaluations)
        if recent.all():
            return None  # no earlier evaluation to compare with
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
    """[n] whether a step is in the last `share` of the training, or one of the last `least`."""
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
