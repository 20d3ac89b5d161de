"""The mean difference of two groups over widths, and its scatter over replicates.

The differences of the pairs follow y = width + replicate + noise. The replicate is the unit of
replication: what a seed does to all widths of a group alike does not average out over widths. The
error of the mean therefore comes from the scatter of the replicates' means over widths.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.replicates import CONFIDENCE, Floats


@dataclass(frozen=True)
class PairedDifference:
    """Differences of pairs [nats], at W widths in R replicates; some pairs may be missing."""

    widths: Floats  # [W] in ascending order
    by_width: Floats  # [W] mean differences, adjusted for missing pairs
    mean: float  # of by_width: every width counts alike
    replicates: tuple[int, ...]  # [R] labels
    variance: float | None  # over replicates, of a replicate's mean over widths; None where unknown
    intervals: Floats  # [W, 2] 90 % intervals of by_width, each for itself; NaN where unknown
    width_p: float | None  # F-test of one difference at all widths; None where it cannot be tested

    @property
    def df(self) -> int:
        """Degrees of freedom of `variance`."""
        return len(self.replicates) - 1


def paired_difference(
    widths: ArrayLike, replicates: ArrayLike, differences: ArrayLike
) -> PairedDifference:
    """Fit widths and replicates to the differences of pairs, by least squares.

    The variance is None with one replicate, and where no replicate links the widths.

    Args:
        widths: [n] width of each pair, n >= 1.
        replicates: [n] labels.
        differences: [n] nats per token.
    """
    y = np.asarray(differences, float)
    at, width_of = np.unique(np.asarray(widths, float), return_inverse=True)
    labels, replicate_of = np.unique(np.asarray(replicates), return_inverse=True)
    W, R = len(at), len(labels)
    model = _two_way(tuple(width_of.tolist()), tuple(replicate_of.tolist()))
    if model is None:
        by_width = np.bincount(width_of, y) / np.bincount(width_of)
        unknown = np.full((W, 2), np.nan)
        mean = float(by_width.mean())
        return PairedDifference(at, by_width, mean, tuple(labels.tolist()), None, unknown, None)
    found = model.solve @ y
    by_width, luck = found[:W], found[W:]
    luck = np.append(luck, -luck.sum())
    variance = float(luck @ luck) / (R - 1)
    left, df = y - model.design @ found, len(y) - W - R + 1
    noise = float(left @ left) / df if df > 0 else None
    return PairedDifference(
        widths=at,
        by_width=by_width,
        mean=float(by_width.mean()),
        replicates=tuple(labels.tolist()),
        variance=variance,
        intervals=_intervals(by_width, model.about, variance / R, R - 1, noise, df),
        width_p=_same_everywhere(by_width, model.apart, noise, df),
    )


@dataclass(frozen=True)
class _TwoWay:
    """Least squares of y = width + replicate for one pattern of n pairs."""

    design: Floats  # [n, W + R - 1]; the effects of the replicates sum to zero
    solve: Floats  # [W + R - 1, n]: the means of the widths, and all effects but the last
    about: Floats  # [W] variance of a width's mean about that of all widths, per unit of noise
    apart: Floats  # [W, W]: the sum of squares between widths is by_width' apart by_width


@lru_cache(maxsize=256)
def _two_way(width_of: tuple[int, ...], replicate_of: tuple[int, ...]) -> _TwoWay | None:
    """The model of a pattern of pairs; None with one replicate, and if none links the widths."""
    W, R = max(width_of) + 1, max(replicate_of) + 1
    effects = np.vstack([np.eye(R - 1), -np.ones((1, R - 1))])
    design = np.hstack([np.eye(W)[list(width_of)], effects[list(replicate_of)]])
    if R == 1 or np.linalg.matrix_rank(design) < W + R - 1:
        return None
    inverse = np.asarray(np.linalg.inv(design.T @ design), np.float64)
    covariance = inverse[:W, :W]
    about = np.maximum(np.diag(covariance) - covariance.mean(), 0)
    contrast = np.eye(W)[1:] - np.eye(W)[:1]
    spread = contrast @ covariance @ contrast.T
    apart = contrast.T @ np.linalg.solve(spread, contrast) if W > 1 else np.zeros((1, 1))
    return _TwoWay(design, inverse @ design.T, about, apart)


def _intervals(
    by_width: Floats, about: Floats, of_mean: float, mean_df: int, noise: float | None, df: int
) -> Floats:
    """[W, 2] intervals of by_width: the error of their mean, and the noise of each width about it.

    Their squares are added, with Satterthwaite's degrees of freedom.
    """
    W = len(by_width)
    if noise is None:
        if W > 1:
            return np.full((W, 2), np.nan)
        own, freedom = np.array([of_mean]), np.array([float(mean_df)])
    else:
        own = of_mean + about * noise
        parts = of_mean**2 / mean_df + (about * noise) ** 2 / df
        freedom = np.divide(own**2, parts, out=np.ones(W), where=parts > 0)
    half = special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(own)
    return np.stack([by_width - half, by_width + half], axis=1)


def _same_everywhere(by_width: Floats, apart: Floats, noise: float | None, df: int) -> float | None:
    """The p-value of the F-test that all widths have the same difference."""
    W = len(by_width)
    if W == 1 or noise is None or noise <= 0:
        return None
    F = float(by_width @ apart @ by_width) / (W - 1) / noise
    return float(special.fdtrc(W - 1, df, max(F, 0.0)))
