"""What moves the exponent of a law, and by how much: the error terms behind its interval.

Three things do: the noise of single runs, widths that scatter about the law, and replicates that
each have a slope of their own (their data or initialisation suits wide layers more, or less).
Paired replicates tell them apart. Each of the last two is tested for, and where it shows
(p < 0.25) the interval is Student's over what then is independent: the width means (W - 2 degrees
of freedom), the replicates' exponents (R - 1), or both, their errors added in squares. Where
neither shows, all runs are one sample and their noise is pooled, which is worth many degrees of
freedom. Without replicates there is only the scatter of the widths.

Pooling after a preliminary test needs a lax level (0.25: Bozivich, Bancroft & Hartley, 1956). Over
all ratios of the three noises the 90 % intervals then cover 87-94 % at 4 to 8 widths with three or
more replicates (benchmarks/law_coverage.py). With two replicates, slopes that differ are seen too
late (83 %), with one never: the exponent is then that of these data and this initialisation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.replicates import Floats, Interval, WidthMeans

#: p below which a preliminary test forbids pooling.
POOLING_LEVEL = 0.25
#: Variance of ln y, relative differences of 1e-10, below which it is rounding and no noise.
ROUNDING = 1e-20
#: Differences of ln y over all points up to which y is one number but for rounding.
CONSTANT = 1e-12
#: Numbers in the design of a fit; beyond it memory ends (8 bytes each, a few copies).
LARGEST_DESIGN = 20_000_000


@dataclass(frozen=True)
class ErrorTerm:
    """One independent source of error: an estimated variance and its degrees of freedom."""

    variance: float
    df: int

    def half_width(self, confidence: float) -> float:
        """Of the two-sided Student interval."""
        return float(special.stdtrit(self.df, (1 + confidence) / 2) * np.sqrt(self.variance))


@dataclass(frozen=True)
class Cells:
    """One value for every x and replicate."""

    x: Floats  # [n] ln x
    y: Floats  # [n] ln y
    replicate: NDArray[np.intp]  # [n]
    x_range: Interval
    excluded: Mapping[str, int]

    @property
    def replicates(self) -> int:
        return len(np.unique(self.replicate))


def usable_cells(x: ArrayLike, y: ArrayLike, replicate: ArrayLike | None) -> Cells:
    """The points that can be used, and why the others cannot."""
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


def design_size(cells: Cells, found: int) -> int:
    """Numbers that a fit to cells at `found` widths holds at once."""
    if cells.replicates > 1:
        return len(cells.x) * (found + cells.replicates)
    return max(len(cells.x), found**2)  # the covariance of the means


def too_large(cells: Cells, found: int) -> str:
    """Why a table with so many widths or replicates is refused."""
    return (
        f"{len(cells.x)} points at {found} widths with {cells.replicates} replicates are more than "
        f"one fit holds; split them into groups, or take the mean of each width first"
    )


@dataclass(frozen=True)
class Errors:
    """The errors of a law, how they were found, and whether the law fits at all."""

    beta: tuple[ErrorTerm, ...]  # independent, to be added in squares
    level: ErrorTerm
    over_replicates: ErrorTerm | None  # of the exponent, were it for their slopes alone
    method: str
    lack_of_fit_p: float | None


def errors_of(cells: Cells, means: WidthMeans | None, centred: Floats, objective: float) -> Errors:
    """Where the exponent's error comes from, as the module's docstring says.

    `centred` [W] is ln x of the widths about their mean; without repeats there are no `means`.
    """
    widths, spread = len(centred), float(centred @ centred)
    scatter = objective / (widths - 2)
    of_widths = ErrorTerm(scatter / spread, widths - 2)
    level_of_widths = ErrorTerm(scatter / widths, widths - 2)
    over_widths = f"Student-t over {widths} width means"
    if means is None:
        return Errors((of_widths,), level_of_widths, None, over_widths, None)

    width_of = np.searchsorted(means.x, cells.x)
    line = np.stack([np.ones(len(cells.x)), centred[width_of]], axis=1)
    paired = cells.replicates > 1 and means.df == len(cells.x) - widths - cells.replicates + 1

    # Nested models of every cell, each with replicate levels: sums of squares and ranks.
    if paired:
        by_width = np.eye(widths)[width_of]
        labels = np.unique(cells.replicate, return_inverse=True)[1]
        levels = np.eye(cells.replicates)[labels]
        slopes = levels * line[:, 1:]
        law, law_rank = _residual(cells.y, line, levels)
        bent, bent_rank = _residual(cells.y, by_width, levels)
        tilted, tilted_rank = _residual(cells.y, line, levels, slopes)
        full, full_rank = _residual(cells.y, by_width, levels, slopes)
    else:  # nothing but the widths' means, which need no design
        left = cells.y - means.mean[width_of]
        bent, bent_rank = float(left @ left), widths
        law, law_rank = _residual(cells.y, line)
        tilted, tilted_rank, full, full_rank = law, law_rank, bent, bent_rank
    if full_rank == len(cells.x):
        return Errors((of_widths,), level_of_widths, None, over_widths, None)

    noise = _mean_square(full, len(cells.x) - full_rank)
    misfit = _mean_square(tilted - full, full_rank - tilted_rank)
    tilt = _mean_square(bent - full, full_rank - bent_rank)
    misfit_p, tilt_p = _f_test(misfit, noise), _f_test(tilt, noise)
    scatters, tilts = misfit_p < POOLING_LEVEL, tilt_p < POOLING_LEVEL
    reported = misfit_p if noise.variance > ROUNDING and misfit.df else None
    weights = centred / spread
    to_beta = float(weights @ means.covariance @ weights)
    to_level = float(means.covariance.mean())
    of_slopes = ErrorTerm(tilt.variance * to_beta, tilt.df)
    own = of_slopes if tilt.df else None
    over_slopes = f"the exponents of {cells.replicates} replicates"
    if scatters and tilts:
        method = f"{over_widths} and over {over_slopes}, their errors added"
        return Errors((of_widths, of_slopes), level_of_widths, own, method, reported)
    if scatters:
        return Errors((of_widths,), level_of_widths, own, over_widths, reported)
    rest, rest_rank = (tilted, tilted_rank) if tilts else (law, law_rank)
    pooled = _mean_square(rest, len(cells.x) - rest_rank)
    level = ErrorTerm(pooled.variance * to_level, pooled.df)
    if tilts:
        return Errors((of_slopes,), level, own, f"Student-t over {over_slopes}", reported)
    of_runs = ErrorTerm(pooled.variance * to_beta, pooled.df)
    return Errors((of_runs,), level, own, f"Student-t over {len(cells.x)} runs", reported)


def _residual(y: Floats, *columns: Floats) -> tuple[float, int]:
    """Sum of squares that the columns leave of y, and how many of them are independent."""
    design = np.hstack(columns)
    solution, _, rank, _ = np.linalg.lstsq(design, y)
    left = y - design @ solution
    return float(left @ left), int(rank)


def _mean_square(total: float, df: int) -> ErrorTerm:
    return ErrorTerm(max(total, 0.0) / df if df else 0.0, df)


def _f_test(effect: ErrorTerm, noise: ErrorTerm) -> float:
    """p-value that a mean square is noise. Against mere rounding, anything beyond it shows."""
    if effect.df == 0:
        return 1.0
    if noise.variance <= ROUNDING:
        return 1.0 if effect.variance <= ROUNDING else 0.0
    return float(special.fdtrc(effect.df, noise.df, effect.variance / noise.variance))


def half_width(errors: tuple[ErrorTerm, ...], confidence: float) -> float:
    """Of the interval under independent errors; no less than each of them asks for."""
    return float(np.sqrt(sum(error.half_width(confidence) ** 2 for error in errors)))
