"""How a fitted law would scatter: bootstrap refits, leave-out refits, and intervals from both.

Chosen by simulation (benchmarks/fit_coverage.py), on 24 to 60 cells with a nominal 90 %:

- one run a cell: BCa (Efron 1987: bias-corrected and accelerated) covers the exponents in 86-94 %
  of studies, percentiles of the same resamples in 90-98 %, resampled residuals in 77-93 %;
- replicates, drawn with their cells: percentiles cover 87-96 %, BCa 82-93 %: with few cells its
  corrections are noisier than the bias that they correct.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.fit.batched_minimise import minimise
from analysis.fit.log_sum_exp import LogSumExp
from analysis.replicates import CONFIDENCE, Floats, Interval

#: Rows above which refits give way to the covariance that they tend to.
MOST_ROWS = 5000
#: Leave-out refits: one a cell, or one a group of cells where there are more.
MOST_LEFT_OUT = 200


@dataclass(frozen=True)
class Resamples:
    """Fitted vectors as they would scatter."""

    draws: Floats  # [R, P]
    left_out: Floats  # [J, P], each without one cell or one group of cells; J = 0 for percentiles
    method: str


def resample(
    model: LogSumExp,
    theta: Floats,
    y: Floats,
    cell_of: NDArray[np.intp],
    *,
    delta: float,
    count: int,
    seed: int,
) -> Resamples:
    """Refit `count` resamples of whole cells, from the fit `theta` [P] to `y` [n].

    `cell_of` [n] numbers the cell of every row: the replicates of one cell share what the law
    misses there, so they are drawn together. Above MOST_ROWS rows the draws are normal, with the
    sandwich covariance of the fit.
    """
    rng = np.random.default_rng(seed)
    cells = int(cell_of.max()) + 1
    what = "rows" if cells == len(y) else f"{cells} cells with all their replicates"
    if len(y) > MOST_ROWS:
        draws = _sandwich_draws(model, theta, y, cell_of, delta, count, rng)
        return Resamples(
            draws, np.empty((0, len(theta))), f"{count} normal draws, sandwich covariance of {what}"
        )
    weights = rng.multinomial(cells, np.full(cells, 1 / cells), count)[:, cell_of]
    if cells < len(y):
        starts = np.repeat(theta[None], count, axis=0)
        found = minimise(model, starts, y, delta=delta, weights=weights.astype(float)).theta
        return Resamples(
            found, np.empty((0, len(theta))), f"percentile bootstrap of {what}, {count} resamples"
        )
    groups = min(cells, MOST_LEFT_OUT)
    group_of = rng.permutation(cells) % groups
    kept = group_of[cell_of] != np.arange(groups)[:, None]
    every = np.concatenate([weights, kept]).astype(float)
    starts = np.repeat(theta[None], len(every), axis=0)
    found = minimise(model, starts, y, delta=delta, weights=every).theta
    return Resamples(found[:count], found[count:], f"BCa bootstrap of {what}, {count} resamples")


def bca_interval(estimate: float, draws: Floats, left_out: Floats) -> Interval:
    """The 90 % interval of a quantity from its value in resamples [R] and leave-out refits [J].

    Without leave-out refits, the percentiles. An infinite quantity (E at zero has ln E = -inf)
    keeps its place in the order.
    """
    tails = np.asarray([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    if len(left_out):
        half = 0.5 / len(draws)
        below = np.mean(draws < estimate) + 0.5 * np.mean(draws == estimate)
        bias = float(special.ndtri(np.clip(below, half, 1 - half)))
        with np.errstate(invalid="ignore"):
            spread = left_out.mean() - left_out
        largest = float(np.abs(spread).max())
        acceleration = 0.0
        if np.isfinite(largest) and largest > 0:
            spread = spread / largest
            acceleration = float(np.sum(spread**3) / (6 * np.sum(spread**2) ** 1.5))
        shifted = bias + special.ndtri(tails)
        tails = special.ndtr(bias + shifted / np.maximum(1 - acceleration * shifted, 0.1))
    low, high = np.quantile(draws, tails, method="inverted_cdf")
    return float(low), float(high)


def _sandwich_draws(
    model: LogSumExp,
    theta: Floats,
    y: Floats,
    cell_of: NDArray[np.intp],
    delta: float,
    count: int,
    rng: np.random.Generator,
) -> Floats:
    """Normal draws about the fit: what the bootstrap of a large table tends to, without refits."""
    at = model.derivatives(theta[None])
    residual = at.value - y
    pull = np.clip(residual, -delta, delta)
    slopes = at.slopes[0]
    hessian = (slopes * (np.abs(residual) <= delta)) @ slopes.T + at.curvature(pull)[0]
    scores = np.zeros((int(cell_of.max()) + 1, len(theta)))
    np.add.at(scores, cell_of, (slopes * pull).T)
    # ln A and alpha are all but collinear: pinv in units of each parameter's own slope.
    unit = np.sqrt(np.maximum(np.sum(slopes**2, axis=1), 1e-300))
    bread = np.linalg.pinv(hessian / unit / unit[:, None], rcond=1e-12, hermitian=True)
    covariance = bread @ (scores.T @ scores / unit / unit[:, None]) @ bread
    draws = rng.multivariate_normal(np.zeros(len(theta)), covariance, count, method="svd")
    return np.asarray(theta + draws / unit)
