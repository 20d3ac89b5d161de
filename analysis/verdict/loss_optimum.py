"""Where the loss is lowest along the width at an equal budget, and whether that is known.

Convex curves of many shapes (`loss_curves`) are fitted to the end-of-schedule losses. A point
estimate inside the grid is not enough, and neither is one shape: a quadratic in ln(D / d_model),
whatever its share of resamples, recommends a width in up to 100 % of studies whose loss has its
optimum on the edge of the grid, and its interval misses a skewed bowl's optimum more often than
not. The rule here asks that at least 98 % of resamples have their lowest loss strictly inside the
grid; benchmarks/verdicts.py shows what that comes to.

Resamples are draws of shape, noise variance and width means about their estimates (a mixture of
multivariate t). The noise is that of the paired replicates and of the scatter about the curve, or
of the scatter alone where there are too few replicates, or where they show that no shape fits.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from analysis.replicates import CONFIDENCE, Floats, Interval, WidthMeans, width_means
from analysis.settings import WIDTHS_WITH_ONE_REPLICATE, WIDTHS_WITH_REPLICATES
from analysis.verdict.loss_curves import SHAPES, CurveFits, basis, fit_shapes, lowest, shape_weights
from analysis.wording import multiple, percent, plural

#: Share of resamples that must put the optimum strictly inside the grid.
REQUIRED_SUPPORT = 0.98
RESAMPLES = 2000
#: Degrees of freedom below which the replicates' variance is not worth having.
MINIMUM_NOISE_DF = 3
#: p of the lack-of-fit test below which replicate noise does not explain the scatter.
MISFIT = 0.05
#: Nats beyond which squares of losses overflow: no loss is so large, but a broken run may say so.
LARGEST_LOSS = 1e100
#: Noise below this share of the losses is rounding.
NO_NOISE = 1e-12

NoiseFrom = Literal["replicates and scatter", "scatter about the curve"]
Obstacle = Literal[
    "no losses",
    "few widths",
    "lower edge",
    "upper edge",
    "all within tolerance",
    "uncertain",
    "nothing admissible",
]


@dataclass(frozen=True)
class Unfitted:
    """No curve at all: too few widths."""

    obstacle: Obstacle
    reason: str
    widths: int
    replicates: int


@dataclass(frozen=True)
class LossCurve:
    """The fitted curves, their optimum and what each width costs. Losses in nats per token."""

    multiplier: Floats  # [W] D / d_model, ascending
    loss: Floats  # [W] width means
    counts: NDArray[np.int64]  # [W] runs
    admissible: NDArray[np.bool_]  # [W] no replicate collapsed or diverged
    fits: CurveFits
    optimum: float  # where the mean of the curves is lowest within the grid
    interval: Interval  # of the optimum, 90 %
    support: float  # share of resamples with an optimum strictly inside the grid
    below: float  # share with the lowest loss at the smallest width
    above: float  # share with the lowest loss at the largest width
    excess: Floats  # [W] loss on the curve over its lowest within the grid
    excess_upper: Floats  # [W] its upper bound, one-sided at 90 %
    over_headline: Floats  # [W, 2] 90 % interval of the loss less the headline's; NaN without one
    equivalent: NDArray[np.bool_]  # [W] cannot be told from the headline at this precision
    headline: int | None  # index of the width to choose, whatever the support
    within_tolerance: bool  # the headline's bound is below the tolerance
    tolerance: float
    noise_sd: float  # nats; of one run, or of a width mean where it is the scatter
    noise_from: NoiseFrom
    lack_of_fit_p: float | None  # of the best of all shapes; None where replicates do not differ
    replicates: int
    obstacle: Obstacle | None
    reason: str  # why it is, or is not, an optimum

    @property
    def recommended(self) -> bool:
        return self.obstacle is None

    @property
    def shape(self) -> tuple[float, float]:
        """p and q of the best of the curves E + a m^-p + b m^q; (0, 0): a quadratic in ln m."""
        falls, rises = SHAPES[self.fits.best]
        return float(falls), float(rises)

    def curve(self, multiplier: ArrayLike) -> Floats:
        """Loss on the mean of the curves."""
        at = np.log(np.asarray(multiplier, float))
        return self.fits.loss(at.reshape(-1)).reshape(at.shape)


def find_optimum(
    multiplier: ArrayLike,
    loss: ArrayLike,
    replicate: ArrayLike,
    *,
    tolerance: float,
    inadmissible: Collection[float] = (),
) -> LossCurve | Unfitted:
    """Judge [n] end-of-schedule losses of completed runs at an equal budget.

    `tolerance` is in nats; `inadmissible` multipliers may shape the curve but are never chosen.
    Losses that are not `usable` do not enter. The result is the same for the same input.
    """
    ms, ys, labels = np.asarray(multiplier, float), np.asarray(loss, float), np.asarray(replicate)
    finite = np.isfinite(ms) & (ms > 0) & usable(ys)
    if not finite.any():
        return Unfitted("no losses", "no run at an equal budget has a final loss", 0, 0)
    means = width_means(np.log(ms[finite]), ys[finite], labels[finite])
    replicated = means.variance is not None and means.df >= MINIMUM_NOISE_DF
    needed = WIDTHS_WITH_REPLICATES if replicated else WIDTHS_WITH_ONE_REPLICATE
    if means.widths < needed:
        return _too_few(means)
    fits, noise = _fit(means, replicated)
    resamples = _resample(means, fits, noise)

    optimum, floor = _lowest_of_mean(fits)
    excess = fits.loss(means.x) - floor
    excess_upper = np.quantile(resamples.fitted - resamples.lowest[:, None], CONFIDENCE, axis=0)
    names = np.exp(means.x)
    admissible = ~np.isclose(names[:, None], np.asarray([*inadmissible, np.nan])).any(axis=1)
    headline, within = _headline(excess, excess_upper, admissible, tolerance)
    over = _over_headline(resamples.fitted, headline)
    at, low, high = resamples.at, fits.low, fits.high
    support = float(np.mean((at > low) & (at < high)))
    below, above = float(np.mean(at <= low)), float(np.mean(at >= high))
    obstacle, reason = _judge(names, support, below, above, headline, excess_upper, tolerance)
    tail = (1 - CONFIDENCE) / 2
    bounds = np.exp(np.quantile(at, [tail, 1 - tail]) + fits.centre)
    return LossCurve(
        multiplier=names,
        loss=means.mean,
        counts=means.counts,
        admissible=admissible,
        fits=fits,
        optimum=float(np.exp(optimum + fits.centre)),
        interval=(float(bounds[0]), float(bounds[1])),
        support=support,
        below=below,
        above=above,
        excess=excess,
        excess_upper=excess_upper,
        over_headline=over,
        equivalent=_equivalent(over, tolerance),
        headline=headline,
        within_tolerance=within,
        tolerance=tolerance,
        noise_sd=float(np.sqrt(noise.variance[fits.best])),
        noise_from=noise.source,
        lack_of_fit_p=noise.misfit,
        replicates=means.replicates,
        obstacle=obstacle,
        reason=reason,
    )


def usable(loss: ArrayLike) -> NDArray[np.bool_]:
    """Whether losses are numbers that can be judged."""
    return np.asarray(np.abs(np.asarray(loss, float)) <= LARGEST_LOSS)


def _too_few(means: WidthMeans) -> Unfitted:
    runs = f"{means.replicates} replicates" if means.replicates > 1 else "one replicate"
    if means.replicates > 1 and means.df < MINIMUM_NOISE_DF:
        runs += f", which share {plural(means.df, 'degree')} of freedom for the noise"
    return Unfitted(
        "few widths",
        f"{plural(means.widths, 'width')} at an equal budget with {runs}; a verdict needs "
        f"{WIDTHS_WITH_REPLICATES} widths with replicates (that leave at least "
        f"{MINIMUM_NOISE_DF} degrees of freedom), or {WIDTHS_WITH_ONE_REPLICATE} widths with one",
        means.widths,
        means.replicates,
    )


@dataclass(frozen=True)
class _Noise:
    """What the means scatter by about each curve, in units of `covariance`."""

    variance: Floats  # [K]
    df: int
    covariance: Floats  # [W, W]
    source: NoiseFrom
    misfit: float | None


def _fit(means: WidthMeans, replicated: bool) -> tuple[CurveFits, _Noise]:
    """Every shape fitted and weighted, with the noise about it."""
    covariance = means.covariance if replicated else np.eye(means.widths)
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
            covariance, within, within_df = np.eye(means.widths), 0.0, 0
            coefficients, solve, residual = fit_shapes(u, means.mean, covariance)
        else:  # too few widths to use their scatter alone: the larger variance is the safe one
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
    return fits, _Noise(variance, spare if floor else df, covariance, source, misfit)


def _misfit(scatter: float, variance: float, spare: int, df: int) -> float:
    """p of the F-test that the best curve is off by no more than the replicates are.

    Two of the curve's parameters were chosen from a grid and are not counted: the test is slow
    to call a misfit, never quick.
    """
    return float(stats.f.sf(scatter / variance, spare, df))


@dataclass(frozen=True)
class _Resamples:
    """Draws of what the curve could as well have been."""

    at: Floats  # [B] u of the lowest loss within the grid
    lowest: Floats  # [B] nats
    fitted: Floats  # [B, W] nats


def _resample(means: WidthMeans, fits: CurveFits, noise: _Noise) -> _Resamples:
    # Shapes in proportion to their weights, without the noise of drawing them.
    steps = (np.arange(RESAMPLES) + 0.5) / RESAMPLES
    shape = np.minimum(np.searchsorted(np.cumsum(fits.weight), steps), len(SHAPES) - 1)
    rng = np.random.default_rng(0)
    scale = np.sqrt(noise.variance[shape] * noise.df / rng.chisquare(noise.df, RESAMPLES))
    normal = rng.standard_normal((RESAMPLES, means.widths))
    moved = scale[:, None] * (normal @ np.linalg.cholesky(noise.covariance).T)
    coefficients = fits.coefficients[shape] + np.einsum("bcw,bw->bc", fits.solve[shape], moved)
    at, value = lowest(shape, coefficients, fits.low, fits.high)
    design = basis(means.x - fits.centre)[shape]
    return _Resamples(at, value, np.einsum("bwc,bc->bw", design, coefficients))


def _lowest_of_mean(fits: CurveFits) -> tuple[float, float]:
    """u and loss at the minimum of the mean of all curves within the grid."""
    grid = np.linspace(fits.low, fits.high, 401)
    values = fits.loss(grid + fits.centre)
    i = int(np.argmin(values))
    if i in (0, len(grid) - 1):
        return float(grid[i]), float(values[i])
    found = optimize.minimize_scalar(
        lambda u: float(fits.loss(np.array([u + fits.centre]))[0]),
        bounds=(grid[i - 1], grid[i + 1]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.x), float(found.fun)


def _headline(
    excess: Floats, upper: Floats, admissible: NDArray[np.bool_], tolerance: float
) -> tuple[int | None, bool]:
    """The smallest admissible width bounded within tolerance, or the one of least excess."""
    good = np.flatnonzero(admissible & (upper < tolerance))
    if len(good):
        return int(good[0]), True
    if not admissible.any():
        return None, False
    return int(np.argmin(np.where(admissible, excess, np.inf))), False


def _over_headline(fitted: Floats, headline: int | None) -> Floats:
    """[W, 2] interval of each width's loss less that of the headline."""
    if headline is None:
        return np.full((fitted.shape[1], 2), np.nan)
    tail = (1 - CONFIDENCE) / 2
    differences = fitted - fitted[:, [headline]]
    return np.asarray(np.quantile(differences, [tail, 1 - tail], axis=0).T)


def _equivalent(over: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Widths whose difference from the headline may be zero, or is surely within tolerance."""
    low, high = over.T
    return np.asarray(((low <= 0) & (high >= 0)) | ((low > -tolerance) & (high < tolerance)))


def _judge(
    multiplier: Floats,
    support: float,
    below: float,
    above: float,
    headline: int | None,
    upper: Floats,
    tolerance: float,
) -> tuple[Obstacle | None, str]:
    smallest, largest = float(multiplier[0]), float(multiplier[-1])
    if support >= REQUIRED_SUPPORT:
        if headline is None:
            return "nothing admissible", "every width has a collapsed or diverged replicate"
        return None, f"{percent(support)} of resamples put the optimum strictly inside the grid"
    if np.all(upper < tolerance):
        return "all within tolerance", (
            f"no width from {multiple(smallest)} to {multiple(largest)} costs as much as "
            f"{tolerance:g} nats more than another: the loss does not decide between them"
        )
    if above >= CONFIDENCE:
        return "upper edge", f"the loss still falls at the largest width, {multiple(largest)}"
    if below >= CONFIDENCE:
        return "lower edge", f"the loss is lowest at the smallest width, {multiple(smallest)}"
    edges = [
        f"{percent(share)} put it at or {where}"
        for share, where in (
            (below, f"below {multiple(smallest)}"),
            (above, f"above {multiple(largest)}"),
        )
        if share >= 0.001
    ]
    short = np.floor(1000 * support) / 1000  # 97.95 % is not 98 %
    return "uncertain", (
        f"only {percent(short)} of resamples put the optimum strictly inside the grid, "
        f"{percent(REQUIRED_SUPPORT)} are needed ({', '.join(edges)})"
    )
