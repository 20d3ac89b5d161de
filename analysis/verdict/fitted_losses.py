"""The curves that one set of runs allows: width means, fits of every shape, noise and resamples."""

from dataclasses import dataclass, replace

import numpy as np

from analysis.refusal import Refusal
from analysis.replicates import CONFIDENCE, Floats, WidthMeans, width_means
from analysis.settings import WIDTHS_WITH_ONE_REPLICATE, WIDTHS_WITH_REPLICATES
from analysis.verdict.budget_slope import BudgetSlope
from analysis.verdict.loss_curves import CurveFits
from analysis.verdict.loss_resamples import Noise, Resamples, fit_curves, resample_curves
from analysis.verdict.run_noise import NoiseTrend, Runs
from analysis.wording import plural

#: Degrees of freedom needed to estimate the noise from replicates.
MINIMUM_NOISE_DF = 3
#: Degrees of freedom of a noise that the user gives, which counts as known.
GIVEN_NOISE_DF = 10_000


@dataclass(frozen=True)
class FittedLosses:
    """The curves of one set of runs."""

    means: WidthMeans
    fits: CurveFits
    noise: Noise
    resamples: Resamples
    given: bool  # whether the user gave the noise

    @property
    def support(self) -> float:
        """Share of resamples with an optimum strictly inside the grid."""
        at = self.resamples.at
        return float(np.mean((at > self.fits.low) & (at < self.fits.high)))

    @property
    def below(self) -> float:
        """Share of resamples with the lowest loss at the smallest width."""
        return float(np.mean(self.resamples.at <= self.fits.low))

    @property
    def above(self) -> float:
        """Share of resamples with the lowest loss at the largest width."""
        return float(np.mean(self.resamples.at >= self.fits.high))

    @property
    def excess_upper(self) -> Floats:
        """[W] upper bound of the excess over the lowest loss in the grid, one-sided at 90 %."""
        over = self.resamples.fitted - self.resamples.lowest[:, None]
        return np.asarray(np.quantile(over, CONFIDENCE, axis=0))


def fit_losses(
    runs: Runs, trend: NoiseTrend, off: Floats, slope: BudgetSlope, noise_nats: float | None
) -> FittedLosses | Refusal:
    """Fit the curves of one set of runs.

    Args:
        runs: the losses, at one budget.
        trend: of the noise over the width, by which the runs are weighted.
        off: [n] ln of each run's own budget over the common one.
        slope: by which the losses were moved to the common budget.
        noise_nats: the noise of one run, used where the replicates do not show it; None if unknown.

    Returns:
        The curves; a refusal where there are too few widths.
    """
    sd = trend.sd(runs.log_m)
    means = width_means(runs.log_m, runs.loss, runs.replicate, sd)
    replicated = means.variance is not None and means.df >= MINIMUM_NOISE_DF
    given = not replicated and noise_nats is not None
    if given and noise_nats is not None:
        means = replace(means, variance=noise_nats**2, df=GIVEN_NOISE_DF)
    replicated = replicated or given
    needed = WIDTHS_WITH_REPLICATES if replicated else WIDTHS_WITH_ONE_REPLICATE
    if means.widths < needed:
        return _too_few(means)
    shared = slope.error * width_means(runs.log_m, off, runs.replicate, sd).mean
    fits, noise = fit_curves(means, replicated, shared)
    return FittedLosses(means, fits, noise, resample_curves(means, fits, noise), given)


def _too_few(means: WidthMeans) -> Refusal:
    runs = f"{means.replicates} replicates" if means.replicates > 1 else "one replicate"
    if means.replicates > 1 and means.df < MINIMUM_NOISE_DF:
        runs += f" ({plural(means.df, 'degree')} of freedom)"
    are = "is" if means.widths == 1 else "are"
    return Refusal(
        f"an optimum needs {WIDTHS_WITH_REPLICATES} widths with replicates that leave at least "
        f"{MINIMUM_NOISE_DF} degrees of freedom for the noise, or {WIDTHS_WITH_ONE_REPLICATE} "
        f"widths with one replicate; there {are} {plural(means.widths, 'width')} with {runs}"
    )
