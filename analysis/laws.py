"""Power laws of a rank against the width, y = exp(intercept) * D^beta, with honest intervals.

Least squares of ln y on ln D over width means. The interval of the exponent is Student's over
the width means (W - 2 degrees of freedom), whatever the number of replicates: it covers 89-91 %
at nominal 90 %, where a bootstrap over three seeds covers 77 %, because widths scatter around
the law by more than seeds do. With three or more replicates that ran at every width there is
also the t-interval over their own exponents; the wider of the two is reported and named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.replicates import CONFIDENCE, Floats, Interval, WidthMeans, width_means

#: A straight line through two points says nothing about its own error.
MINIMUM_WIDTHS = 3
#: Replicates needed for an interval over their exponents.
MINIMUM_REPLICATES = 3


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law. All intervals are at 90 %; logarithms are natural."""

    beta: float  # the exponent
    intercept: float  # ln y at D = 1
    beta_interval: Interval
    intercept_interval: Interval
    interval_method: str
    objective: float  # sum of squares of the residuals of ln y, over width means
    r_squared: float  # over width means; NaN where y is the same at every width
    lack_of_fit_p: float | None  # F-test against the replicates' noise; None without replicates
    widths: int
    points: int
    replicates: int
    x_range: Interval
    mean_log_x: float
    spread_log_x: float  # sum of squares about the mean
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> points left out

    def predict(self, x: ArrayLike) -> Floats:
        """y on the law."""
        return np.asarray(np.exp(self.intercept + self.beta * np.log(np.asarray(x, float))))

    def band(self, x: ArrayLike) -> tuple[Floats, Floats]:
        """The 90 % band of the law itself (not of single measurements) at x."""
        log_x = np.log(np.asarray(x, float))
        scale = np.sqrt(self.objective / (self.widths - 2))
        leverage = 1 / self.widths + (log_x - self.mean_log_x) ** 2 / self.spread_log_x
        half = _quantile(self.widths - 2) * scale * np.sqrt(leverage)
        centre = self.predict(x)
        return centre * np.exp(-half), centre * np.exp(half)


@dataclass(frozen=True)
class Refusal:
    """Why there is no law."""

    reason: str
    excluded: Mapping[str, int] = field(default_factory=dict)


def fit_power_law(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None = None
) -> PowerLaw | Refusal:
    """Fit y = exp(intercept) * x^beta to [n] points; `replicate` labels the paired replicates.

    Points that have no logarithm are left out and counted. Fewer than three widths are refused.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    labels = np.zeros(len(xs)) if replicate is None else np.asarray(replicate)
    usable, excluded = _usable(xs, ys)
    xs, ys, labels = xs[usable], ys[usable], labels[usable]
    found = len(np.unique(xs))
    if found < MINIMUM_WIDTHS:
        return Refusal(
            f"a law needs at least {MINIMUM_WIDTHS} widths and there are {found}", excluded
        )
    means = width_means(np.log(xs), np.log(ys), labels)
    centred = means.x - means.x.mean()
    spread = float(centred @ centred)
    beta = float(centred @ means.mean / spread)
    intercept = float(means.mean.mean() - beta * means.x.mean())
    residual = means.mean - intercept - beta * means.x
    objective = float(residual @ residual)
    total = float(np.sum((means.mean - means.mean.mean()) ** 2))

    df = means.widths - 2
    error = np.sqrt(objective / df)
    half = _quantile(df) * error / np.sqrt(spread)
    interval, method = (beta - half, beta + half), f"Student-t over {means.widths} width means"
    paired = _replicate_exponents(np.log(xs), np.log(ys), labels, means)
    if len(paired) >= MINIMUM_REPLICATES:
        middle = float(paired.mean())
        own = _quantile(len(paired) - 1) * float(paired.std(ddof=1)) / np.sqrt(len(paired))
        if own > half:
            interval = (middle - own, middle + own)
            method = f"Student-t over the exponents of {len(paired)} replicates"
    around = _quantile(df) * error * np.sqrt(1 / means.widths + means.x.mean() ** 2 / spread)
    return PowerLaw(
        beta=beta,
        intercept=intercept,
        beta_interval=(float(interval[0]), float(interval[1])),
        intercept_interval=(float(intercept - around), float(intercept + around)),
        interval_method=method,
        objective=objective,
        r_squared=1 - objective / total if total > 0 else float("nan"),
        lack_of_fit_p=lack_of_fit(means, np.vander(centred, 2)),
        widths=means.widths,
        points=len(xs),
        replicates=means.replicates,
        x_range=(float(xs.min()), float(xs.max())),
        mean_log_x=float(means.x.mean()),
        spread_log_x=spread,
        excluded=excluded,
    )


def fit_asymmetry(
    width: ArrayLike, soft_rank: ArrayLike, hard_rank: ArrayLike, replicate: ArrayLike | None = None
) -> PowerLaw | Refusal:
    """The law of soft/hard against width: its exponent is the soft exponent less the hard one.

    Both ranks come from the same spectra, so their errors go together; the ratio's own fit has
    the interval that two separate ones cannot give.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(soft_rank, float) / np.asarray(hard_rank, float)
    return fit_power_law(width, ratio, replicate)


def is_shown(law: PowerLaw) -> bool:
    """Whether the interval of the exponent excludes zero."""
    low, high = law.beta_interval
    return low > 0 or high < 0


def lack_of_fit(means: WidthMeans, design: Floats) -> float | None:
    """p-value of the F-test that width means follow `design` [W, k] but for replicate noise.

    None where nothing can be tested: no replicate noise, or no width to spare.
    """
    spare = means.widths - design.shape[1]
    if means.variance is None or means.variance == 0 or spare < 1:
        return None
    # Whitened by the covariance of the means, so that the test is exact when unbalanced too.
    root = np.linalg.inv(np.linalg.cholesky(means.covariance))
    white, target = root @ design, root @ means.mean
    residual = target - white @ np.linalg.lstsq(white, target)[0]
    return float(stats.f.sf(residual @ residual / spare / means.variance, spare, means.df))


@dataclass(frozen=True)
class Elasticity:
    """d ln y / d ln D between two widths; `interval` is None where no noise can be estimated."""

    low: float  # D
    high: float  # D
    value: float
    interval: Interval | None


@dataclass(frozen=True)
class LocalElasticity:
    """How fast y still grows with D, between neighbours and at the widest layer."""

    steps: tuple[Elasticity, ...]
    top: Elasticity
    noise_from: str | None


def local_elasticity(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None = None
) -> LocalElasticity | Refusal:
    """Local exponents of [n] points between neighbouring widths, and at the largest.

    The noise is that of the replicates; with one replicate it is the scatter of ln y about a
    quadratic in ln D, which needs five widths and makes the intervals between neighbours cover
    97 % (the scatter is in the steps too), the one at the top 90 %. The value at the top is the
    slope of that quadratic at the largest D, or that of the last step with fewer than five widths.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    labels = np.zeros(len(xs)) if replicate is None else np.asarray(replicate)
    usable, excluded = _usable(xs, ys)
    xs, ys, labels = xs[usable], ys[usable], labels[usable]
    if len(np.unique(xs)) < 2:
        return Refusal("an elasticity needs at least 2 widths", excluded)
    means = width_means(np.log(xs), np.log(ys), labels)
    curve = np.vander(means.x - means.x[-1], 3)
    spare = means.widths - 3
    solve = np.linalg.pinv(curve)
    residual = means.mean - curve @ (solve @ means.mean)
    scatter = float(residual @ residual / spare) if spare >= 2 else None

    # Per unit of noise variance, the covariance of the means: of replicates, or of single runs.
    noise: tuple[float, int, Floats] | None = None
    noise_from = None
    if means.variance is not None and means.df >= 2:
        noise, noise_from = (means.variance, means.df, means.covariance), "replicates"
    elif scatter is not None:
        noise, noise_from = (scatter, spare, np.eye(means.widths)), "scatter about a quadratic"

    def along(weights: Floats, low: float, high: float) -> Elasticity:
        value = float(weights @ means.mean)
        if noise is None:
            return Elasticity(low, high, value, None)
        variance, df, covariance = noise
        half = _quantile(df) * float(np.sqrt(variance * (weights @ covariance @ weights)))
        return Elasticity(low, high, value, (value - half, value + half))

    at = np.exp(means.x)
    steps = []
    for i in range(means.widths - 1):
        weights = np.zeros(means.widths)
        weights[i], weights[i + 1] = -1.0, 1.0
        steps.append(along(weights / (means.x[i + 1] - means.x[i]), at[i], at[i + 1]))
    top = along(solve[1], at[-1], at[-1]) if scatter is not None else steps[-1]
    return LocalElasticity(tuple(steps), top, noise_from)


def _usable(x: Floats, y: Floats) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which points have logarithms, and why the others have not."""
    finite = np.isfinite(x) & np.isfinite(y)
    positive = finite & (np.where(finite, x, 1) > 0) & (np.where(finite, y, 1) > 0)
    counts = {"not finite": int(np.sum(~finite)), "not positive": int(np.sum(finite & ~positive))}
    return positive, {reason: count for reason, count in counts.items() if count}


def _replicate_exponents(x: Floats, y: Floats, labels: NDArray[Any], means: WidthMeans) -> Floats:
    """Exponents of the replicates that ran at every width, each from its own points."""
    exponents = []
    for label in np.unique(labels):
        own = labels == label
        if len(np.unique(x[own])) == means.widths:
            centred = x[own] - x[own].mean()
            exponents.append(float(centred @ y[own] / (centred @ centred)))
    return np.asarray(exponents, float)


def _quantile(df: int) -> float:
    """Student's t that leaves 5 % on either side."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, df))
