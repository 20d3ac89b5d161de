"""The error of a power law's exponent: three sources, tested for and combined.

An exponent is uncertain because single runs are noisy, because widths scatter about the law
(misfit), and because replicates differ in slope (their data or initialisation favours wide layers
more, or less). Paired replicates tell the three apart. An F-test looks for each of the last two:

- Where one shows (p < 0.25), the interval is Student's t over the units that are then independent:
  the width means (W - 2 degrees of freedom) or the replicates' exponents (R - 1). Where both show,
  their errors are added in squares.
- Where neither shows, all runs are one sample. Their pooled noise has many degrees of freedom.
- Without replicates only the scatter of the widths is known.

Pooling after a preliminary test needs a lax level: 0.25, after Bozivich, Bancroft & Hartley
(1956). Over all ratios of the three noises the 90 % intervals then cover 87-94 % at 4 to 8 widths
with three or more replicates (benchmarks/law_coverage.py). Two replicates often fail to show
differing slopes (coverage 83 %). One replicate never shows them: its exponent holds for its own
data and initialisation only.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.laws.cells import Cells
from analysis.replicates import Floats, WidthMeans

#: A preliminary test with a smaller p forbids pooling.
POOLING_LEVEL = 0.25
#: A smaller variance of ln y (relative differences of 1e-10) is rounding, not noise.
ROUNDING = 1e-20
#: If ln y varies less than this over all points, y is constant up to rounding.
CONSTANT = 1e-12


@dataclass(frozen=True)
class ErrorTerm:
    """One independent source of error: an estimated variance and its degrees of freedom."""

    variance: float
    df: int

    def half_width(self, confidence: float) -> float:
        """Return half the width of the two-sided Student interval."""
        return float(special.stdtrit(self.df, (1 + confidence) / 2) * np.sqrt(self.variance))


@dataclass(frozen=True)
class Errors:
    """The errors of one law, the method that found them, and the test of its fit."""

    beta: tuple[ErrorTerm, ...]  # of the exponent; independent, to be added in squares
    level: ErrorTerm  # of ln y at the mean of ln x
    over_replicates: ErrorTerm | None  # of the exponent, if only the replicates' slopes differed
    method: str  # in words, for `PowerLaw.interval_method`
    lack_of_fit_p: float | None  # None where replicates show no noise


def errors_of(cells: Cells, means: WidthMeans | None, centred: Floats, objective: float) -> Errors:
    """Find the sources of the exponent's error, by the tests of the module's docstring.

    Args:
        cells: the points of the fit.
        means: the width means; None where no width has two points.
        centred: [W] ln x of the distinct widths, minus their mean.
        objective: sum of squares of ln y about the law, over width means.
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

    # Sums of squares and ranks of nested models of all cells, each with replicate levels.
    if paired:
        by_width = np.eye(widths)[width_of]
        labels = np.unique(cells.replicate, return_inverse=True)[1]
        levels = np.eye(cells.replicates)[labels]
        slopes = levels * line[:, 1:]
        law, law_rank = _residual(cells.y, line, levels)
        bent, bent_rank = _residual(cells.y, by_width, levels)
        tilted, tilted_rank = _residual(cells.y, line, levels, slopes)
        full, full_rank = _residual(cells.y, by_width, levels, slopes)
    else:  # only width means can be compared, and they need no design matrix
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
    """The residual sum of squares of y on the columns, and the rank of the columns."""
    design = np.hstack(columns)
    solution, _, rank, _ = np.linalg.lstsq(design, y)
    left = y - design @ solution
    return float(left @ left), int(rank)


def _mean_square(total: float, df: int) -> ErrorTerm:
    return ErrorTerm(max(total, 0.0) / df if df else 0.0, df)


def _f_test(effect: ErrorTerm, noise: ErrorTerm) -> float:
    """The p-value of `effect` being noise. Where the noise is rounding, any larger effect shows."""
    if effect.df == 0:
        return 1.0
    if noise.variance <= ROUNDING:
        return 1.0 if effect.variance <= ROUNDING else 0.0
    return float(special.fdtrc(effect.df, noise.df, effect.variance / noise.variance))


def half_width(errors: tuple[ErrorTerm, ...], confidence: float) -> float:
    """Combine independent errors into half the width of one interval, by adding in squares."""
    return float(np.sqrt(sum(error.half_width(confidence) ** 2 for error in errors)))
