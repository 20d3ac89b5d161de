"""Power laws over widths, y = exp(intercept) * D^beta: least squares of ln y over width means.

`analysis.laws.law_errors` finds the error of the exponent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.laws.cells import usable_cells
from analysis.laws.law_errors import CONSTANT, ErrorTerm, errors_of, half_width
from analysis.refusal import Refusal
from analysis.replicates import CONFIDENCE, Floats, Interval, WidthMeans, width_means
from analysis.settings import WIDTHS_FOR_A_LAW


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law y = exp(intercept) * x^beta. Intervals are at 90 %; logarithms are natural."""

    beta: float  # the exponent, d ln y / d ln x
    intercept: float  # ln y at x = 1
    beta_interval: Interval
    intercept_interval: Interval
    interval_method: str  # in words: which errors the intervals include
    objective: float  # sum of squares of the residuals of ln y, over width means
    r_squared: float  # over width means; NaN where y is constant
    lack_of_fit_p: float | None  # F-test against replicate noise; None without replicates
    leave_one_out: Interval | None  # smallest and largest exponent with one width left out
    widths: int  # distinct x
    points: int  # cells of one width and one replicate
    replicates: int
    x_range: Interval
    mean_log_x: float
    spread_log_x: float  # sum of squares about the mean
    beta_errors: tuple[ErrorTerm, ...]  # independent, to be added in squares
    replicate_error: ErrorTerm | None  # of beta, from the replicates' slopes; None without them
    level_error: ErrorTerm  # of ln y on the law at the mean of ln x
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> points left out

    def predict(self, x: ArrayLike) -> Floats:
        """Return y on the law at x, of the same shape."""
        return np.asarray(np.exp(self.intercept + self.beta * np.log(np.asarray(x, float))))

    def band(self, x: ArrayLike) -> tuple[Floats, Floats]:
        """Return the lower and upper 90 % bound of the law at x; single runs scatter more."""
        away = np.log(np.asarray(x, float)) - self.mean_log_x
        slope = half_width(self.beta_errors, CONFIDENCE)
        half = np.hypot(self.level_error.half_width(CONFIDENCE), away * slope)
        centre = self.predict(x)
        return centre * np.exp(-half), centre * np.exp(half)

    @property
    def width_error(self) -> ErrorTerm:
        """The exponent's error from the scatter of the width means alone."""
        df = self.widths - 2
        return ErrorTerm(self.objective / df / self.spread_log_x, df)


def fit_power_law(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None = None
) -> PowerLaw | Refusal:
    """Fit y = exp(intercept) * x^beta by least squares of ln y over the means of equal x.

    Args:
        x: [n] widths, or any positive variable.
        y: [n] positive values, for example a rank in directions or a loss in nats.
        replicate: [n] labels. Points of one label are paired across widths: they share
            initialisation and data order. Without labels, points of equal x are plain repeats.

    Returns:
        The law, or a refusal where fewer than three widths can be used. Points without a logarithm
        or a label are counted in `excluded`, and so are repeats of one x and label, which enter as
        their mean.

    Example:
        >>> law = fit_power_law([64, 128, 256], [8.0, 16.0, 32.0])
        >>> law.beta, law.predict(512)  # 1.0 and 64.0, up to rounding
    """
    cells = usable_cells(x, y, replicate)
    found = cells.widths
    if (refusal := cells.too_few(WIDTHS_FOR_A_LAW, "a power law")) is not None:
        return refusal
    if float(np.ptp(cells.x)) < CONSTANT:
        return Refusal("the widths differ by no more than rounding", excluded=cells.excluded)
    means = None
    at, mean = np.sort(cells.x), cells.y[np.argsort(cells.x)]
    if found < len(cells.x):
        if (refusal := cells.too_large()) is not None:
            return refusal
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
    # One minus each width's leverage gives the exponent without that width in closed form.
    left = 1 - 1 / found - centred**2 / spread
    without = beta - centred * residual / spread / left
    errors = errors_of(cells, means, centred, objective)
    half = half_width(errors.beta, CONFIDENCE)
    if constant:  # the fitted slope of a constant y is rounding
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
    """Fit the law of soft rank / hard rank over the width.

    Its exponent is the soft rank's exponent minus the hard rank's. Both ranks come from the same
    spectra, so their errors are correlated; a fit of the ratio accounts for that. Arguments and
    result are as in `fit_power_law`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(soft_rank, float) / np.asarray(hard_rank, float)
    return fit_power_law(width, ratio, replicate)


def per_width(law: PowerLaw) -> PowerLaw:
    """Turn the law of a rank into the law of rank / D (utilisation).

    The exponent is the rank's minus 1 with the same residuals: intervals shift by 1, and only
    R squared is computed anew.
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
    """Return whether the 90 % interval of the exponent excludes zero."""
    low, high = law.beta_interval
    return low > 0 or high < 0


def lack_of_fit(means: WidthMeans, design: Floats) -> float | None:
    """Test whether width means follow a linear model within the noise of the replicates.

    Args:
        means: W width means with their replicate noise.
        design: [W, k] the model's regressors.

    Returns:
        The p-value of the F-test, or None where there is no replicate noise or W <= k.
    """
    spare = means.widths - design.shape[1]
    if means.variance is None or means.variance == 0 or spare < 1:
        return None
    # Whitening by the covariance of the means keeps the test exact for unbalanced designs.
    root = np.linalg.inv(np.linalg.cholesky(means.covariance))
    white, target = root @ design, root @ means.mean
    residual = target - white @ np.linalg.lstsq(white, target)[0]
    return float(stats.f.sf(residual @ residual / spare / means.variance, spare, means.df))


@dataclass(frozen=True)
class Elasticity:
    """The local exponent d ln y / d ln D between two widths."""

    low: float  # the smaller D
    high: float  # the larger D; equal to `low` for the slope at one width
    value: float
    interval: Interval | None  # 90 %; None where no noise can be estimated


@dataclass(frozen=True)
class LocalElasticity:
    """Local exponents of y over D: between neighbouring widths, and at the largest width."""

    steps: tuple[Elasticity, ...]  # between neighbours, in ascending order
    top: Elasticity  # at the largest width
    noise_from: str | None  # the source of the intervals' noise; None where there is none


def local_elasticity(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None = None
) -> LocalElasticity | Refusal:
    """Estimate d ln y / d ln D between neighbouring widths and at the largest width.

    The noise comes from the replicates. With one replicate it is the scatter of ln y about a
    quadratic in ln D, which takes five widths; intervals between neighbours then cover 97 %,
    because the scatter is in the steps too, and the interval at the largest width covers 90 %.
    The value at the largest width is the slope of that quadratic, or the last step's value where
    there are fewer than five widths.

    Args:
        x: [n] widths D.
        y: [n] positive values.
        replicate: [n] labels of the paired replicates.

    Returns:
        The elasticities, or a refusal where fewer than two widths can be used.
    """
    cells = usable_cells(x, y, replicate)
    refusal = cells.too_few(2, "an elasticity") or cells.too_large()
    if refusal is not None:
        return refusal
    means = width_means(cells.x, cells.y, cells.replicate)
    curve = np.vander(means.x - means.x[-1], 3)
    spare = means.widths - 3
    solve = np.linalg.pinv(curve)
    residual = means.mean - curve @ (solve @ means.mean)
    scatter = float(residual @ residual / spare) if spare >= 2 else None

    # Variance, degrees of freedom, and the covariance of the means per unit of that variance.
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
