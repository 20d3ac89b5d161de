"""The sampling distribution of a fitted law: bootstrap and leave-out refits, and their intervals.

The methods were chosen by simulation (benchmarks/fit_coverage.py), on 24 to 60 cells at a nominal
90 %:

- One run per cell: BCa (bias-corrected and accelerated, Efron 1987) covers the exponents in 86-94 %
  of studies, percentiles of the same resamples in 90-98 %, resampled residuals in 77-93 %.
- Several runs per cell, drawn with their cells: percentiles cover 87-96 %, BCa 82-93 %. With few
  cells the corrections of BCa are noisier than the bias that they correct.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.fit.batched_minimise import minimise
from analysis.fit.log_sum_exp import LogSumExp
from analysis.replicates import CONFIDENCE, Floats, Interval

#: With more rows, draws from the asymptotic covariance replace refits.
MOST_ROWS = 5000
#: Most leave-out refits: one per cell, or one per group of cells if there are more cells.
MOST_LEFT_OUT = 200


@dataclass(frozen=True)
class Resamples:
    """Draws from the sampling distribution of the fitted vector."""

    draws: Floats  # [R, P]
    left_out: Floats  # [J, P] fits without one cell or group of cells; J = 0 for percentiles
    method: str  # in words


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
    """Draw from the sampling distribution of a fit, by refits of resampled cells.

    Replicates of one cell share the law's error there, so whole cells are drawn. Above MOST_ROWS
    rows the draws are normal instead, with the sandwich covariance of the fit.

    Args:
        model: the function of P parameters at n points.
        theta: [P] the fitted vector.
        y: [n] the logarithm of the loss.
        cell_of: [n] the cell of every row, numbered from 0.
        delta: of the Huber loss.
        count: number of resamples.
        seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    cells = int(cell_of.max()) + 1
    what = "rows" if cells == len(y) else f"{cells} cells with all their replicates"
    if len(y) > MOST_ROWS:
        covariance, unit = _sandwich(model, theta, y, cell_of, delta)
        normal = rng.multivariate_normal(np.zeros(len(theta)), covariance, count, method="svd")
        return Resamples(
            np.asarray(theta + normal / unit),
            np.empty((0, len(theta))),
            f"{count} normal draws, sandwich covariance of {what}",
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
    """Return the 90 % BCa interval of one quantity; percentiles without leave-out refits.

    Args:
        estimate: the quantity of the fit.
        draws: [R] the quantity of the resamples; NaN is ignored. Infinite values keep their place
            in the order (E at zero has ln E = -inf).
        left_out: [J] the quantity of the leave-out refits; may be empty.
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


def _sandwich(
    model: LogSumExp, theta: Floats, y: Floats, cell_of: NDArray[np.intp], delta: float
) -> tuple[Floats, Floats]:
    """Sandwich covariance [P, P] of a fit, in units [P] of each parameter's slope."""
    at = model.derivatives(theta[None])
    residual = at.value - y
    pull = np.clip(residual, -delta, delta)
    slopes = at.slopes[0]
    hessian = (slopes * (np.abs(residual) <= delta)) @ slopes.T + at.curvature(pull)[0]
    scores = np.zeros((int(cell_of.max()) + 1, len(theta)))
    np.add.at(scores, cell_of, (slopes * pull).T)
    # ln A and alpha are nearly collinear, so the inverse is taken in units of the slopes.
    unit = np.sqrt(np.maximum(np.sum(slopes**2, axis=1), 1e-300))
    bread = np.linalg.pinv(hessian / unit / unit[:, None], rcond=1e-12, hermitian=True)
    return bread @ (scores.T @ scores / unit / unit[:, None]) @ bread, unit
