"""The saturating law y = E + A x^-b, which falls to E (A > 0) or rises to it (A < 0).

Fitted by least squares of ln y over width means, like `analysis.laws.power_law`, from a grid of
starts for either sign of A. The fit assumes that y saturates; `analysis.laws.saturation` tests it.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.fit.batched_minimise import minimise
from analysis.fit.likelihood_profile import profile_ranges
from analysis.fit.log_sum_exp import LogSumExp
from analysis.laws.cells import usable_cells
from analysis.refusal import Refusal
from analysis.replicates import CONFIDENCE, Floats, Interval, width_means
from analysis.wording import percent, plural

#: Three parameters, and two degrees of freedom for their errors.
MINIMUM_WIDTHS = 5
#: A smaller E, as a share of the smallest y, is not distinguishable from 0.
UNSEEN = 1e-3
#: A start reached the minimum if its objective is at most this share above it.
REACHED = 1e-3

_EXPONENTS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0)
_SHARES = (0.02, 0.1, 0.3, 0.6, 0.9)  # of A x^-b at the smallest x: of E (rising) or of y (falling)


@dataclass(frozen=True)
class SaturatingLaw:
    """The fitted curve y = E + A x^-b. Intervals are at 90 %."""

    E: float  # the level that y tends to, in units of y
    A: float  # negative where y rises
    b: float
    intervals: Mapping[str, Interval]  # by the names E, A and b
    interval_method: str
    objective: float  # sum of squares of the residuals of ln y, over width means
    r_squared: float  # of ln y, over width means; NaN where y is constant
    starts: int
    share_at_best: float  # of the starts that reached the objective
    widths: int  # distinct x
    points: int  # cells of one x and one replicate
    warnings: tuple[str, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> points left out

    def predict(self, x: ArrayLike) -> Floats:
        """Return y on the curve at x, of the same shape."""
        return np.asarray(self.E + self.A * np.asarray(x, float) ** -self.b)


def fit_saturating_law(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None = None
) -> SaturatingLaw | Refusal:
    """Fit y = E + A x^-b by least squares of ln y over the means of equal x.

    Args:
        x: [n] widths, or any positive variable.
        y: [n] positive values.
        replicate: [n] labels of the paired replicates.

    Returns:
        The curve, or a refusal where fewer than five widths can be used. Points are left out,
        counted and averaged as in `fit_power_law`.
    """
    cells = usable_cells(x, y, replicate)
    refusal = cells.too_few(MINIMUM_WIDTHS, "a saturating law") or cells.too_large()
    if refusal is not None:
        return refusal
    means = width_means(cells.x, cells.y, cells.replicate)
    middle = means.x.mean()
    ends = [(sign, *_descend(sign, means.x - middle, means.mean)) for sign in (1.0, -1.0)]
    objectives = np.concatenate([objective for _, _, objective in ends])
    sign, thetas, own = min(ends, key=lambda end: end[2].min())
    theta, objective = thetas[np.argmin(own)], float(own.min())
    model = _model(sign, means.x - middle)
    total = float(np.sum((means.mean - means.mean.mean()) ** 2))
    spare = means.widths - 3
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, spare))
    # Fits that miss y by less than a relative 1e-9 are equally good.
    limit = objective * (1 + quantile**2 / spare) + 1e-18 * means.widths
    either_side = all(other.min() <= limit for _, _, other in ends)
    log_floor, log_coefficient, b = theta
    coefficient = sign * float(np.exp(log_coefficient + b * middle))
    at_one = np.array([log_floor, log_coefficient + b * middle, b])
    floors, exponents = profile_ranges(
        model, theta, means.mean, delta=np.inf, limit=limit, of=(0, 2)
    )
    (coefficients,) = profile_ranges(
        _model(sign, means.x), at_one, means.mean, delta=np.inf, limit=limit, of=(1,)
    )
    with np.errstate(over="ignore"):
        intervals = {
            "E": _ordered(np.exp(floors)),
            "A": _ordered(sign * np.exp(coefficients)),
            "b": _ordered(exponents),
        }
    floor = float(np.exp(log_floor))
    return SaturatingLaw(
        E=floor,
        A=coefficient,
        b=float(b),
        intervals=intervals,
        interval_method=f"profile of the objective, Student-t with {spare} degrees of freedom, "
        f"over {means.widths} width means",
        objective=objective,
        r_squared=1 - objective / total if total > 0 else float("nan"),
        starts=len(objectives),
        share_at_best=float(
            np.mean(objectives <= objective * (1 + REACHED) + 1e-18 * means.widths)
        ),
        widths=means.widths,
        points=len(cells.x),
        warnings=tuple(_warnings(floor, float(b), intervals, np.exp(means.mean), either_side)),
        excluded=cells.excluded,
    )


def _model(sign: float, log_x: Floats) -> LogSumExp:
    """ln(exp(theta_0) + sign exp(theta_1 - theta_2 ln x))."""
    ones = np.ones_like(log_x)
    return LogSumExp(
        factors=np.stack([ones, ones, -log_x]),
        term=np.array([0, 1, 1]),
        offset=np.zeros((2, len(log_x))),
        signs=np.array([1.0, sign]),
    )


def _descend(sign: float, log_x: Floats, log_y: Floats) -> tuple[Floats, Floats]:
    """End points [S, 3] and objectives [S] of all starts with one sign of A."""
    lowest = log_x.min()
    rows = []
    for b, share in itertools.product(_EXPONENTS, _SHARES):
        # At the smallest x, A x^-b is `share` of E (rising) or of the whole (falling).
        floor = log_y.max() if sign < 0 else float(log_y[np.argmin(log_x)]) + np.log1p(-share)
        part = np.log(share) if sign < 0 else np.log(share / (1 - share))
        rows.append([floor, floor + part + b * lowest, b])
    found = minimise(_model(sign, log_x), np.asarray(rows), log_y, delta=np.inf)
    return found.theta, found.objective


def _ordered(ends: Floats) -> Interval:
    return float(ends.min()), float(ends.max())


def _warnings(
    floor: float, b: float, intervals: Mapping[str, Interval], y: Floats, either_side: bool
) -> list[str]:
    found = []
    if either_side:
        found.append(
            "a curve with the other sign of A fits about as well: these data do not show that y "
            "levels off, and the intervals cover one sign only"
        )
    if b <= 0:
        found.append(f"b is {b:.3g}, not positive: y does not level off in these data")
    elif intervals["b"][0] <= 0.01:
        found.append("the interval of b reaches 0: these data do not show that y levels off")
    if floor < UNSEEN * y.min():
        found.append(
            f"E is below {percent(UNSEEN)} of every y: these data show no level that y tends to"
        )
    if any(np.isinf(bound) for ends in intervals.values() for bound in ends):
        names = [name for name, ends in intervals.items() if np.isinf(ends).any()]
        found.append(f"{plural(len(names), 'unbounded interval')}: {', '.join(names)}")
    return found
