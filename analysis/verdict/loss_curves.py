"""Loss curves over the width: fit every shape of a grid, and weight the shapes by likelihood.

At an equal budget a narrow FFN and a wide one lose for different reasons:
L(m) = E + a m^-p + b m^q with m = D / d_model. A quadratic in ln m is the limit of small p and q.
It is symmetric about its optimum, but the loss need not be: fitted to a loss that falls steeply
and then stays level, it turns up at the last widths and invents an optimum.

The shape (p, q) is therefore averaged over. Every shape is fitted by least squares and weighted by
its likelihood, so every interval includes the uncertainty of the shape.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.replicates import Floats

#: Values of p and q. The largest lets one width at an end of the grid differ from all others. A
#: finer grid gives the same verdicts; a coarser one misses shapes at small noise.
RATES = (0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 6.5)
#: [K, 2] of (p, q); (0, 0) is the quadratic in ln m.
SHAPES: Floats = np.array([(p, q) for p in RATES for q in RATES])
#: [K] prior weight of each shape, uniform in ln(1 + rate), so gentle shapes weigh more. With equal
#: weights the bound on a width's excess is too low in three studies of ten.
PRIOR: Floats = 1 / np.prod(1 + SHAPES, axis=1)
#: Power of the likelihood in a shape's weight. Below 1, because no shape is exactly true: at 1 the
#: 90 % intervals of skewed bowls cover as little as 81 %.
TEMPER = 0.8
#: Residuals below this share of the losses are rounding.
ROUNDING = 1e-15


@dataclass(frozen=True)
class CurveFits:
    """All K shapes fitted to W width means."""

    centre: float  # ln m that `basis` is centred on
    low: float  # ln m of the smallest width, minus the centre
    high: float  # ln m of the largest width, minus the centre
    coefficients: Floats  # [K, 3] of `basis`, nats per token
    solve: Floats  # [K, 3, W] matrix from means to coefficients
    residual: Floats  # [K] sums of squares, in units of the means' covariance
    weight: Floats  # [K] of each shape; sums to 1

    def loss(self, log_m: Floats) -> Floats:
        """Return the weighted mean of all curves, [n], at ln m [n]; nats per token."""
        each = basis(log_m - self.centre) @ self.coefficients[:, :, None]
        return np.asarray(self.weight @ each[:, :, 0])

    @property
    def best(self) -> int:
        """Index of the shape with the largest weight."""
        return int(np.argmax(self.weight))


def fit_shapes(log_m: Floats, means: Floats, covariance: Floats) -> tuple[Floats, Floats, Floats]:
    """Fit every shape by least squares.

    Args:
        log_m: [W] centred ln m.
        means: [W] losses.
        covariance: [W, W] of the means, up to a factor.

    Returns:
        Coefficients [K, 3], the matrix from means to coefficients [K, 3, W], and residual sums of
        squares [K] in units of the covariance.
    """
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    white = root @ basis(log_m)  # [K, W, 3]
    solve = np.linalg.pinv(white) @ root
    coefficients = solve @ means
    left = root @ means - (white @ coefficients[:, :, None])[:, :, 0]
    residual: Floats = np.sum(left**2, axis=1)
    return coefficients, np.asarray(solve), residual


def shape_weights(residual: Floats, noise: float, df: int, scale: float) -> Floats:
    """Weight each shape by its prior times the power TEMPER of its t likelihood.

    Args:
        residual: [K] residual sums of squares.
        noise: sum of squares of the replicates, added to each residual.
        df: degrees of freedom of residual and noise together.
        scale: size of the losses, which sets the level of rounding.

    Returns:
        [K] weights that sum to 1.
    """
    total = residual + noise + max((ROUNDING * scale) ** 2, np.finfo(float).tiny)
    log_weight = np.log(PRIOR) - TEMPER * df / 2 * np.log(total)
    weight: Floats = np.exp(log_weight - log_weight.max())
    return np.asarray(weight / weight.sum())


def basis(u: Floats) -> Floats:
    """Return the functions 1, (e^-pu - 1)/p and (e^qu - 1)/q of centred ln m, u [n], as [K, n, 3].

    At a rate of 0 they are the limits -u and u; the shape (0, 0) has u and u^2 instead.
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
    """Find the minimum of each of B curves within [low, high].

    Args:
        shape: [B] index into SHAPES.
        coefficients: [B, 3] of `basis`.
        low: centred ln m of the smallest width.
        high: centred ln m of the largest width.

    Returns:
        Centred ln m [B] and loss [B] at the minimum. A curve that is not convex has it at an end.
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
    """Loss [B] of each of B curves at its own u [B]."""
    falls, rises = SHAPES[shape].T
    with np.errstate(divide="ignore", invalid="ignore"):
        falling = np.where(falls > 0, np.expm1(-falls * u) / falls, -u)
        rising = np.where(rises > 0, np.expm1(rises * u) / rises, u)
    falling = np.where(shape == _QUADRATIC, u, falling)
    rising = np.where(shape == _QUADRATIC, u**2, rising)
    return np.asarray(
        coefficients[:, 0] + coefficients[:, 1] * falling + coefficients[:, 2] * rising
    )
