"""The caveats of a verdict, in sentences."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis.laws.power_law import PowerLaw, is_shown
from analysis.laws.saturation import Saturation
from analysis.laws.spectral import RANK_NAMES, SpectralEvidence
from analysis.settings import MINIMUM_RATES, SAMPLES_PER_DIMENSION
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.comparable import caveats_of_setups
from analysis.verdict.equal_budget import BUDGETS, BudgetEvidence
from analysis.verdict.loss_over_width import LossCurve
from analysis.verdict.loss_resamples import MISFIT
from analysis.verdict.next_cells import REPLICATES
from analysis.verdict.supply import Supply, caveats_of_supply
from analysis.verdict.trained_enough import first_caveats, further_caveats, judge_training
from analysis.verdict.tuned_rate import AXIS, TunedTrials
from analysis.wording import interval, large, multiple, percent, plural
from trialstore.records import FIRST_SEMANTICS, OUTCOMES
from trialstore.trial_state import WITHOUT_RESULT

#: Ranks whose laws get caveats: the raw hard rank only stands beside the debiased one.
_REPORTED = frozenset(RANK_NAMES) - {"hard_rank"}


def caveats_of(
    trials: pd.DataFrame,
    spectral: SpectralEvidence,
    losses: Sequence[BudgetEvidence],
    multiplier: float | None,
    tables: SweepTables,
    supply: Supply,
    tuned: TunedTrials | None = None,
) -> Iterator[str]:
    """Yield every caveat of one group, the most important first.

    Args:
        trials: rows of `SweepTables.trials` of the group.
        spectral: its rank laws.
        losses: its loss optima by budget, the deciding one first.
        multiplier: the recommended D / d_model; None where no width is recommended.
        tables: the sweep.
        supply: the passes over its data, and overfitting.
        tuned: the tuned learning rates; None where the group has one rate.
    """
    training = judge_training(losses[0].used) if losses else None
    if training is not None:
        yield from first_caveats(training)
    yield from _missing_cells(spectral, losses)
    if losses:
        yield from _of_loss(losses[0], multiplier)
    if training is not None:
        yield from further_caveats(training)
    yield from caveats_of_supply(supply)
    yield from _of_semantics(trials)
    yield from _of_runs(trials)
    yield from caveats_of_setups(trials, tables, losses, spectral, tuned is not None)
    if tuned is None:
        yield _of_learning_rate(trials, tables)
    else:
        yield from _of_tuning(tuned)
    yield from _of_spectra(trials, spectral)


def _missing_cells(spectral: SpectralEvidence, losses: Sequence[BudgetEvidence]) -> Iterator[str]:
    if not losses:
        yield (
            "The sweep has no cells of equal budget, so nothing is known about the loss optimum: "
            "add `params` or `flops` to `match`."
        )
    if spectral.used.empty and spectral.left_out.empty:
        yield (
            "The sweep has no cells at fixed d_model, so there are no rank laws and no spectral "
            "stop: add `none` to `match`."
        )


def _of_loss(evidence: BudgetEvidence, multiplier: float | None) -> Iterator[str]:
    low, high = evidence.budget
    tokens = evidence.used["tokens"].median()
    spread = large(low) if large(low) == large(high) else f"{large(low)} to {large(high)}"
    if np.isfinite(tokens):
        yield (
            f"The result holds at equal {BUDGETS[evidence.matching].name} ({spread}) and "
            f"{large(tokens)} training tokens; another size or duration may have another optimum."
        )
    if evidence.inadmissible:
        widths = ", ".join(map(multiple, evidence.inadmissible))
        yield f"A replicate collapsed or diverged at {widths}; such a width is never recommended."
    lost = evidence.left_out.get("loss not finite", 0)
    if lost:
        yield f"Completed runs without a finite final loss: {lost}; they are left out."
    uneven = evidence.left_out.get("layers of different width", 0)
    if uneven:
        yield f"Cells whose layers differ in width: {uneven}; the loss optimum leaves them out."
    curve = evidence.optimum
    if not isinstance(curve, LossCurve):
        return
    yield from _of_budgets(evidence, curve)
    yield from _of_noise(evidence, curve)
    if curve.lack_of_fit_p is not None and curve.lack_of_fit_p < MISFIT:
        yield (
            "The widths scatter about every loss curve by more than the replicates' noise "
            f"(p = {curve.lack_of_fit_p:.2g}); this scatter was used as the noise."
        )
    if multiplier is not None and not curve.within_tolerance:
        yield (
            f"No width that may be recommended is known to be within {curve.tolerance:g} nats of "
            f"the optimum: {_why_none_within(curve)}."
        )


def _of_budgets(evidence: BudgetEvidence, curve: LossCurve) -> Iterator[str]:
    low, high = evidence.budget
    if curve.slope.applied and low > 0:
        yield (
            f"The budgets differ by up to {percent(high / low - 1)}. The losses were moved to one "
            f"budget by {curve.slope.nats:.3g} +- {curve.slope.error:.1g} nats per e-fold "
            f"({curve.slope.source}); the error is part of the interval, and the tables have the "
            "measured losses beside them."
        )


def _of_noise(evidence: BudgetEvidence, curve: LossCurve) -> Iterator[str]:
    for suspect in curve.suspects:
        run = evidence.used.iloc[suspect.index]
        side = "above" if suspect.deviation > 0 else "below"
        yield (
            f"Trial {run['id']} ({multiple(float(run['width_multiplier']))}, seed "
            f"{run['replicate']}) does not fit: its loss is {abs(suspect.deviation):.3f} nats "
            f"{side} what the other runs predict (p = {suspect.p:.1g}). A verdict must hold with "
            "and without it."
        )
    if curve.trend.established:
        where = "narrow" if curve.trend.exponent < 0 else "wide"
        yield (
            f"Runs of {where} widths are noisier than others (variance as "
            f"m^{curve.trend.exponent:.1f}, p = {curve.trend.p:.1g}); they were weighted by it."
        )
    if curve.noise_from == "given":
        yield (
            f"The noise of a run, {curve.noise_sd:.3g} nats, is the one that the sweep file gives "
            "(analysis.noise_nats), not one that its replicates show."
        )


def _why_none_within(curve: LossCurve) -> str:
    if np.any(curve.excess_upper < curve.tolerance):
        return "the widths within it had a replicate that collapsed or diverged"
    if np.all(curve.excess >= curve.tolerance):
        return "no width of the grid is close enough to it"
    return f"the noise of {curve.noise_sd:.2g} nats is too large"


def _of_semantics(trials: pd.DataFrame) -> Iterator[str]:
    ended = trials[trials["state"].isin(OUTCOMES)]
    if (ended["semantics_version"] == FIRST_SEMANTICS).any():
        yield (
            f"The trials are of semantics version {FIRST_SEMANTICS}. Their held-out losses and "
            "spectra cover only the first windows of the held-out split, their bits per byte mix "
            "two samples, and their training windows were drawn with replacement. They are "
            "comparable with each other, but not with trials of later versions: a run that adds "
            "cells trains all of these anew, so it costs more than the added cells."
        )


def _of_runs(trials: pd.DataFrame) -> Iterator[str]:
    lost = trials[trials["state"].isin(WITHOUT_RESULT)]
    if len(lost):
        yield f"Planned cells without a result: {len(lost)} of {len(trials)}."
    for state, then in (
        ("collapsed", "left out of every law"),
        ("diverged", "left out of every law"),
        ("stopped", "left out of every law"),
        ("duplicate", "another trial of the same cell counts instead"),
    ):
        count = int((trials["state"] == state).sum())
        if count:
            yield f"Cells with outcome {state}: {count} of {len(trials)}, {then}."
    if trials["replicate"].nunique() == 1:
        yield (
            "There is one replicate, so the noise is estimated from the scatter about the fitted "
            "curves."
        )


def _of_learning_rate(trials: pd.DataFrame, tables: SweepTables) -> str:
    rates = tables.trials[AXIS].nunique() if AXIS in trials else 0
    if rates > 1:
        return (
            "Each learning rate is its own group, so no width has a rate tuned for it, and the "
            f"optimum may be that of the rate. With {MINIMUM_RATES} rates on the grid there is one "
            "verdict, with every width at its own best rate."
        )
    rate = (tables.config.get("training") or {}).get("learning_rate")
    overrides = tables.config.get("overrides") or ()
    one = not any("learning_rate" in (override.get("set") or {}) for override in overrides)
    given = f" ({rate:g} for all widths)" if one and isinstance(rate, int | float) else ""
    return f"The learning rate was not tuned per width{given}."


def _of_tuning(tuned: TunedTrials) -> Iterator[str]:
    rates = [width.learning_rate for width in tuned.widths]
    if rates:
        yield (
            f"Each width enters with its loss at its own learning rate, {min(rates):.2g} to "
            f"{max(rates):.2g}; the rank laws use the rate {tuned.common_rate:g}."
        )
    for edge, beyond in (("smallest", "smaller"), ("largest", "larger")):
        there = sorted({width.width_multiplier for width in tuned.widths if width.edge == edge})
        if there:
            yield (
                f"The best learning rate is the {edge} of the grid at "
                f"{', '.join(map(multiple, there))}: a {beyond} one may give a lower loss there."
            )
    left_out = sum(width.left_out for width in tuned.widths)
    if left_out:
        yield (
            "Runs left out of the tuning, because they did not complete or another replicate lacks "
            f"their rate: {left_out}."
        )


def _of_spectra(trials: pd.DataFrame, spectral: SpectralEvidence) -> Iterator[str]:
    under = int(trials["undersampled"].sum())
    if under:
        yield (
            f"The spectra of {under} of {len(trials)} cells are undersampled (N/D below "
            f"{SAMPLES_PER_DIMENSION}): their ranks are biased downward, more so at larger D. Only "
            "the hard rank is corrected for it, as if tokens were independent and Gaussian; tokens "
            "that resemble each other leave it too low."
        )
    lost = int(trials["not_debiased"].sum())
    if lost:
        yield (
            "Snapshots of a layer with too few samples for a debiased hard rank: "
            f"{lost}; its law leaves them out."
        )
    invalid = int(trials["invalid_spectra"].sum())
    if invalid:
        yield (
            "Snapshots of a layer with a rank that is missing, infinite or below 1: "
            f"{invalid}; they are left out."
        )
    saturating = [
        RANK_NAMES[name]
        for name, found in spectral.saturation.items()
        if isinstance(found, Saturation) and found.saturates and name in _REPORTED
    ]
    if under and saturating:
        yield (
            f"The plateau of {' and '.join(saturating)} may come from undersampling: ranks level "
            "off where N/D falls."
        )
    laws = [law for law in spectral.laws.values() if isinstance(law, PowerLaw)]
    replicates = int(spectral.used["replicate"].nunique())
    if laws and replicates < REPLICATES:
        yield (
            f"With {plural(replicates, 'replicate')}, slopes of the rank laws that differ between "
            "replicates are not reliably detected, so the intervals may be too narrow: run "
            f"{REPLICATES} replicates."
        )
    gap = spectral.laws["asymmetry"]
    if isinstance(gap, PowerLaw) and not is_shown(gap):
        yield (
            "No asymmetry of soft and hard rank is shown: the interval of the difference of their "
            f"exponents, {interval(gap.beta_interval)}, includes 0."
        )
    for name, law in spectral.laws.items():
        misfit = isinstance(law, PowerLaw) and law.lack_of_fit_p
        if misfit and misfit < MISFIT and name in _REPORTED:
            yield (
                f"{RANK_NAMES[name]} does not follow a power law within the noise of the "
                f"replicates (p = {misfit:.2g}): read its exponent as an average slope."
            )
