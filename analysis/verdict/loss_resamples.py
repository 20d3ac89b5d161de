"""The noise of a loss curve, and resamples of the curve.

The noise comes from the paired replicates and from the scatter about the curve. It comes from the
scatter alone where there are too few replicates, or where they show that no shape fits.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from analysis.replicates import Floats, WidthMeans
from analysis.settings import WIDTHS_WITH_ONE_REPLICATE
from analysis.verdict.loss_curves import SHAPES, CurveFits, basis, fit_shapes, lowest, shape_weights

RESAMPLES = 2000
#: A smaller p of the lack-of-fit test: the replicates' noise does not explain the scatter.
MISFIT = 0.05
#: Noise below this share of the losses is rounding.
NO_NOISE = 1e-12

NoiseFrom = Literal["replicates and scatter", "scatter about the curve", "given"]


@dataclass(frozen=True)
class Noise:
    """The noise of the width means about each of K curves."""

    variance: Floats  # [K] nats squared, in units of `covariance`
    df: int  # degrees of freedom of each variance
    covariance: Floats  # [W, W] of the width means, for a variance of 1
    source: NoiseFrom
    misfit: float | None  # p of the lack-of-fit test; None where replicates do not differ
    shared: Floats  # [W] nats: an error common to all means, by the budget that each misses


def fit_curves(
    means: WidthMeans, replicated: bool, shared: Floats | None = None
) -> tuple[CurveFits, Noise]:
    """Fit and weight every shape, and estimate the noise about it.

    Args:
        means: the losses by width.
        replicated: whether the replicates' variance can be used.
        shared: [W] the means' error in one common direction, nats; None without one.
    """
    unequal = np.diag(means.spread)
    covariance = means.covariance if replicated else unequal
    centre = float(means.x.mean())
    u = means.x - centre
    coefficients, solve, residual = fit_shapes(u, means.mean, covariance)
    spare = means.widths - 3
    source: NoiseFrom = "replicates and scatter"
    within, within_df, misfit = 0.0, 0, None
    if replicated:
        assert means.variance is not None
        within, within_df = means.variance * means.df, means.df
        if means.variance > (NO_NOISE * float(np.abs(means.mean).max())) ** 2:
            misfit = _misfit(float(residual.min()) / spare, means.variance, spare, means.df)
    floor = 0.0
    if misfit is not None and misfit < MISFIT:
        source = "scatter about the curve"
        if means.widths >= WIDTHS_WITH_ONE_REPLICATE:
            covariance, within, within_df = unequal, 0.0, 0
            coefficients, solve, residual = fit_shapes(u, means.mean, covariance)
        else:  # too few widths to use their scatter alone: take the larger variance
            floor = 1.0
    if not replicated:
        source = "scatter about the curve"
    df = spare + within_df
    size = float(np.abs(means.mean).max())
    variance = np.maximum((residual + within) / df, floor * residual / spare)
    fits = CurveFits(
        centre=centre,
        low=float(u[0]),
        high=float(u[-1]),
        coefficients=coefficients,
        solve=solve,
        residual=residual,
        weight=shape_weights(residual, within, df, size),
    )
    along = np.zeros(means.widths) if shared is None else shared
    return fits, Noise(variance, spare if floor else df, covariance, source, misfit, along)


def _misfit(scatter: float, variance: float, spare: int, df: int) -> float:
    """The p-value of the F-test that the best curve misses by no more than the replicates' noise.

    Two of the curve's parameters come from a grid and are not counted, which makes the test
    conservative.
    """
    return float(stats.f.sf(scatter / variance, spare, df))


@dataclass(frozen=True)
class Resamples:
    """B curves that the data allow."""

    at: Floats  # [B] ln m of the lowest loss within the grid, minus the centre of the fits
    lowest: Floats  # [B] that loss, nats per token
    fitted: Floats  # [B, W] loss at each width, nats per token


def resample_curves(means: WidthMeans, fits: CurveFits, noise: Noise) -> Resamples:
    """Draw RESAMPLES curves: shape, noise variance and width means about their estimates.

    The draws are a mixture of multivariate t distributions. The same input gives the same draws.
    """
    # Stratified, so that shapes are exactly in proportion to their weights.
    steps = (np.arange(RESAMPLES) + 0.5) / RESAMPLES
    shape = np.minimum(np.searchsorted(np.cumsum(fits.weight), steps), len(SHAPES) - 1)
    rng = np.random.default_rng(0)
    scale = np.sqrt(noise.variance[shape] * noise.df / rng.chisquare(noise.df, RESAMPLES))
    normal = rng.standard_normal((RESAMPLES, means.widths))
    moved = scale[:, None] * (normal @ np.linalg.cholesky(noise.covariance).T)
    moved += rng.standard_normal((RESAMPLES, 1)) * noise.shared
    coefficients = fits.coefficients[shape] + np.einsum("bcw,bw->bc", fits.solve[shape], moved)
    at, value = lowest(shape, coefficients, fits.low, fits.high)
    design = basis(means.x - fits.centre)[shape]
    return Resamples(at, value, np.einsum("bwc,bc->bw", design, coefficients))
