"""What a reader of a verdict must know before acting on it, in plain sentences."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from analysis.laws.power_law import PowerLaw, is_shown
from analysis.laws.saturation import Saturation
from analysis.laws.spectral import RANKS, SpectralEvidence
from analysis.settings import SAMPLES_PER_DIMENSION
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.equal_budget import BUDGETS, BudgetEvidence
from analysis.verdict.loss_optimum import MISFIT, LossCurve
from analysis.verdict.next_cells import REPLICATES
from analysis.verdict.supply import Supply, caveats_of_supply
from analysis.verdict.tuned_rate import AXIS, TunedTrials, is_tunable
from analysis.wording import interval, large, multiple, percent, plural
from trialstore.records import FIRST_SEMANTICS, OUTCOMES
from trialstore.trial_state import WITHOUT_RESULT

#: The value that the learning rate has in the group of a tuned verdict.
TUNED = "tuned per width"
#: Relative spread of an equal budget worth a word.
BUDGET_SPREAD = 0.02


def caveats_of(
    trials: pd.DataFrame,
    spectral: SpectralEvidence,
    losses: Sequence[BudgetEvidence],
    multiplier: float | None,
    tables: SweepTables,
    supply: Supply,
    tuned: TunedTrials | None = None,
) -> Iterator[str]:
    """Every caveat of one group, the weightiest first."""
    yield from _missing_halves(spectral, losses)
    if losses:
        yield from _of_loss(losses[0], multiplier)
    yield from caveats_of_supply(supply)
    yield from _of_semantics(trials)
    yield from _of_runs(trials)
    if tuned is None:
        yield _of_learning_rate(trials, tables)
    else:
        yield from _of_tuning(tuned)
    yield from _of_spectra(trials, spectral)


def _missing_halves(spectral: SpectralEvidence, losses: Sequence[BudgetEvidence]) -> Iterator[str]:
    if not losses:
        yield (
            "The half of the grid with equal budgets is missing (hold: params or flops): "
            "nothing can be said about the loss."
        )
    if spectral.used.empty and spectral.left_out.empty:
        yield (
            "The half of the grid with a fixed d_model is missing (hold: none): there are no "
            "rank laws and no spectral stop."
        )


def _of_loss(evidence: BudgetEvidence, multiplier: float | None) -> Iterator[str]:
    low, high = evidence.budget
    tokens = evidence.used["tokens"].median()
    spread = large(low) if large(low) == large(high) else f"{large(low)} to {large(high)}"
    if np.isfinite(tokens):
        yield (
            f"It holds at equal {BUDGETS[evidence.hold][1]} ({spread}) and {large(tokens)} "
            "training tokens; another size or duration may have another optimum."
        )
    if low > 0 and high / low - 1 > BUDGET_SPREAD:
        spread = percent(high / low - 1)
        yield f"The budgets differ by up to {spread}, which alone moves the loss a little."
    if evidence.inadmissible:
        widths = ", ".join(map(multiple, evidence.inadmissible))
        yield f"A replicate collapsed or diverged at {widths}: such a width is never recommended."
    lost = evidence.left_out.get("loss not finite", 0)
    if lost:
        yield f"Completed runs without a finite final loss: {lost}; they do not enter."
    uneven = evidence.left_out.get("layers of different width", 0)
    if uneven:
        yield f"Cells whose layers differ in width: {uneven}; they do not enter the loss optimum."
    curve = evidence.optimum
    if not isinstance(curve, LossCurve):
        return
    if curve.lack_of_fit_p is not None and curve.lack_of_fit_p < MISFIT:
        yield (
            "No smooth curve describes the loss within the noise of the replicates "
            f"(p = {curve.lack_of_fit_p:.2g}); the scatter about it was taken as the noise."
        )
    if multiplier is not None and not curve.within_tolerance:
        yield (
            f"No width that may be recommended is known to be within {curve.tolerance:g} nats of "
            f"the optimum: {_why_none_within(curve)}."
        )


def _why_none_within(curve: LossCurve) -> str:
    if np.any(curve.excess_upper < curve.tolerance):
        return "those that are had a replicate that collapsed or diverged"
    if np.all(curve.excess >= curve.tolerance):
        return "none of the grid lies near enough to it"
    return f"the noise of {curve.noise_sd:.2g} nats is too large for that"


def _of_semantics(trials: pd.DataFrame) -> Iterator[str]:
    ended = trials[trials["state"].isin(OUTCOMES)]
    if (ended["semantics_version"] == FIRST_SEMANTICS).any():
        yield (
            f"The trials are of semantics version {FIRST_SEMANTICS}: their held-out losses and "
            "spectra are of the first windows of the held-out split, not of all of it, their bits "
            "per byte mix two samples, and training windows were drawn with replacement. They "
            "compare with each other, not with trials of later versions: a run that adds cells "
            "trains all of these anew as well, and what the added ones cost is less than that."
        )


def _of_runs(trials: pd.DataFrame) -> Iterator[str]:
    lost = trials[trials["state"].isin(WITHOUT_RESULT)]
    if len(lost):
        yield f"Planned cells without a result: {len(lost)} of {len(trials)}."
    for state, then in (
        ("collapsed", "left out of every law"),
        ("diverged", "left out of every law"),
        ("stopped", "ended early, and left out of every law"),
        ("duplicate", "another trial is the same cell and counts in its place"),
    ):
        count = int((trials["state"] == state).sum())
        if count:
            yield f"Cells with outcome {state}: {count} of {len(trials)}, {then}."
    if trials["replicate"].nunique() == 1:
        yield (
            "There is one replicate: the noise is judged by the scatter about the fitted curves, "
            "not by repeats."
        )
    versions = trials["versions"].dropna().nunique()
    if versions > 1:
        yield f"The trials ran under {versions} sets of library versions."
    layouts = trials["layout"].dropna().nunique()
    if layouts > 1:
        yield f"The trials ran in {layouts} layouts (devices, workers, micro-batch)."


def _of_learning_rate(trials: pd.DataFrame, tables: SweepTables) -> str:
    if AXIS in trials:
        beside = f"; `{TUNED}` compares them so" if is_tunable(tables.trials) else ""
        return (
            "Each learning rate is judged as a group of its own: no width was given the one that "
            f"suits it best{beside}."
        )
    rate = (tables.config.get("training") or {}).get("learning_rate")
    overrides = tables.config.get("overrides") or ()
    one = not any("learning_rate" in (override.get("set") or {}) for override in overrides)
    given = f" ({rate:g} for all)" if one and isinstance(rate, int | float) else ""
    return f"The learning rate was not tuned per width{given}."


def _of_tuning(tuned: TunedTrials) -> Iterator[str]:
    rates = [width.learning_rate for width in tuned.widths]
    if rates:
        yield (
            f"Each width enters with the loss at its own learning rate, {min(rates):.2g} to "
            f"{max(rates):.2g}; rank laws are at {tuned.common_rate:g}."
        )
    for edge in ("smallest", "largest"):
        there = sorted({width.width_multiplier for width in tuned.widths if width.edge == edge})
        if there:
            yield (
                f"The best learning rate is the {edge} of the grid at "
                f"{', '.join(map(multiple, there))}: tuned further, the loss there may be lower."
            )
    left_out = sum(width.left_out for width in tuned.widths)
    if left_out:
        yield (
            "Runs that did not enter the tuning, for want of an end or of the same rate in every "
            f"replicate: {left_out}."
        )


def _of_spectra(trials: pd.DataFrame, spectral: SpectralEvidence) -> Iterator[str]:
    under = int(trials["undersampled"].sum())
    if under:
        yield (
            f"The spectra of {under} of {len(trials)} cells are undersampled (N/D below "
            f"{SAMPLES_PER_DIMENSION}): their ranks are too low, the more so the wider the layer."
        )
    invalid = int(trials["invalid_spectra"].sum())
    if invalid:
        yield (
            f"A rank of {plural(invalid, 'snapshot')} of a layer is missing, infinite or below 1, "
            "and was left out."
        )
    saturating = [
        _written(name)
        for name, found in spectral.saturation.items()
        if isinstance(found, Saturation) and found.saturates and name in RANKS
    ]
    if under and saturating:
        yield (
            f"The plateau of {' and '.join(saturating)} may be one of the samples and not of the "
            "layer: ranks level off where N/D falls."
        )
    laws = [law for law in spectral.laws.values() if isinstance(law, PowerLaw)]
    replicates = int(spectral.used["replicate"].nunique())
    if laws and replicates < REPLICATES:
        yield (
            f"With {plural(replicates, 'replicate')} nobody can see whether the slope of a rank "
            f"law differs between replicates, and its interval takes it that it does not; "
            f"{REPLICATES} show it."
        )
    gap = spectral.laws["asymmetry"]
    if isinstance(gap, PowerLaw) and not is_shown(gap):
        yield (
            "An asymmetry of soft and hard rank is not shown: the interval of the exponents' "
            f"difference, {interval(gap.beta_interval)}, includes 0."
        )
    for name, law in spectral.laws.items():
        misfit = isinstance(law, PowerLaw) and law.lack_of_fit_p
        if misfit and misfit < MISFIT and name != "asymmetry":
            yield (
                f"{_written(name)} does not follow a power law within the noise of the "
                f"replicates (p = {misfit:.2g}): read its exponent as an average slope."
            )


def _written(rank: str) -> str:
    return rank.replace("_", " ").replace("edim", "eDim")
