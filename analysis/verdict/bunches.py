"""Whether the losses of a group lie in two bunches that the width does not explain.

At too high a learning rate some runs lose what others keep, and the losses fall into two bunches.
Three conditions must hold:

- Gap: the two bunches are at least MINIMUM_GAP nats apart, and each has runs of two widths.
- Shape: the bunches are tighter than the best division of normal draws of as many runs (p below
  ACCUSED_AT), so that one broad spread is not taken for two bunches.
- Width: a convex curve over ln(D / d_model), any at all, leaves much of the distance unexplained.
  Every loss curve that the verdict considers is convex, whatever its shape.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from analysis.replicates import Floats

#: Nats between the nearest runs of two bunches. Ten times the default tolerance of a verdict, and
#: three times the published differences between widths.
MINIMUM_GAP = 0.1
#: Share of normal draws that may be as clearly divided.
ACCUSED_AT = 0.02
#: Scatter about the best convex curve, as a share of the distance of the bunches' means. Bunches
#: that alternate over the width leave 0.35 to 0.5 of it; a step between neighbours leaves 0.22.
UNEXPLAINED = 0.2
#: Runs that two bunches need: three each, or two and more of the other.
MINIMUM_RUNS = 6
#: Draws of the null distribution, from one seed: the same input gives the same answer.
_DRAWS, _SEED = 4000, 20


@dataclass(frozen=True)
class Bunches:
    """Two bunches of losses. Losses in nats per token."""

    low: float  # mean loss of the lower bunch
    high: float  # mean loss of the upper bunch
    upper: NDArray[np.bool_]  # [n] whether a run is in the upper bunch
    p: float  # share of normal draws that are as clearly divided
    unexplained: float  # scatter about the best convex curve over the bunches' distance

    @property
    def distance(self) -> float:
        """Nats between the means of the bunches."""
        return self.high - self.low


def find_bunches(multiplier: ArrayLike, loss: ArrayLike) -> Bunches | None:
    """Find two bunches of losses that the width does not explain.

    Args:
        multiplier: [n] D / d_model of each run.
        loss: [n] final held-out losses, nats per token, all finite.

    Returns:
        The bunches; None if the losses are not in two, if the width may explain them, or if there
        are fewer than MINIMUM_RUNS.
    """
    x, y = np.log(np.asarray(multiplier, float)), np.asarray(loss, float)
    if len(y) < MINIMUM_RUNS:
        return None
    order = np.sort(y)
    share, at = _divided(order[None, :])
    below, above = float(order[at[0] - 1]), float(order[at[0]])
    if above - below < MINIMUM_GAP:
        return None
    upper = y >= above
    if min(len(np.unique(x[upper])), len(np.unique(x[~upper]))) < 2:
        return None
    p = float(np.mean(_null(len(y)) <= share[0]))
    low, high = float(y[~upper].mean()), float(y[upper].mean())
    scatter = float(np.sqrt(np.mean((y - convex_fit(x, y)) ** 2)))
    found = Bunches(low, high, upper, p, scatter / (high - low))
    return found if p < ACCUSED_AT and found.unexplained >= UNEXPLAINED else None


def convex_fit(x: Floats, y: Floats) -> Floats:
    """Return the convex curve nearest to y by least squares, at each x; [n].

    A convex curve is a line plus hinges (x - knot)+ of positive weight.
    """
    widths = np.unique(x)
    at = x - widths[0]
    hinges = np.maximum(0.0, x[:, None] - widths[None, 1:-1])
    # The line is free: each of its two coefficients is a difference of positive ones.
    design = np.column_stack([np.ones_like(x), -np.ones_like(x), at, -at, hinges])
    centre = float(y.mean())
    weights, _ = optimize.nnls(design, y - centre)
    return np.asarray(design @ weights + centre)


def _divided(ordered: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """The best division of each row in two: the share of the scatter within, and the place.

    Args:
        ordered: [S, n] rows of ascending values.

    Returns:
        [S] sum of squares within the two parts over that of the row, and [S] the number of values
        in the lower part, which like the upper one has at least two.
    """
    n = ordered.shape[1]
    centred = ordered - ordered.mean(axis=1, keepdims=True)
    sums = np.cumsum(centred, axis=1)[:, :-1]  # [S, n - 1] of the first k values
    k = np.arange(1, n)
    between = sums**2 * (1 / k + 1 / (n - k))  # the row sums to 0
    total = np.sum(centred**2, axis=1)
    allowed = between[:, 1:-1]
    best = np.argmax(allowed, axis=1)
    most = np.take_along_axis(allowed, best[:, None], axis=1)[:, 0]
    share = 1 - np.divide(most, total, out=np.ones_like(total), where=total > 0)
    return share, best + 2


@functools.cache
def _null(runs: int) -> Floats:
    """[_DRAWS] shares within of normal draws of so many runs."""
    draws = np.random.default_rng(_SEED).standard_normal((_DRAWS, runs))
    return _divided(np.sort(draws, axis=1))[0]
