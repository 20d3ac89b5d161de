"""Power laws against the width, y = exp(intercept) * D^beta, with honest intervals.

Least squares of ln y on ln D over width means. Where the error of the exponent comes from is
judged in `analysis.laws.law_errors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.laws.law_errors import (
    CONSTANT,
    LARGEST_DESIGN,
    ErrorTerm,
    design_size,
    errors_of,
    half_width,
    too_large,
    usable_cells,
)
from analysis.replicates import CONFIDENCE, Floats, Interval, WidthMeans, width_means
from analysis.settings import WIDTHS_FOR_A_LAW


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
    leave_one_out: Interval | None  # least and largest exponent with one width left out
    widths: int
    points: int
    replicates: int
    x_range: Interval
    mean_log_x: float
    spread_log_x: float  # sum of squares about the mean
    beta_errors: tuple[ErrorTerm, ...]
    replicate_error: ErrorTerm | None  # of the exponent from the replicates' own; None without
    level_error: ErrorTerm  # of ln y on the law at the mean of ln D
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> points left out

    def predict(self, x: ArrayLike) -> Floats:
        """y on the law."""
        return np.asarray(np.exp(self.intercept + self.beta * np.log(np.asarray(x, float))))

    def band(self, x: ArrayLike) -> tuple[Floats, Floats]:
        """The 90 % band of the law itself (not of single measurements) at x."""
        away = np.log(np.asarray(x, float)) - self.mean_log_x
        slope = half_width(self.beta_errors, CONFIDENCE)
        half = np.hypot(self.level_error.half_width(CONFIDENCE), away * slope)
        centre = self.predict(x)
        return centre * np.exp(-half), centre * np.exp(half)

    @property
    def width_error(self) -> ErrorTerm:
        """Of the exponent, from the scatter of the width means."""
        df = self.widths - 2
        return ErrorTerm(self.objective / df / self.spread_log_x, df)


@dataclass(frozen=True)
class Refusal:
    """Why there is no law."""

    reason: str
    excluded: Mapping[str, int] = field(default_factory=dict)


def fit_power_law(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None = None
) -> PowerLaw | Refusal:
    """Fit y = exp(intercept) * x^beta to [n] points; `replicate` labels the paired replicates.

    Points that have no logarithm or no label are left out and counted; several points of one x
    and one replicate are one cell and enter as their mean, the surplus counted. Without labels,
    points of one x are repeats that nothing pairs. Fewer than three widths are refused.
    """
    cells = usable_cells(x, y, replicate)
    found = len(np.unique(cells.x))
    if found < WIDTHS_FOR_A_LAW:
        return Refusal(
            f"a law needs at least {WIDTHS_FOR_A_LAW} widths and there are {found}", cells.excluded
        )
    if float(np.ptp(cells.x)) < CONSTANT:
        return Refusal("the widths differ by no more than rounding", cells.excluded)
    means = None
    at, mean = np.sort(cells.x), cells.y[np.argsort(cells.x)]
    if found < len(cells.x):
        if design_size(cells, found) > LARGEST_DESIGN:
            return Refusal(too_large(cells, found), cells.excluded)
        means = width_means(cells.x, cells.y, cells.replicate)
        at, mean = means.x, means.mean
    centred = at - at.mean()
    spread = float(centred @ centred)
    beta = float(centred @ mean / spread)
    intercept = float(mean.mean() - beta * at.mean())
    residual = mean - intercept - beta * at
    objective = float(residual @ residual)
    total = float(np.sum((mean - mean.mean()) ** 2))
    constant = float(np.ptp(mean)) <= CONSTANT
    # What a width's own value does not fix of the law there: the exponent without that width.
    left = 1 - 1 / found - centred**2 / spread
    without = beta - centred * residual / spread / left
    errors = errors_of(cells, means, centred, objective)
    half = half_width(errors.beta, CONFIDENCE)
    if constant:  # what rounding makes of a y that never differs is no growth
        half += abs(beta)
    around = float(np.hypot(errors.level.half_width(CONFIDENCE), at.mean() * half))
    return PowerLaw(
        beta=beta,
        intercept=intercept,
        beta_interval=(beta - half, beta + half),
        intercept_interval=(intercept - around, intercept + around),
        interval_method=errors.method,
        objective=objective,
        r_squared=float("nan") if constant else 1 - objective / total,
        lack_of_fit_p=errors.lack_of_fit_p,
        leave_one_out=(
            (float(without.min()), float(without.max())) if found > WIDTHS_FOR_A_LAW else None
        ),
        widths=found,
        points=len(cells.x),
        replicates=cells.replicates,
        x_range=cells.x_range,
        mean_log_x=float(at.mean()),
        spread_log_x=spread,
        beta_errors=errors.beta,
        replicate_error=errors.over_replicates,
        level_error=errors.level,
        excluded=cells.excluded,
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


def per_width(law: PowerLaw) -> PowerLaw:
    """The law of y / D: the exponent of a utilisation is that of its rank less one, exactly.

    The residuals are the same, so every interval shifts; only the share explained is another.
    """
    beta = law.beta - 1
    low, high = law.beta_interval
    outer = law.leave_one_out
    total = beta**2 * law.spread_log_x + law.objective
    return replace(
        law,
        beta=beta,
        beta_interval=(low - 1, high - 1),
        leave_one_out=None if outer is None else (outer[0] - 1, outer[1] - 1),
        r_squared=1 - law.objective / total if total > 0 else float("nan"),
    )


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
    cells = usable_cells(x, y, replicate)
    found = len(np.unique(cells.x))
    if found < 2:
        return Refusal("an elasticity needs at least 2 widths", cells.excluded)
    if design_size(cells, found) > LARGEST_DESIGN:
        return Refusal(too_large(cells, found), cells.excluded)
    means = width_means(cells.x, cells.y, cells.replicate)
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
        half = ErrorTerm(variance * float(weights @ covariance @ weights), df).half_width(
            CONFIDENCE
        )
        return Elasticity(low, high, value, (value - half, value + half))

    at = np.exp(means.x)
    steps = []
    for i in range(means.widths - 1):
        weights = np.zeros(means.widths)
        weights[i], weights[i + 1] = -1.0, 1.0
        steps.append(along(weights / (means.x[i + 1] - means.x[i]), at[i], at[i + 1]))
    top = along(solve[1], at[-1], at[-1]) if scatter is not None else steps[-1]
    return LocalElasticity(tuple(steps), top, noise_from)
