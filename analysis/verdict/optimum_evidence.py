"""Evidence for an optimum inside the grid that stays valid however often the data are looked at.

Whoever judges a sweep, adds replicates, and judges again until a width is recommended finds an
optimum where there is none more often than one judgement would. The e-value of this module does not
have that fault: if the loss has no optimum inside the grid, the probability that it ever reaches
1/a, over any number of looks and any rule for what to run next, is at most a (Ville's inequality).

It is the likelihood of the losses under a mixture of bowls, divided by their largest likelihood
under any loss that only falls or only rises over the widths (universal inference, Wasserman,
Ramdas and Balakrishnan 2020, with a mixture in place of the split). The level of each replicate and
the noise are eliminated by invariance: only the differences within a replicate enter, up to their
scale (Perez-Ortiz, Lardy, de Heide and Gruenwald 2024).
"""

from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from analysis.replicates import Floats

#: Slopes p and q of the bowls E + a m^-p + b m^q of the mixture.
RATES = (0.25, 1.0, 3.0)
#: Positions of the optima, in shares of the grid's range of ln m.
POSITIONS = (0.2, 0.35, 0.5, 0.65, 0.8)
#: Heights of the bowls: root of the mean squared deviation over the runs, times the root of their
#: number, in units of the noise of one run. Below the first a bowl cannot be told from noise.
HEIGHTS = (4.0, 6.0, 9.0, 14.0, 24.0, 48.0)
#: Nodes of the quadrature over the unknown scale of the noise.
NODES = 40


def log_evidence(
    log_m: ArrayLike,
    loss: ArrayLike,
    replicate: ArrayLike,
    *,
    sd: ArrayLike = 1.0,
    noise_ss: float = 0.0,
    noise_df: int = 0,
) -> float:
    """Return ln of the e-value for an optimum inside the grid against every monotone loss.

    Args:
        log_m: [n] ln(D / d_model) of the runs.
        loss: [n] final losses, nats.
        replicate: [n] labels of the paired replicates.
        sd: [n] noise of each run, up to a common factor.
        noise_ss: sum of squares of earlier residuals on the same scale, nats squared.
        noise_df: their degrees of freedom.

    Returns:
        0 where the data cannot tell (fewer than three widths in every replicate).
    """
    x, y = np.asarray(log_m, float), np.asarray(loss, float)
    weight = 1 / np.broadcast_to(np.asarray(sd, float), x.shape)
    widths, width_of = np.unique(x, return_inverse=True)
    basis = _within_replicates(np.asarray(replicate), weight)
    if len(widths) < 3 or basis.shape[1] < 1:
        return 0.0
    z = basis.T @ (weight * (y - y.mean()))
    at_widths = basis.T @ (weight[:, None] * np.eye(len(widths))[width_of])  # [d, W]
    total = float(np.sqrt(z @ z + noise_ss))
    df = len(z) + noise_df
    if total <= 0 or df < 2:
        return 0.0
    bowls = at_widths @ _bowls(widths)  # [d, K]
    size = np.linalg.norm(bowls, axis=0)
    seen = size > 1e-9
    slope = (z @ bowls[:, seen]) / (size[seen] * total)  # cosine of the data and each bowl
    heights = np.asarray(HEIGHTS)
    each = _log_density(np.outer(heights, slope), heights[:, None], df)
    bowl = float(np.logaddexp.reduce(each.ravel()) - np.log(each.size))
    steps = at_widths @ np.tril(np.ones((len(widths), len(widths))))[:, 1:]
    monotone = max(_best_monotone(steps, z, total, df), _best_monotone(-steps, z, total, df))
    return bowl - monotone


def _within_replicates(replicate: np.ndarray, weight: Floats) -> Floats:
    """[n, d] orthonormal basis of the weighted differences within replicates."""
    labels, of = np.unique(replicate, return_inverse=True)
    levels = weight[:, None] * np.eye(len(labels))[of]
    left, _, _ = np.linalg.svd(levels, full_matrices=True)
    return np.asarray(left[:, len(labels) :])


def _bowls(widths: Floats) -> Floats:
    """[W, K] bowls of the mixture at ln m [W]."""
    low, high = float(widths[0]), float(widths[-1])
    rows = []
    for position in POSITIONS:
        u = widths - (low + position * (high - low))
        rows += [
            (np.expm1(-p * u) / p + np.expm1(q * u) / q) / (p + q) for p in RATES for q in RATES
        ]
    return np.array(rows).T


@cache
def _hermite() -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.hermite.hermgauss(NODES)
    return nodes, np.log(weights) + nodes**2


def _log_density(cosine: ArrayLike, height: ArrayLike, df: int) -> Floats:
    """ln density of the scale-free data at a standardised mean, over that at mean 0.

    Args:
        cosine: mean's size times the cosine of the angle between data and mean.
        height: the size of the mean, in units of the noise.
        df: dimension of the data and the degrees of freedom of earlier residuals.

    With T the size of the data, the scale s is integrated out over ds/s: the integral over
    t = T/s of t^(df-1) exp(-t^2/2 + t cosine) times exp(-height^2/2).
    """
    c = np.asarray(cosine, float)
    return _log_integral(c, df) - _log_integral(np.zeros(1), df) - np.asarray(height) ** 2 / 2


def _log_integral(c: Floats, df: int) -> Floats:
    mode = (c + np.sqrt(c**2 + 4 * (df - 1))) / 2
    width = 1 / np.sqrt(1 + (df - 1) / mode**2)
    nodes, log_weight = _hermite()
    t = mode[..., None] + np.sqrt(2) * width[..., None] * nodes
    with np.errstate(divide="ignore", invalid="ignore"):
        log_f = np.where(t > 0, (df - 1) * np.log(t) - t**2 / 2 + c[..., None] * t, -np.inf)
    return np.asarray(np.logaddexp.reduce(log_f + log_weight, axis=-1) + np.log(np.sqrt(2) * width))


def _best_monotone(steps: Floats, z: Floats, total: float, df: int) -> float:
    """Largest ln density of the data under a monotone loss, over that under a flat one."""
    coefficients, _ = optimize.nnls(steps, z)
    cosine = float(np.linalg.norm(steps @ coefficients)) / total
    if cosine <= 0:
        return 0.0

    def below(height: float) -> float:
        return -float(_log_density(np.array([height * cosine]), height, df)[0])

    # At large df the best height is that of the least-squares fit.
    guess = np.sqrt(df) * cosine / np.sqrt(max(1 - cosine**2, 1e-12))
    found = optimize.minimize_scalar(below, bounds=(0, 3 * guess + 1), method="bounded")
    return max(0.0, -float(found.fun))
