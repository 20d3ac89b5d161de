"""From a sweep's tables to a verdict a group: how wide, how sure, resting on what, and if not, why.

A group is one combination of every axis but the width and the replicate. The loss at an equal
budget decides; the spectra explain, and may agree or not. Pure: no I/O.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws.spectral import SpectralEvidence, judge_spectra
from analysis.replicates import Floats, Interval
from analysis.settings import TOLERANCE_NATS
from analysis.tables.sweep_tables import SweepTables, reference_multiplier
from analysis.verdict import next_cells
from analysis.verdict.budgets import AtBudget, at_equal_budgets
from analysis.verdict.caveats import TUNED, caveats_of
from analysis.verdict.choices import Choice, choices_of
from analysis.verdict.equal_budget import BudgetEvidence, judge_losses
from analysis.verdict.evidence import evidence_of, losses_of, widths_of
from analysis.verdict.layer_verdict import LayerVerdict, judge_layers, representative
from analysis.verdict.loss_optimum import LossCurve
from analysis.verdict.next_cells import NextCells
from analysis.verdict.supply import SELECTION, Supply, judge_supply
from analysis.verdict.transfer import SizeOptimum, Target, Transfer, transfer
from analysis.verdict.tuned_rate import AXIS as RATE_AXIS
from analysis.verdict.tuned_rate import TunedTrials, is_tunable, tune
from analysis.wording import group_label, interval, multiple
from trialstore.sweep_file import positive, section

#: Axes that make a model larger: groups that differ in nothing else are sizes of one.
SIZE_AXES = ("base_d_model", "depth")
#: Characters of a slug: names of files end at 255 bytes, and more words follow.
LONGEST_SLUG = 120


@dataclass(frozen=True)
class GroupVerdict:
    """The verdict on one group, with everything it rests on."""

    group: Mapping[str, Any]  # axis -> value
    label: str  # the group in a few words
    slug: str  # the label as part of a file's name, another for every group
    width_multiplier: float | None  # D / d_model; None where no width is recommended
    interval: Interval | None  # of the optimum, 90 %
    sentence: str  # the verdict
    rule: str  # by which rule the width was chosen, or why none was
    trials: pd.DataFrame  # rows of `SweepTables.trials`
    spectral: SpectralEvidence
    losses: tuple[BudgetEvidence, ...]  # by budget, the deciding one first
    agrees: bool | None  # whether the spectral stop agrees
    choices: tuple[Choice, ...]  # for quality and for efficiency; none where nothing is recommended
    at_budgets: tuple[AtBudget, ...]  # the loss against the width at every kind of equal budget
    tuned: TunedTrials | None  # where each width enters at its own learning rate
    supply: Supply  # passes over the data, and what the best losses of the runs say
    layers: LayerVerdict  # which layers to widen and to narrow
    caveats: tuple[str, ...]
    run_next: tuple[NextCells, ...]

    @property
    def representative(self) -> "pd.Series[Any] | None":
        """The trial whose layers stand for the group, None where no law has a trial."""
        return representative(self.spectral.used, self.width_multiplier)

    @property
    def verdict(self) -> Literal["recommended", "refused"]:
        return "refused" if self.width_multiplier is None else "recommended"

    @property
    def deciding(self) -> BudgetEvidence | None:
        """The budget that decides, if any was held equal."""
        return self.losses[0] if self.losses else None

    @property
    def on_best(self) -> "Decision | None":
        """The verdict on the best losses of the runs; None where the final ones are as good."""
        return decide(self.supply.on_best) if self.supply.on_best else None

    @property
    def alternatives(self) -> list[dict[str, Any]]:
        """Every width of the deciding budget, from the narrowest, with what it costs in loss."""
        return [] if self.deciding is None else widths_of(self.deciding)

    def to_dict(self) -> dict[str, Any]:
        """As in recommendation.json."""
        return {
            "group": dict(self.group),
            "label": self.label,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "width_multiplier": self.width_multiplier,
            "interval": self.interval,
            "rule": self.rule,
            "alternatives": self.alternatives,
            "choices": {choice.goal: choice.to_dict() for choice in self.choices},
            "at_equal": {found.currency: found.to_dict() for found in self.at_budgets},
            "learning_rates": [width.to_dict() for width in self.tuned.widths]
            if self.tuned
            else None,
            "evidence": {
                **evidence_of(self.trials, self.spectral, self.losses, self.agrees),
                "supply": self.supply.to_dict(),
                "best_loss": None if self.on_best is None else self._best_loss(self.on_best),
            },
            "layers": self.layers.to_dict(),
            "caveats": list(self.caveats),
            "run_next": [cells.to_dict() for cells in self.run_next],
        }

    def _best_loss(self, found: "Decision") -> dict[str, Any]:
        return {
            "verdict": "refused" if found.width_multiplier is None else "recommended",
            "width_multiplier": found.width_multiplier,
            "interval": None if found.curve is None else found.curve.interval,
            "sentence": found.sentence,
            "rule": found.rule,
            "selection": SELECTION,
            "alternatives": widths_of(self.supply.on_best[0]),
            "loss": losses_of(self.supply.on_best),
        }


@dataclass(frozen=True)
class Decision:
    """What the losses at equal budgets come to, by the rules of docs/verdict.md."""

    curve: LossCurve | None  # with the optimum; None where none is established
    width_multiplier: float | None  # D / d_model; None where no width is recommended
    sentence: str
    rule: str


@dataclass(frozen=True)
class Recommendation:
    """The verdicts of a sweep, and what those of several sizes say about the target."""

    sweep: str
    aggregation: str  # how a trial's snapshots became one rank
    groups: tuple[GroupVerdict, ...]
    transfers: tuple[Transfer, ...] = ()  # none where the sweep file names no target
    left_out: tuple[str, ...] = ()  # finished trials of the directory that enter nothing

    def to_dict(self) -> dict[str, Any]:
        """The content of recommendation.json."""
        return {
            "sweep": self.sweep,
            "aggregation": self.aggregation,
            "groups": [group.to_dict() for group in self.groups],
            "transfer": [found.to_dict() for found in self.transfers],
            "left_out": list(self.left_out),
        }


def recommend(tables: SweepTables) -> Recommendation:
    """Judge every group of a sweep, sorted by their axes.

    Where three learning rates or more are on the grid, each combination of the other axes comes
    first with every width at its own rate, and then at each rate of the grid. Raises InputError
    where the sweep file's tolerance or target is no number above 0.
    """
    analysis = section(tables.config, "analysis")
    tolerance = positive(analysis, "tolerance_nats", TOLERANCE_NATS)
    rate = next_cells.seconds_per_flop(tables.trials)
    axes = tables.group_axes
    verdicts = []
    if is_tunable(tables.trials):
        untuned = tuple(axis for axis in axes if axis != RATE_AXIS)
        for group, trials in _groups(tables.trials, untuned):
            if is_tunable(trials) and len(tune(trials).trials):
                verdicts.append(_judge_tuned(group, trials, tables, tolerance, rate))
    for group, trials in _groups(tables.trials, axes):
        sizes = _same(tables.trials, group, but=("base_d_model",))
        verdicts.append(_judge(group, trials, sizes, tables, tolerance, rate))
    transfers = _transfers(verdicts, analysis)
    told = tuple(_told_apart(verdicts))
    return Recommendation(tables.name, tables.aggregation.text, told, transfers, tables.left_out)


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", label)[:LONGEST_SLUG].strip("-.") or "group"


def _told_apart(verdicts: Iterable[GroupVerdict]) -> Iterator[GroupVerdict]:
    """The verdicts, those numbered whose label makes the same name of a file as another's, be it
    in capitals."""
    taken: set[str] = set()
    for verdict in verdicts:
        slug, number = verdict.slug, 1
        while slug.lower() in taken:
            number += 1
            slug = f"{verdict.slug}-{number}"
        taken.add(slug.lower())
        yield replace(verdict, slug=slug)


def _same(trials: pd.DataFrame, group: Mapping[str, Any], but: Iterable[str]) -> pd.DataFrame:
    """The trials with a group's values on all axes but some."""
    alike = np.ones(len(trials), bool)
    for axis, value in group.items():
        if axis not in but:
            column = trials[axis]
            alike &= (column.isna() if value is None else column == value).to_numpy(bool)
    return trials[alike]


def _groups(
    trials: pd.DataFrame, axes: tuple[str, ...]
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    if not axes:
        return [({}, trials)]
    found = trials.groupby(list(axes), sort=True, dropna=False)
    return [
        # Not the group's key: beside a missing value pandas makes a float of an integer there.
        ({axis: _plain(members[axis].iloc[0]) for axis in axes}, members)
        for _, members in found
    ]


def _judge(
    group: dict[str, Any],
    trials: pd.DataFrame,
    sizes: pd.DataFrame,
    tables: SweepTables,
    tolerance: float,
    rate: float,
) -> GroupVerdict:
    """One group; `sizes` has the trials of every d_model on the grid that differ in no more."""
    spectral = judge_spectra(trials)
    losses = judge_losses(trials, tolerance)
    run_next = next_cells.missing_cells(trials, group, rate)
    if not losses:
        reference = reference_multiplier(tables.config)
        run_next += next_cells.equal_budget_half(trials, group, rate, reference)
    elif not _is_recommended(losses):
        run_next += next_cells.for_refusal(losses[0], group, rate)
    at_budgets = at_equal_budgets(sizes, trials, losses, tolerance)
    supply = judge_supply(trials, tolerance, lambda rows: judge_losses(rows, tolerance))
    return _verdict(group, trials, spectral, losses, at_budgets, run_next, tables, supply, None)


def _judge_tuned(
    group: dict[str, Any],
    trials: pd.DataFrame,
    tables: SweepTables,
    tolerance: float,
    rate: float,
) -> GroupVerdict:
    """One group with every width at its own learning rate, and rank laws at one rate."""
    tuned = tune(trials)
    spectral = judge_spectra(trials[trials[RATE_AXIS] == tuned.common_rate])
    losses = judge_losses(tuned.trials, tolerance)
    rates = tuple(float(value) for value in np.sort(trials[RATE_AXIS].dropna().unique()))
    on_grid = {**group, RATE_AXIS: rates}
    run_next = next_cells.more_rates(tuned, trials, group, rate)
    if not _is_recommended(losses):
        run_next += next_cells.for_refusal(losses[0], on_grid, rate)
    at_budgets = at_equal_budgets(tuned.trials, tuned.trials, losses, tolerance)
    supply = judge_supply(
        trials, tolerance, lambda rows: judge_losses(tune(rows).trials, tolerance)
    )
    named = {**group, RATE_AXIS: TUNED}
    return _verdict(named, trials, spectral, losses, at_budgets, run_next, tables, supply, tuned)


def _is_recommended(losses: Sequence[BudgetEvidence]) -> bool:
    return (
        bool(losses)
        and isinstance(losses[0].optimum, LossCurve)
        and (losses[0].optimum.recommended)
    )


def _verdict(
    group: dict[str, Any],
    trials: pd.DataFrame,
    spectral: SpectralEvidence,
    losses: tuple[BudgetEvidence, ...],
    at_budgets: tuple[AtBudget, ...],
    run_next: Sequence[NextCells],
    tables: SweepTables,
    supply: Supply,
    tuned: TunedTrials | None,
) -> GroupVerdict:
    decided = decide(losses)
    multiplier = decided.width_multiplier
    return GroupVerdict(
        group=group,
        label=group_label(group),
        slug=_slug(group_label(group)),
        width_multiplier=multiplier,
        interval=decided.curve.interval if decided.curve else None,
        sentence=decided.sentence,
        rule=decided.rule,
        trials=trials,
        spectral=spectral,
        losses=losses,
        agrees=spectral.stop.agrees(multiplier),
        choices=choices_of(losses[0]) if losses else (),
        at_budgets=at_budgets,
        tuned=tuned,
        supply=supply,
        layers=judge_layers(spectral.used, multiplier, tables),
        caveats=tuple(caveats_of(trials, spectral, losses, multiplier, tables, supply, tuned)),
        run_next=tuple(run_next),
    )


def decide(losses: Sequence[BudgetEvidence]) -> Decision:
    """The verdict on the first of the budgets, or why there is none."""
    optimum = losses[0].optimum if losses else None
    chosen = optimum if isinstance(optimum, LossCurve) and optimum.recommended else None
    if chosen is not None and chosen.headline is not None:
        multiplier = float(chosen.multiplier[chosen.headline])
        return Decision(chosen, multiplier, _sentence(losses[0], chosen, multiplier), _rule(chosen))
    rule = _why_refused(losses[0] if losses else None)
    return Decision(chosen, None, f"no recommendation: {rule}", rule)


def _transfers(
    verdicts: Sequence[GroupVerdict], analysis: Mapping[str, Any]
) -> tuple[Transfer, ...]:
    """One per combination of the axes that do not make a model larger."""
    wanted = section(analysis, "target")
    if not wanted:
        return ()
    target = Target(positive(wanted, "params"), positive(wanted, "tokens"))
    families: dict[tuple[tuple[str, Any], ...], list[GroupVerdict]] = {}
    for verdict in verdicts:
        shared = tuple((k, v) for k, v in verdict.group.items() if k not in SIZE_AXES)
        families.setdefault(shared, []).append(verdict)
    found = []
    for shared, members in families.items():
        sizes = [size for member in members if (size := _size(member)) is not None]
        refused = len(members) - len(sizes)
        found.append(transfer(dict(shared), group_label(dict(shared)), sizes, refused, target))
    return tuple(found)


def _size(verdict: GroupVerdict) -> SizeOptimum | None:
    """The optimum of one size, where one is established."""
    evidence = verdict.deciding
    if evidence is None or verdict.interval is None:
        return None
    assert isinstance(evidence.optimum, LossCurve)
    return SizeOptimum(
        parameters=float(evidence.used["parameters_non_embedding"].median()),
        tokens=float(evidence.used["tokens"].median()),
        optimum=evidence.optimum.optimum,
        interval=verdict.interval,
    )


def _sentence(evidence: BudgetEvidence, curve: LossCurve, multiplier: float) -> str:
    cell = evidence.cell(multiplier)
    same = curve.equivalent & curve.admissible
    alike = f"; {_runs(curve.multiplier, same)} are equivalent at this precision"
    if same.sum() < 2:
        alike = ""
    return (
        f"use {multiple(multiplier)} (D = {cell['D']:.0f} at d_model = {cell['d_model']:.0f}); the "
        f"optimum is at {curve.optimum:.2f}x, 90 % interval {interval(curve.interval)}{alike}"
    )


def _runs(multiplier: Floats, chosen: NDArray[np.bool_]) -> str:
    """Widths in words, neighbours as a span: `1.5x and 2.67x to 4x`."""
    places = np.flatnonzero(chosen)
    spans = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    *others, final = [
        " to ".join(multiple(float(multiplier[i])) for i in dict.fromkeys((span[0], span[-1])))
        for span in spans
    ]
    return f"{', '.join(others)} and {final}" if others else final


def _rule(curve: LossCurve) -> str:
    if curve.within_tolerance:
        return (
            f"the smallest width whose loss excess over the optimum has an upper 90 % bound below "
            f"{curve.tolerance:g} nats; {curve.reason}"
        )
    broken = "" if curve.admissible.all() else " that broke down nowhere"
    return (
        f"the width of least loss excess: no upper 90 % bound of a width{broken} is below "
        f"{curve.tolerance:g} nats; {curve.reason}"
    )


def _why_refused(evidence: BudgetEvidence | None) -> str:
    if evidence is None:
        return (
            "the sweep has no cells of equal budget (hold: params or flops), and the loss at "
            "unequal budgets only says that larger models are better"
        )
    return evidence.optimum.reason


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own, a missing value as None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
