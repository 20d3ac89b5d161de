"""The mean difference of two groups over widths, and its scatter over replicates.

The differences of the pairs follow y = width + replicate + noise. The replicate is the unit of
replication: what a seed does to all widths of a group alike does not average out over widths. The
error of the mean therefore comes from the scatter of the replicates' means over widths.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

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
    # Replicate effects sum to zero, so that a width's coefficient is its mean over replicates.
    effects = np.vstack([np.eye(R - 1), -np.ones((1, R - 1))])
    design = np.hstack([np.eye(W)[width_of], effects[replicate_of]])
    linked = R > 1 and np.linalg.matrix_rank(design) == W + R - 1
    if not linked:
        by_width = np.bincount(width_of, y) / np.bincount(width_of)
        unknown = np.full((W, 2), np.nan)
        mean = float(by_width.mean())
        return PairedDifference(at, by_width, mean, tuple(labels.tolist()), None, unknown, None)
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ y
    by_width, luck = found[:W], effects @ found[W:]
    variance = float(luck @ luck) / (R - 1)
    left, df = y - design @ found, len(y) - W - R + 1
    noise = float(left @ left) / df if df > 0 else None
    covariance = inverse[:W, :W]
    return PairedDifference(
        widths=at,
        by_width=by_width,
        mean=float(by_width.mean()),
        replicates=tuple(labels.tolist()),
        variance=variance,
        intervals=_intervals(by_width, covariance, variance / R, R - 1, noise, df),
        width_p=_same_everywhere(by_width, covariance, noise, df),
    )


def _intervals(
    by_width: Floats, covariance: Floats, of_mean: float, mean_df: int, noise: float | None, df: int
) -> Floats:
    """[W, 2] intervals of by_width: the error of their mean, and the noise of each width about it.

    Their squares are added, with Satterthwaite's degrees of freedom.
    """
    W = len(by_width)
    if W == 1:
        own, freedom = np.array([of_mean]), np.array([float(mean_df)])
    elif noise is None:
        return np.full((W, 2), np.nan)
    else:
        about = np.maximum(np.diag(covariance) - covariance.mean(), 0) * noise
        own = of_mean + about
        parts = of_mean**2 / mean_df + about**2 / df
        freedom = np.divide(own**2, parts, out=np.ones(W), where=parts > 0)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(own)
    return np.stack([by_width - half, by_width + half], axis=1)


def _same_everywhere(
    by_width: Floats, covariance: Floats, noise: float | None, df: int
) -> float | None:
    """The p-value of the F-test that all widths have the same difference."""
    W = len(by_width)
    if W == 1 or noise is None or noise <= 0:
        return None
    contrast = np.eye(W)[1:] - np.eye(W)[:1]
    apart = contrast @ by_width
    spread = contrast @ covariance @ contrast.T
    F = float(apart @ np.linalg.solve(spread, apart)) / (W - 1) / noise
    return float(stats.f.sf(F, W - 1, df))
