"""The noise of single runs: runs that do not fit, and noise that depends on the width.

Both are read from the two-way residuals of the losses: what is left of a run when the mean of its
width and the luck of its replicate are taken out. One replicate has no such residuals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from analysis.replicates import Floats

#: A run is suspect if noise alone has a residual as large in fewer than this share of sweeps.
SUSPECT_P = 0.05
#: At most this share of the runs is called suspect; more are a matter of the noise.
MOST_SUSPECTS = 0.2
#: Degrees of freedom of the residuals below which none is judged.
FEWEST_DF = 3
#: A smaller p of the test for a trend: the noise depends on the width.
TREND_P = 0.05
#: Largest exponent of the noise's variance in m that is considered.
STEEPEST = 8.0
#: A residual below this share of the losses is rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Runs:
    """Runs of one group at one budget."""

    log_m: Floats  # [n] ln(D / d_model)
    loss: Floats  # [n] nats per token
    replicate: NDArray[np.generic]  # [n] labels

    def __len__(self) -> int:
        return len(self.loss)

    def only(self, kept: NDArray[np.bool_]) -> "Runs":
        """Return the runs of a mask [n]."""
        return Runs(self.log_m[kept], self.loss[kept], self.replicate[kept])


@dataclass(frozen=True)
class Suspect:
    """A run whose loss its width and its replicate do not explain."""

    index: int  # of the run
    deviation: float  # nats above what the other runs predict for it
    studentised: float  # the deviation in units of its standard error, without the run itself
    p: float  # of the largest of all runs' deviations, under noise alone


@dataclass(frozen=True)
class NoiseTrend:
    """The variance of a run's noise as a power of m."""

    exponent: float  # of the variance; 0 is equal noise at every width
    p: float  # of the test of equal noise against the trend
    df: int  # degrees of freedom of the residuals

    @property
    def established(self) -> bool:
        """Whether the noise depends on the width."""
        return self.p < TREND_P

    def sd(self, log_m: ArrayLike) -> Floats:
        """Return the noise [n] at ln m [n], relative to its geometric mean; 1 without a trend."""
        x = np.asarray(log_m, float)
        if not self.established:
            return np.ones_like(x)
        return np.asarray(np.exp(self.exponent / 2 * (x - x.mean())))


NO_TREND = NoiseTrend(0.0, 1.0, 0)


def suspect_runs(runs: Runs) -> tuple[Suspect, ...]:
    """Find runs whose loss noise does not explain, by externally studentised two-way residuals.

    The largest residual is tested against the runs without it, with Bonferroni's correction for
    the number of runs; then it is set aside and the next is tested.

    Returns:
        The suspects, the most suspect first; empty with one replicate.
    """
    kept = np.ones(len(runs), bool)
    found: list[Suspect] = []
    while len(found) < MOST_SUSPECTS * len(runs) - 1:
        suspect = _most_suspect(runs, np.flatnonzero(kept))
        if suspect is None or suspect.p >= SUSPECT_P:
            break
        kept[suspect.index] = False
        found.append(suspect)
    return tuple(found)


def unsuspected(runs: Runs) -> NDArray[np.bool_]:
    """Return the mask [n] of the runs that are not suspect."""
    kept = np.ones(len(runs), bool)
    kept[[suspect.index for suspect in suspect_runs(runs)]] = False
    return kept


def _most_suspect(runs: Runs, at: NDArray[np.intp]) -> Suspect | None:
    design = _design(runs.only(np.isin(np.arange(len(runs)), at)))
    y = runs.loss[at]
    df = len(y) - int(np.linalg.matrix_rank(design)) - 1  # without the run itself
    if df < FEWEST_DF:
        return None
    hat = design @ np.linalg.pinv(design)
    left, free = y - hat @ y, 1 - np.diag(hat)
    testable = free > ROUNDING**0.5  # a run alone at its width, or alone in its replicate, is not
    free = np.where(testable, free, 1)
    others = np.maximum(left @ left - left**2 / free, 0) / df
    if not testable.any() or left @ left <= (ROUNDING * np.abs(y).max()) ** 2:
        return None
    with np.errstate(divide="ignore"):
        t = np.where(testable, left / np.sqrt(np.maximum(others, np.finfo(float).tiny) * free), 0)
    i = int(np.argmax(np.abs(t)))
    p = min(1.0, 2 * int(testable.sum()) * float(stats.t.sf(abs(t[i]), df)))
    return Suspect(int(at[i]), float(left[i] / free[i]), float(t[i]), p)


def noise_trend(groups: Sequence[Runs]) -> NoiseTrend:
    """Test whether the noise of a run depends on the width, by the likelihood ratio.

    Args:
        groups: runs whose noise has one trend; each has its own level. Suspect runs left out.

    Returns:
        The exponent of the variance in m, by restricted maximum likelihood, and the p-value.
    """
    parts = [part for runs in groups if (part := _contrasts(runs)) is not None]
    df = sum(len(left) for _, left, _ in parts)
    if df < FEWEST_DF:
        return NO_TREND

    def cost(exponent: float) -> float:
        return -sum(_log_likelihood(exponent, *part) for part in parts)

    found = optimize.minimize_scalar(cost, bounds=(-STEEPEST, STEEPEST), method="bounded")
    ratio = max(0.0, 2 * (cost(0.0) - float(found.fun)))
    # As an F-test with the residuals' degrees of freedom: the ratio alone is too liberal for few.
    p = float(stats.f.sf(max(df - 1, 1) * np.expm1(ratio / df), 1, max(df - 1, 1)))
    return NoiseTrend(float(found.x), p, df)


def _contrasts(runs: Runs) -> tuple[Floats, Floats, Floats] | None:
    """ln m, the contrasts of the losses free of widths and replicates, and their basis."""
    if not len(runs):
        return None
    design = _design(runs)
    left, singular, _ = np.linalg.svd(design, full_matrices=True)
    rank = int((singular > 1e-9 * singular[0]).sum())
    basis = left[:, rank:]
    contrasts = basis.T @ runs.loss
    if not len(contrasts) or np.abs(contrasts).max() <= ROUNDING * np.abs(runs.loss).max():
        return None
    # The likelihood does not depend on the scale of the losses.
    return runs.log_m - runs.log_m.mean(), contrasts / np.abs(contrasts).max(), basis


def _log_likelihood(exponent: float, x: Floats, contrasts: Floats, basis: Floats) -> float:
    """Restricted log-likelihood, maximised over the level of the noise."""
    covariance = (basis * np.exp(exponent * x)[:, None]).T @ basis
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, contrasts)
    return -float(np.log(np.diag(root)).sum()) - len(white) / 2 * float(np.log(white @ white))


def _design(runs: Runs) -> Floats:
    """[n, W + R] indicators of width and replicate."""
    columns = []
    for labels in (runs.log_m, runs.replicate):
        _, of = np.unique(labels, return_inverse=True)
        columns.append(np.eye(int(of.max()) + 1)[of])
    return np.hstack(columns)
