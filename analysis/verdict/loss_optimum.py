"""The width of the lowest loss at an equal budget, and whether the data establish it.

Convex curves of many shapes (`loss_curves`) are fitted to the final losses and resampled
(`loss_resamples`). An optimum is established if at least 98 % of resamples have their lowest loss
strictly inside the grid, with all runs and without the runs that noise does not explain
(`run_noise`). Where the noise depends on the width the runs are weighted by it; losses at budgets
that differ are moved to one budget first (`budget_slope`).

Simpler rules fail. A point estimate inside the grid says nothing about its uncertainty. A single
quadratic in ln(D / d_model), at any share of resamples, recommends a width in up to 100 % of
studies whose optimum lies at the edge of the grid, and its interval misses the optimum of a skewed
bowl more often than not. benchmarks/verdicts.py measures both rules.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from analysis.refusal import Refusal
from analysis.replicates import CONFIDENCE, Floats, width_means
from analysis.verdict.budget_slope import NO_SLOPE, BudgetSlope
from analysis.verdict.fitted_losses import GIVEN_NOISE_DF, FittedLosses, fit_losses
from analysis.verdict.loss_curves import CurveFits
from analysis.verdict.loss_over_width import LossCurve, Obstacle
from analysis.verdict.optimum_evidence import log_evidence
from analysis.verdict.run_noise import NoiseTrend, Runs, noise_trend, suspect_runs
from analysis.wording import multiple, percent

#: Share of resamples that must put the optimum strictly inside the grid.
REQUIRED_SUPPORT = 0.98
#: With one replicate an optimum must also be established if the noise depends on the width so. With
#: equal noise alone, narrow widths that are noisier make a false optimum in up to 15 % of sweeps.
IF_NARROW_ARE_NOISY = NoiseTrend(-3.0, 0.0, 0)
#: Nats. The square of a larger loss may overflow; only a broken run reports one.
LARGEST_LOSS = 1e100


def find_optimum(
    multiplier: ArrayLike,
    loss: ArrayLike,
    replicate: ArrayLike,
    *,
    tolerance: float,
    inadmissible: Collection[float] = (),
    off_budget: ArrayLike = 0.0,
    slope: BudgetSlope = NO_SLOPE,
    trend: NoiseTrend | None = None,
    noise_nats: float | None = None,
    required_support: float = REQUIRED_SUPPORT,
) -> LossCurve | Refusal:
    """Find the width of the lowest final loss at an equal budget.

    Args:
        multiplier: [n] D / d_model of completed runs.
        loss: [n] final held-out losses in nats per token. Losses that are not `usable` are ignored.
        replicate: [n] labels of the paired replicates.
        tolerance: nats within which a loss counts as equal to the optimum.
        inadmissible: multipliers that are never chosen, though their losses shape the curve.
        off_budget: [n] ln of each run's budget over the budget that all are compared at.
        slope: nats per unit of `off_budget`.
        trend: of the noise over the width; None to estimate it from these runs.
        noise_nats: the noise of one run, used where the replicates do not show it; None if unknown.
        required_support: share of resamples that must have their optimum inside the grid.

    Returns:
        The curve, with `obstacle` set where it establishes no optimum; or a refusal where there are
        too few widths for a curve. The same input gives the same result.
    """
    ms, ys, labels = np.asarray(multiplier, float), np.asarray(loss, float), np.asarray(replicate)
    finite = np.isfinite(ms) & (ms > 0) & usable(ys)
    if not finite.any():
        return Refusal("no run at an equal budget has a final loss")
    off = np.broadcast_to(np.asarray(off_budget, float), ys.shape)[finite]
    measured = Runs(np.log(ms[finite]), ys[finite], labels[finite])
    runs = replace(measured, loss=measured.loss - slope.nats * off)
    suspects = suspect_runs(runs)
    kept = np.ones(len(runs), bool)
    kept[[suspect.index for suspect in suspects]] = False
    if trend is None:
        trend = noise_trend([runs.only(kept)])
    whole = fit_losses(runs, trend, off, slope, noise_nats)
    if isinstance(whole, Refusal):
        return whole
    rest = fit_losses(runs.only(kept), trend, off[kept], slope, noise_nats) if suspects else whole
    without = 0.0 if isinstance(rest, Refusal) else rest.support
    unseen = whole.support
    if trend.df == 0 and noise_nats is None:  # one replicate does not show it
        noisy = fit_losses(runs, IF_NARROW_ARE_NOISY, off, slope, None)
        unseen = 0.0 if isinstance(noisy, Refusal) else noisy.support

    means, fits = whole.means, whole.fits
    optimum, floor = _lowest_of_mean(fits)
    excess = fits.loss(means.x) - floor
    excess_upper = whole.excess_upper
    if suspects and not isinstance(rest, Refusal) and len(rest.means.x) == len(means.x):
        excess_upper = np.maximum(excess_upper, rest.excess_upper)
    names = np.exp(means.x)
    admissible = ~np.isclose(names[:, None], np.asarray([*inadmissible, np.nan])).any(axis=1)
    headline, within = _headline(excess, excess_upper, admissible, tolerance)
    over = _over_headline(whole.resamples.fitted, headline)
    obstacle, reason = _judge(
        names, whole, without, unseen, headline, excess_upper, tolerance, required_support
    )
    evidence = _evidence(runs, kept, trend, noise_nats)
    if obstacle is None and (suspects or trend.established) and evidence < 0:
        obstacle = "noise in doubt"
        reason += (
            f", but {'runs that do not fit' if suspects else 'noise that depends on the width'} "
            "put the noise in doubt, and then the losses must be likelier under a bowl than under "
            f"any loss that only falls or rises; they are {np.exp(evidence):.2g} times as likely"
        )
    tail = (1 - CONFIDENCE) / 2
    bounds = np.exp(np.quantile(whole.resamples.at, [tail, 1 - tail]) + fits.centre)
    position = np.flatnonzero(finite)
    return LossCurve(
        multiplier=names,
        loss=means.mean,
        measured=width_means(measured.log_m, measured.loss, measured.replicate).mean,
        counts=means.counts,
        admissible=admissible,
        fits=fits,
        optimum=float(np.exp(optimum + fits.centre)),
        interval=(float(bounds[0]), float(bounds[1])),
        support=whole.support,
        required_support=required_support,
        below=whole.below,
        above=whole.above,
        excess=excess,
        excess_upper=excess_upper,
        over_headline=over,
        equivalent=_equivalent(over, tolerance),
        headline=headline,
        within_tolerance=within,
        tolerance=tolerance,
        noise_sd=float(np.sqrt(whole.noise.variance[fits.best])),
        noise_from="given" if whole.given else whole.noise.source,
        lack_of_fit_p=whole.noise.misfit,
        replicates=means.replicates,
        obstacle=obstacle,
        reason=reason,
        plateau=_plateau(admissible & (excess_upper < tolerance), headline),
        suspects=tuple(replace(one, index=int(position[one.index])) for one in suspects),
        support_without=without,
        support_if_noisy=unseen,
        trend=trend,
        slope=slope,
        log_evidence=evidence,
    )


def _evidence(
    runs: Runs, kept: NDArray[np.bool_], trend: NoiseTrend, noise_nats: float | None
) -> float:
    """ln of the e-value, the smaller of the one with all runs and the one without suspects."""
    given = GIVEN_NOISE_DF if noise_nats is not None else 0
    found = [
        log_evidence(
            some.log_m,
            some.loss,
            some.replicate,
            sd=trend.sd(some.log_m),
            noise_ss=given * (noise_nats or 0.0) ** 2,
            noise_df=given,
        )
        for some in ([runs] if kept.all() else [runs, runs.only(kept)])
    ]
    return min(found)


def _plateau(within: NDArray[np.bool_], headline: int | None) -> tuple[int, int] | None:
    """The widths around the headline that are surely within tolerance, if they are two or more."""
    if headline is None or not within[headline]:
        return None
    first = last = headline
    while first > 0 and within[first - 1]:
        first -= 1
    while last < len(within) - 1 and within[last + 1]:
        last += 1
    return None if first == last else (first, last)


def usable(loss: ArrayLike) -> NDArray[np.bool_]:
    """Return whether each loss is finite and below LARGEST_LOSS; same shape."""
    return np.asarray(np.abs(np.asarray(loss, float)) <= LARGEST_LOSS)


def _lowest_of_mean(fits: CurveFits) -> tuple[float, float]:
    """Centred ln m and loss at the minimum of the mean curve within the grid."""
    grid = np.linspace(fits.low, fits.high, 401)
    values = fits.loss(grid + fits.centre)
    i = int(np.argmin(values))
    if i in (0, len(grid) - 1):
        return float(grid[i]), float(values[i])
    found = optimize.minimize_scalar(
        lambda u: float(fits.loss(np.array([u + fits.centre]))[0]),
        bounds=(grid[i - 1], grid[i + 1]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.x), float(found.fun)


def _headline(
    excess: Floats, upper: Floats, admissible: NDArray[np.bool_], tolerance: float
) -> tuple[int | None, bool]:
    """Index of the smallest admissible width that is surely within tolerance, and True.

    Without such a width, the admissible width of smallest excess, and False.
    """
    good = np.flatnonzero(admissible & (upper < tolerance))
    if len(good):
        return int(good[0]), True
    if not admissible.any():
        return None, False
    return int(np.argmin(np.where(admissible, excess, np.inf))), False


def _over_headline(fitted: Floats, headline: int | None) -> Floats:
    """[W, 2] 90 % interval of each width's loss minus the headline's."""
    if headline is None:
        return np.full((fitted.shape[1], 2), np.nan)
    tail = (1 - CONFIDENCE) / 2
    differences = fitted - fitted[:, [headline]]
    return np.asarray(np.quantile(differences, [tail, 1 - tail], axis=0).T)


def _equivalent(over: Floats, tolerance: float) -> NDArray[np.bool_]:
    """[W] whether the difference from the headline may be zero, or is surely within tolerance."""
    low, high = over.T
    return np.asarray(((low <= 0) & (high >= 0)) | ((low > -tolerance) & (high < tolerance)))


def _judge(
    multiplier: Floats,
    fitted: FittedLosses,
    without: float,
    unseen: float,
    headline: int | None,
    upper: Floats,
    tolerance: float,
    required: float,
) -> tuple[Obstacle | None, str]:
    smallest, largest = float(multiplier[0]), float(multiplier[-1])
    support, below, above = fitted.support, fitted.below, fitted.above
    if min(support, without, unseen) >= required:
        if headline is None:
            return "nothing admissible", "every width has a collapsed or diverged replicate"
        return None, f"{percent(support)} of resamples have their optimum strictly inside the grid"
    if np.all(upper < tolerance):
        return "all within tolerance", (
            f"every width from {multiple(smallest)} to {multiple(largest)} is within "
            f"{tolerance:g} nats of the optimum, so the loss does not decide between them"
        )
    if support >= required and without >= required:
        return "one replicate", (
            "one replicate does not show whether narrow widths are noisier than wide ones; if they "
            f"are (variance as m^{IF_NARROW_ARE_NOISY.exponent:g}), only {_short_percent(unseen)} "
            f"of resamples have their optimum strictly inside the grid, and {percent(required)} "
            "are needed"
        )
    if support >= required:
        return "single runs", (
            f"the optimum rests on runs that noise does not explain: without them only "
            f"{_short_percent(without)} of resamples have it strictly inside the grid, and "
            f"{percent(required)} are needed"
        )
    if above >= CONFIDENCE:
        return "upper edge", f"the loss still falls at the largest width, {multiple(largest)}"
    if below >= CONFIDENCE:
        return "lower edge", f"the loss is lowest at the smallest width, {multiple(smallest)}"
    edges = [
        f"{percent(share)} have it at or {where}"
        for share, where in (
            (below, f"below {multiple(smallest)}"),
            (above, f"above {multiple(largest)}"),
        )
        if share >= 0.001
    ]
    return "uncertain", (
        f"only {_short_percent(support)} of resamples have their optimum strictly inside the grid, "
        f"and {percent(required)} are needed ({', '.join(edges)})"
    )


def _short_percent(share: float) -> str:
    """A share rounded down: 97.95 % must not read as 98 %."""
    return percent(float(np.floor(1000 * share) / 1000))
