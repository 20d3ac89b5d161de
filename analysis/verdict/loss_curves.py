"""Curves that a loss may follow along the width, and how well each fits.

At an equal budget a narrow FFN costs loss for one reason and a wide one for another:
L(m) = E + a m^-p + b m^q with m = D / d_model. A quadratic in ln m is the limit of small p and q;
it is symmetric about its optimum, and the loss need not be. Fitted to a loss that falls steeply
and then stays level it turns up at the last widths, and invents an optimum.

So the shape (p, q) is left open: every shape of a grid is fitted by least squares, and all enter
the judgement by how likely they make the losses. What cannot be told about the shape is thereby
part of every interval.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.replicates import Floats

#: p and q. The largest lets one width at an end of the grid stand apart from all others. Between
#: them: finer grids give the same verdicts, coarser ones miss shapes at small noise.
RATES = (0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 6.5)
#: [K, 2] of (p, q); (0, 0) is the quadratic in ln m.
SHAPES: Floats = np.array([(p, q) for p in RATES for q in RATES])
#: [K] what a shape weighs before any loss is seen: the gentler the more, evenly in ln(1 + rate).
#: Even weights make the bound on a width's excess too low, three times in ten.
PRIOR: Floats = 1 / np.prod(1 + SHAPES, axis=1)
#: Power of the likelihood in a shape's weight. Below one, because none of the shapes is the truth:
#: at 1 the intervals of skewed bowls cover down to 81 % where 90 % is promised.
TEMPER = 0.8
#: Residuals below this share of the losses are rounding.
ROUNDING = 1e-15


@dataclass(frozen=True)
class CurveFits:
    """Every shape fitted to W width means. Coefficients are of `basis` about `centre`."""

    centre: float  # ln m about which the curves are written
    low: float  # ln m of the smallest width less the centre
    high: float
    coefficients: Floats  # [K, 3]
    solve: Floats  # [K, 3, W] takes means to coefficients
    residual: Floats  # [K] sums of squares, in units of the means' covariance
    weight: Floats  # [K] of each shape; sums to 1

    def loss(self, log_m: Floats) -> Floats:
        """The weighted mean of all curves at [n] values of ln m."""
        each = basis(log_m - self.centre) @ self.coefficients[:, :, None]
        return np.asarray(self.weight @ each[:, :, 0])

    @property
    def best(self) -> int:
        """The shape of greatest weight."""
        return int(np.argmax(self.weight))


def fit_shapes(log_m: Floats, means: Floats, covariance: Floats) -> tuple[Floats, Floats, Floats]:
    """Least squares of every shape: coefficients [K, 3], solve [K, 3, W], residual [K].

    `log_m` is [W] about its centre, `means` [W], `covariance` [W, W] of the means, in any units.
    """
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    white = root @ basis(log_m)  # [K, W, 3]
    solve = np.linalg.pinv(white) @ root
    coefficients = solve @ means
    left = root @ means - (white @ coefficients[:, :, None])[:, :, 0]
    residual: Floats = np.sum(left**2, axis=1)
    return coefficients, np.asarray(solve), residual


def shape_weights(residual: Floats, noise: float, df: int, scale: float) -> Floats:
    """[K] weights: the t likelihood of each shape to the power of TEMPER, times its PRIOR.

    `residual` is [K]; `noise` the sum of squares that the replicates add, `df` the degrees of
    freedom of both; `scale` the size of the losses, against which rounding is judged.
    """
    total = residual + noise + max((ROUNDING * scale) ** 2, np.finfo(float).tiny)
    log_weight = np.log(PRIOR) - TEMPER * df / 2 * np.log(total)
    weight: Floats = np.exp(log_weight - log_weight.max())
    return np.asarray(weight / weight.sum())


def basis(u: Floats) -> Floats:
    """[K, n, 3] functions of u = ln m about a centre: 1, (e^-pu - 1)/p and (e^qu - 1)/q.

    A rate of 0 is the limit, -u or u; of the shape (0, 0) it is u and u^2.
    """
    falls, rises = SHAPES[:, :1], SHAPES[:, 1:]
    straight = np.broadcast_to(u, (len(SHAPES), len(u)))
    with np.errstate(divide="ignore", invalid="ignore"):
        falling = np.where(falls > 0, np.expm1(-falls * u) / falls, -straight)
        rising = np.where(rises > 0, np.expm1(rises * u) / rises, straight)
    falling[_QUADRATIC], rising[_QUADRATIC] = u, u**2
    return np.stack([np.ones_like(straight), falling, rising], axis=2)


def lowest(
    shape: NDArray[np.intp], coefficients: Floats, low: float, high: float
) -> tuple[Floats, Floats]:
    """Where each of B curves is lowest within [low, high], and its loss there: [B], [B].

    `shape` indexes SHAPES. A curve that is not convex is lowest at an end.
    """
    falls, rises = SHAPES[shape].T
    quadratic = shape == _QUADRATIC
    _, a, b = coefficients.T
    convex = np.where(quadratic, b > 0, (a > 0) & (b > 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # d/du: -a e^-pu + b e^qu = 0, or a + 2 b u = 0
        apart = np.where(quadratic, 1.0, falls + rises)
        vertex = np.where(quadratic, -a / (2 * b), np.log(a / b) / apart)
    ends = np.stack([_at(shape, coefficients, np.full(len(shape), end)) for end in (low, high)])
    at = np.where(
        convex,
        np.clip(np.where(convex, vertex, low), low, high),
        np.where(ends[0] <= ends[1], low, high),
    )
    return at, _at(shape, coefficients, at)


_QUADRATIC = 0


def _at(shape: NDArray[np.intp], coefficients: Floats, u: Floats) -> Floats:
    """The loss of each of B curves at its own u."""
    falls, rises = SHAPES[shape].T
    with np.errstate(divide="ignore", invalid="ignore"):
        falling = np.where(falls > 0, np.expm1(-falls * u) / falls, -u)
        rising = np.where(rises > 0, np.expm1(rises * u) / rises, u)
    falling = np.where(shape == _QUADRATIC, u, falling)
    rising = np.where(shape == _QUADRATIC, u**2, rising)
    return np.asarray(
        coefficients[:, 0] + coefficients[:, 1] * falling + coefficients[:, 2] * rising
    )
