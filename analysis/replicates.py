"""One mean per width from paired replicates, and the noise between replicates.

A replicate fixes initialisation and data order for every width, so part of its deviation is common
to all widths. Least squares of y = width + replicate removes that part. The residual is the noise
of a comparison of widths, and a width that lacks a replicate is not biased by the others.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

#: Nominal coverage of every interval in `analysis`, unless stated otherwise.
CONFIDENCE = 0.90


@dataclass(frozen=True)
class WidthMeans:
    """Means of W widths, in ascending order of x."""

    x: Floats  # [W] distinct x
    mean: Floats  # [W] of y, adjusted for replicate effects
    covariance: Floats  # [W, W] of the means, in units of `variance`; I / R when balanced
    spread: Floats  # [W] variance of one observation, in units of `variance`; 1 for equal noise
    variance: float | None  # of one observation about width and replicate; None if df is 0
    df: int  # degrees of freedom of `variance`
    counts: NDArray[np.int64]  # [W] observations
    replicates: int  # distinct labels

    @property
    def widths(self) -> int:
        """Number of distinct x."""
        return len(self.x)


def width_means(
    x: ArrayLike, y: ArrayLike, replicate: ArrayLike, sd: ArrayLike = 1.0
) -> WidthMeans:
    """Average y over the replicates of each width.

    If no replicate links the widths (none ran at two of them), there is nothing to pair: the means
    are plain averages and the noise is that within widths.

    Args:
        x: [n] finite values, n >= 1, for example ln D.
        y: [n] finite values.
        replicate: [n] labels.
        sd: [n] noise of each observation, up to a common factor, equal within a width.
    """
    at = np.asarray(y, np.float64)
    weight = 1 / np.broadcast_to(np.asarray(sd, np.float64), at.shape)
    widths, width_of = np.unique(np.asarray(x, np.float64), return_inverse=True)
    labels, replicate_of = np.unique(np.asarray(replicate), return_inverse=True)
    counts = np.bincount(width_of, minlength=len(widths)).astype(np.int64)
    spread = np.bincount(width_of, 1 / weight**2) / counts
    design = None
    if len(labels) > 1:
        by_width = np.eye(len(widths))[width_of]
        design = np.hstack([by_width, _effects(replicate_of, len(labels))])
    if design is None or np.linalg.matrix_rank(design) < design.shape[1]:
        mean = np.bincount(width_of, at) / counts
        left, df = weight * (at - mean[width_of]), len(at) - len(widths)
        return WidthMeans(
            x=widths,
            mean=mean,
            covariance=np.diag(spread / counts),
            spread=spread,
            variance=float(left @ left / df) if df > 0 else None,
            df=df,
            counts=counts,
            replicates=len(labels),
        )
    solve = np.linalg.pinv(weight[:, None] * design) * weight
    residual = weight * (at - design @ (solve @ at))
    df = len(at) - design.shape[1]
    keep = solve[: len(widths)]
    return WidthMeans(
        x=widths,
        mean=keep @ at,
        covariance=(keep / weight) @ (keep / weight).T,
        spread=spread,
        variance=float(residual @ residual / df) if df > 0 else None,
        df=max(df, 0),
        counts=counts,
        replicates=len(labels),
    )


def _effects(replicate_of: NDArray[np.intp], count: int) -> Floats:
    """[n, count - 1] columns of replicate effects that sum to zero."""
    columns = np.vstack([np.eye(count - 1), -np.ones(count - 1)])
    effects: Floats = columns[replicate_of]
    return effects
