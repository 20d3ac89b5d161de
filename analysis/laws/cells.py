"""The points that a law over widths is fitted to: one value for every width and replicate."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.refusal import Refusal
from analysis.replicates import Floats, Interval

#: Largest number of floats in the design matrix of a fit. Each takes 8 bytes, in several copies.
LARGEST_DESIGN = 20_000_000


@dataclass(frozen=True)
class Cells:
    """One value for every width and replicate, in natural logarithms."""

    x: Floats  # [n] ln x
    y: Floats  # [n] ln y
    replicate: NDArray[np.intp]  # [n]
    x_range: Interval  # of x itself; NaN where there is no cell
    excluded: Mapping[str, int]  # reason -> points left out

    @property
    def widths(self) -> int:
        """Distinct x."""
        return len(np.unique(self.x))

    @property
    def replicates(self) -> int:
        """Distinct replicates."""
        return len(np.unique(self.replicate))

    def too_few(self, minimum: int, curve: str) -> Refusal | None:
        """Refuse a fit of `curve`, as a message calls it, to fewer than `minimum` widths."""
        found = self.widths
        if found >= minimum:
            return None
        there = f"there {'is' if found == 1 else 'are'} {found}" if found else "there are none"
        return Refusal(
            f"{curve} needs at least {minimum} widths, and {there}", excluded=self.excluded
        )

    def too_large(self) -> Refusal | None:
        """Refuse a fit whose design matrix, or covariance of the means, would not fit memory."""
        count, widths, replicates = len(self.x), self.widths, self.replicates
        size = count * (widths + replicates) if replicates > 1 else max(count, widths**2)
        if size <= LARGEST_DESIGN:
            return None
        return Refusal(
            f"{count} points at {widths} widths with {replicates} replicates do not fit the "
            "memory of one fit",
            "split them into groups, or average each width first",
            self.excluded,
        )


def usable_cells(x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None) -> Cells:
    """Merge points into cells, and count the points that cannot be used.

    Args:
        x: [n] widths.
        y: [n] values.
        replicate: [n] labels of the paired replicates. Several points of one width and label
            become one cell, their mean. Without labels every point is a cell of its own.

    Returns:
        The cells. Left out and counted are points where x or y is not finite or not positive, and
        points without a label.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    finite = np.isfinite(xs) & np.isfinite(ys)
    positive = finite & (np.where(finite, xs, 1) > 0) & (np.where(finite, ys, 1) > 0)
    labels = np.zeros(len(xs), np.intp)
    if replicate is not None:
        labels = pd.factorize(np.asarray(replicate))[0]
    labelled = labels >= 0
    usable = positive & labelled
    span = (float(xs[usable].min()), float(xs[usable].max())) if usable.any() else (np.nan, np.nan)
    log_x, log_y, labels = np.log(xs[usable]), np.log(ys[usable]), labels[usable]
    surplus = 0
    if replicate is not None and len(labels):
        pairs = np.stack([log_x, labels.astype(float)])
        (log_x, codes), cell, sizes = np.unique(
            pairs, axis=1, return_inverse=True, return_counts=True
        )
        surplus = len(log_y) - len(sizes)
        log_y, labels = np.bincount(cell, log_y) / sizes, codes.astype(np.intp)
    counts = {
        "not finite": int(np.sum(~finite)),
        "not positive": int(np.sum(finite & ~positive)),
        "no replicate label": int(np.sum(positive & ~labelled)),
        "repeats of a cell, averaged": surplus,
    }
    excluded = {reason: count for reason, count in counts.items() if count}
    return Cells(log_x, log_y, labels, span, excluded)
