"""A law that levels off: y = E + A x^-b, falling to E (A > 0) or rising to it (A < 0).

Plain least squares of ln y over width means, as the power law is fitted
(`analysis.laws.power_law`), from a grid of starts on either sign of A. Whether a rank saturates at
all is another question, which `analysis.laws.saturation` tests; here the curve is assumed and its
parameters are wanted.
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
from analysis.laws.law_errors import (
    LARGEST_DESIGN,
    design_size,
    too_large,
    usable_cells,
)
from analysis.laws.power_law import Refusal
from analysis.replicates import CONFIDENCE, Floats, Interval, width_means
from analysis.wording import percent, plural

#: Three parameters, and two widths to spare for their errors.
MINIMUM_WIDTHS = 5
#: Share of y below which E, where it is largest, is not seen.
UNSEEN = 1e-3
#: A start has reached the objective when it ends within this share above it.
REACHED = 1e-3

_EXPONENTS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0)
_SHARES = (0.02, 0.1, 0.3, 0.6, 0.9)  # of A x^-b in E, or in the whole, at the smallest x


@dataclass(frozen=True)
class SaturatingLaw:
    """The fitted curve. Intervals are at 90 %."""

    E: float
    A: float  # negative where y rises
    b: float
    intervals: Mapping[str, Interval]
    interval_method: str
    objective: float  # sum of squares of the residuals of ln y, over width means
    r_squared: float  # of ln y, over width means; NaN where y is the same at every width
    starts: int
    share_at_best: float  # of the starts
    widths: int
    points: int
    warnings: tuple[str, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> points left out

    def predict(self, x: ArrayLike) -> Floats:
        """y on the curve."""
        return np.asarray(self.E + self.A * np.asarray(x, float) ** -self.b)


def fit_saturating_law(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None = None
) -> SaturatingLaw | Refusal:
    """Fit [n] points; `replicate` labels the paired replicates.

    Points that have no logarithm or no label are left out and counted, and repeats of a cell are
    averaged, as in a power law. Fewer than five widths are refused.
    """
    cells = usable_cells(x, y, replicate)
    if (found := len(np.unique(cells.x))) < MINIMUM_WIDTHS:
        return Refusal(
            f"a curve that levels off has 3 parameters and needs at least {MINIMUM_WIDTHS} "
            f"distinct x; there {'is' if found == 1 else 'are'} {found}",
            cells.excluded,
        )
    if design_size(cells, found) > LARGEST_DESIGN:
        return Refusal(too_large(cells, found), cells.excluded)
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
    # Two fits of which both miss by less than 1e-9 of y are equally good.
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
    """Where the starts of one sign of A end, [S, 3] and [S]."""
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
            "a curve with A of the other sign fits about as well: these data do not show that y "
            "levels off, and the intervals are those of one side"
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
        found.append(f"{plural(len(names), 'interval')} without end: {', '.join(names)}")
    return found
