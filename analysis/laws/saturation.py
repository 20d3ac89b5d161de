"""Does a law end? A break in ln D beyond which y is flat, against the pure power law.

    ln y = a + b ln D                    the power law
    ln y = a + b min(ln D, ln break)     the same, flat from the break on

The likelihood ratio of the two has no textbook distribution (under the power law there is no break
to estimate), so it is drawn: samples of width means from the fitted power law, each fitted both
ways. The noise is the scatter of the width means about the power law, which if there is a plateau
is too large and makes the test careful. AICc, the usual choice, has no power with so few widths.

A rejection says that growth ends as it does at a plateau; a gentle bend is rejected too. No
rejection says nothing where the power is low: benchmarks/law_coverage.py prints it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.laws.law_errors import (
    LARGEST_DESIGN,
    ROUNDING,
    design_size,
    too_large,
    usable_cells,
)
from analysis.replicates import CONFIDENCE, Floats, Interval, width_means

#: A plateau has two widths on it and two before it; below six widths nothing is left for noise.
MINIMUM_WIDTHS = 6
#: Beyond it the break's grid is no finer than the widths, and the power law's fit says it all.
MAXIMUM_WIDTHS = 64
#: p below which the power law is rejected.
SIGNIFICANCE = 0.05
RESAMPLES = 1999
#: Places of the break that are tried between two neighbouring widths.
PLACES = 8


@dataclass(frozen=True)
class Saturation:
    """The test and the flat-topped law it is about."""

    p: float
    saturates: bool  # the power law is rejected at SIGNIFICANCE
    onset: float  # D of the break in the best flat-topped law
    onset_interval: Interval  # 90 %; at either end it may lie beyond
    exponent: float  # of y below the break
    widths: int
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> points left out


@dataclass(frozen=True)
class Untestable:
    """Why nothing can be said."""

    reason: str
    excluded: Mapping[str, int] = field(default_factory=dict)


def judge_saturation(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None = None
) -> Saturation | Untestable:
    """Test [n] points against a plateau; needs six widths. The same for the same input."""
    cells = usable_cells(x, y, replicate)
    found = len(np.unique(cells.x))
    if not MINIMUM_WIDTHS <= found <= MAXIMUM_WIDTHS:
        return Untestable(
            f"not testable: a plateau is looked for among {MINIMUM_WIDTHS} to {MAXIMUM_WIDTHS} "
            f"widths and there are {found}",
            cells.excluded,
        )
    if design_size(cells, found) > LARGEST_DESIGN:
        return Untestable(too_large(cells, found), cells.excluded)
    means = width_means(cells.x, cells.y, cells.replicate)
    breaks, flat_topped = _flat_topped(means.x)
    line = _bases(means.x[None, :])

    # About the mean at each width: sums of squares do not drown in the level of y.
    observed = means.mean - means.mean.mean()
    slope = means.x - means.x.mean()
    fitted = slope * (slope @ observed) / (slope @ slope)
    scatter = float(np.sqrt(np.sum((observed - fitted) ** 2) / (found - 2)))
    rng = np.random.default_rng(0)
    draws = fitted + scatter * rng.standard_normal((RESAMPLES, found))
    sums = _left(np.vstack([observed, draws]), flat_topped)  # [1 + RESAMPLES, G]
    ratio = _left(np.vstack([observed, draws]), line)[:, 0] / sums.min(axis=1)
    exact = scatter**2 <= ROUNDING  # on the power law but for rounding, which has no break
    p = 1.0 if exact else float(np.mean(ratio >= ratio[0]))

    left = sums[0]
    best = int(np.argmin(left))
    onset = float(breaks[best])
    hinge = np.minimum(means.x, onset)
    likely = breaks[left <= left[best] * (1 + 2 * _f_quantile(found - 3) / (found - 3))]
    return Saturation(
        p=p,
        saturates=p < SIGNIFICANCE,
        onset=float(np.exp(onset)),
        onset_interval=(float(np.exp(likely.min())), float(np.exp(likely.max()))),
        exponent=float(np.polyfit(hinge, means.mean, 1)[0]),
        widths=found,
        excluded=cells.excluded,
    )


def _flat_topped(x: Floats) -> tuple[Floats, Floats]:
    """Breaks [G] from the second to the last but one of x [W], and their bases [G, W, 2]."""
    inner = x[1:-1]
    steps = np.arange(PLACES) / PLACES
    between = (inner[:-1, None] + np.diff(inner)[:, None] * steps).ravel()
    breaks = np.append(between, inner[-1])
    return breaks, _bases(np.minimum(x, breaks[:, None]))


def _bases(regressor: Floats) -> Floats:
    """Orthonormal bases [G, W, 2] of a constant and each regressor [G, W]."""
    bases: Floats = np.linalg.qr(np.stack([np.ones_like(regressor), regressor], axis=2))[0]
    return bases


def _left(y: Floats, bases: Floats) -> Floats:
    """Sums of squares [B, G] that the bases [G, W, 2] leave of y [B, W]; above zero."""
    parts = y @ bases.transpose(1, 0, 2).reshape(y.shape[1], -1)  # [B, 2 G]
    explained = np.sum(parts.reshape(len(y), -1, 2) ** 2, axis=2)
    total = np.sum(y**2, axis=1, keepdims=True)
    least = np.finfo(float).eps * np.maximum(total, ROUNDING)
    left: Floats = np.maximum(total - explained, least)
    return left


def _f_quantile(df: int) -> float:
    """Upper 10 % point of F with two and `df` degrees of freedom.

    Two, for the slope below the break moves with it: with one, intervals of the break cover 80 %.
    """
    return float(special.fdtri(2, df, CONFIDENCE))
