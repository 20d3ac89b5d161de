"""Test whether a quantity saturates: a power law against one that is flat beyond a break.

    ln y = a + b ln D                    the power law
    ln y = a + b min(ln D, ln break)     the same law, flat beyond the break

Under the power law there is no break to estimate, so the likelihood ratio has no standard
distribution. It is simulated: width means are drawn from the fitted power law and fitted both ways.
The noise of the draws is the scatter of the width means about the power law. A true plateau makes
that scatter too large, and the test conservative. AICc has no power with so few widths.

A rejection means that growth ends as at a plateau; a gentle bend is rejected too. A test that does
not reject says little where its power is low: benchmarks/law_coverage.py prints the power.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.laws.cells import usable_cells
from analysis.laws.law_errors import ROUNDING
from analysis.refusal import Refusal
from analysis.replicates import CONFIDENCE, Floats, Interval, width_means

#: A break takes two widths on either side of it; two more leave degrees of freedom for the noise.
MINIMUM_WIDTHS = 6
#: With more widths the grid of breaks would be no finer than the widths themselves.
MAXIMUM_WIDTHS = 64
#: A smaller p rejects the power law.
SIGNIFICANCE = 0.05
RESAMPLES = 1999
#: Breaks tried between two neighbouring widths.
PLACES = 8


@dataclass(frozen=True)
class Saturation:
    """The result of the test, and the best law with a break."""

    p: float  # of the likelihood-ratio test; small: growth ends
    saturates: bool  # whether the power law is rejected at SIGNIFICANCE
    onset: float  # D of the break in the best law
    onset_interval: Interval  # 90 %; a bound at an end of the grid may lie beyond it
    exponent: float  # of y below the break
    widths: int
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> points left out


def judge_saturation(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None = None
) -> Saturation | Refusal:
    """Test y against a plateau at large x. The same input gives the same result.

    Args:
        x: [n] widths D.
        y: [n] positive values.
        replicate: [n] labels of the paired replicates.

    Returns:
        The test, or a refusal outside MINIMUM_WIDTHS to MAXIMUM_WIDTHS distinct widths.
    """
    cells = usable_cells(x, y, replicate)
    found = cells.widths
    if found > MAXIMUM_WIDTHS:
        return Refusal(
            f"a test for a plateau takes at most {MAXIMUM_WIDTHS} widths, and there are {found}",
            excluded=cells.excluded,
        )
    refusal = cells.too_few(MINIMUM_WIDTHS, "a test for a plateau") or cells.too_large()
    if refusal is not None:
        return refusal
    means = width_means(cells.x, cells.y, cells.replicate)
    breaks, flat_topped = _flat_topped(means.x)
    line = _bases(means.x[None, :])

    # Centred, because the level of y would swamp the sums of squares.
    observed = means.mean - means.mean.mean()
    slope = means.x - means.x.mean()
    fitted = slope * (slope @ observed) / (slope @ slope)
    scatter = float(np.sqrt(np.sum((observed - fitted) ** 2) / (found - 2)))
    rng = np.random.default_rng(0)
    draws = fitted + scatter * rng.standard_normal((RESAMPLES, found))
    sums = _left(np.vstack([observed, draws]), flat_topped)  # [1 + RESAMPLES, G]
    ratio = _left(np.vstack([observed, draws]), line)[:, 0] / sums.min(axis=1)
    exact = scatter**2 <= ROUNDING  # on the power law up to rounding: there is no break
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
    """Breaks [G] between the second and the second-last of x [W], and their bases [G, W, 2]."""
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
    """Residual sums of squares [B, G] of y [B, W] on the bases [G, W, 2]; above zero."""
    parts = y @ bases.transpose(1, 0, 2).reshape(y.shape[1], -1)  # [B, 2 G]
    explained = np.sum(parts.reshape(len(y), -1, 2) ** 2, axis=2)
    total = np.sum(y**2, axis=1, keepdims=True)
    least = np.finfo(float).eps * np.maximum(total, ROUNDING)
    left: Floats = np.maximum(total - explained, least)
    return left


def _f_quantile(df: int) -> float:
    """Upper 10 % point of F with 2 and `df` degrees of freedom.

    The slope below the break moves with the break, hence 2: with 1, intervals cover only 80 %.
    """
    return float(special.fdtri(2, df, CONFIDENCE))
