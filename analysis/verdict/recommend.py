"""Judge every group of a sweep: the recommended width, its uncertainty and its evidence.

A group is one combination of all axes except width and replicate. The loss at an equal budget
decides; the spectra are reported beside it. Pure: no I/O.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.spectral import SpectralEvidence, SpectralStop, judge_spectra
from analysis.settings import FALSE_RECOMMENDATIONS, TOLERANCE_NATS
from analysis.tables.sweep_tables import SweepTables, reference_multiplier
from analysis.verdict import next_cells
from analysis.verdict.budgets import AtBudget, at_equal_budgets
from analysis.verdict.caveats import TUNED, caveats_of
from analysis.verdict.choices import choices_of
from analysis.verdict.decision import decide
from analysis.verdict.equal_budget import BudgetEvidence, LossRule, judge_losses, runs_of
from analysis.verdict.false_recommendations import (
    Evidence,
    Look,
    evidence_of_looks,
    looks_in,
    with_look,
    withheld,
)
from analysis.verdict.group_verdict import GroupVerdict, Recommendation
from analysis.verdict.layer_verdict import judge_layers
from analysis.verdict.loss_optimum import LossCurve
from analysis.verdict.next_cells import NextCells
from analysis.verdict.run_noise import NO_TREND, NoiseTrend, noise_trend, unsuspected
from analysis.verdict.supply import Supply, judge_supply
from analysis.verdict.transfer import SizeOptimum, Target, Transfer, transfer
from analysis.verdict.tuned_rate import AXIS as RATE_AXIS
from analysis.verdict.tuned_rate import TunedTrials, is_tunable, tune
from analysis.wording import group_label
from trialstore.sweep_file import positive, section
from trialstore.trial_state import UNFINISHED

#: Axes that change the size of a model: groups that differ only in them are sizes of one family.
SIZE_AXES = ("base_d_model", "depth")
#: Characters of a slug: a file name has at most 255 bytes, and a suffix follows the slug.
LONGEST_SLUG = 120


def recommend(tables: SweepTables) -> Recommendation:
    """Judge every group of a sweep.

    With three or more learning rates on the grid, each combination of the other axes is judged
    twice: with every width at its own rate, and at each rate of the grid.

    Args:
        tables: the sweep, as `load_sweep` returns it.

    Returns:
        The verdicts in the order of the groups' axes, those tuned per width first.

    Raises:
        InputError: a number of the sweep file's `analysis` is not above 0.

    Example:
        >>> for verdict in recommend(load_sweep(LocalStorage("widthlab-runs/small"))).groups:
        ...     print(verdict.label, verdict.width_multiplier, verdict.rule)
    """
    analysis = section(tables.config, "analysis")
    rule = loss_rule(analysis)
    cases = _cases(tables, rule)
    curves, looks = {}, {}
    for number, case in enumerate(cases):
        if case.losses and isinstance(curve := case.losses[0].optimum, LossCurve):
            curves[number] = curve
            looks[number] = with_look(looks_in(tables.earlier), _look(case, curve))
    controlled = evidence_of_looks(curves, looks, rule.false_recommendations)
    verdicts = [
        _judge(case, tables, rule, controlled.get(number)) for number, case in enumerate(cases)
    ]
    transfers = _transfers(verdicts, analysis)
    told = tuple(_told_apart(verdicts))
    return Recommendation(tables.name, tables.aggregation.text, told, transfers, tables.left_out)


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", label)[:LONGEST_SLUG].strip("-.") or "group"


def _told_apart(verdicts: Iterable[GroupVerdict]) -> Iterator[GroupVerdict]:
    """The verdicts with unique slugs: a number is added where two differ at most in case."""
    taken: set[str] = set()
    for verdict in verdicts:
        slug, number = verdict.slug, 1
        while slug.lower() in taken:
            number += 1
            slug = f"{verdict.slug}-{number}"
        taken.add(slug.lower())
        yield replace(verdict, slug=slug)


def _same(trials: pd.DataFrame, group: Mapping[str, Any], but: Iterable[str]) -> pd.DataFrame:
    """The trials that have a group's values on all axes except `but`."""
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
        # The key from groupby is no use: beside a missing value pandas turns integers into floats.
        ({axis: _plain(members[axis].iloc[0]) for axis in axes}, members)
        for _, members in found
    ]


def loss_rule(analysis: Mapping[str, Any]) -> LossRule:
    """Return the settings of the judgement of losses. Raises InputError for unusable ones."""
    noise = analysis.get("noise_nats")
    return LossRule(
        positive(analysis, "tolerance_nats", TOLERANCE_NATS),
        positive(analysis, "false_recommendations", FALSE_RECOMMENDATIONS),
        None if noise is None else positive(analysis, "noise_nats"),
    )


@dataclass(frozen=True)
class _Case:
    """A group to judge, and its losses at equal budgets."""

    group: Mapping[str, Any]  # axis -> value
    trials: pd.DataFrame
    sizes: pd.DataFrame  # its trials at every d_model of the grid
    losses: tuple[BudgetEvidence, ...]
    tuned: TunedTrials | None  # with every width at its own learning rate

    @property
    def judged(self) -> pd.DataFrame:
        """The trials whose losses are judged."""
        return self.trials if self.tuned is None else self.tuned.trials


def _cases(tables: SweepTables, rule: LossRule) -> list[_Case]:
    """Every group with its losses; those tuned per width first."""
    axes, trials = tables.group_axes, tables.trials
    cases = []
    if is_tunable(trials):
        for group, rows in _groups(trials, tuple(axis for axis in axes if axis != RATE_AXIS)):
            if is_tunable(rows) and len((tuned := tune(rows)).trials):
                losses = judge_losses(tuned.trials, rule)
                named = {**group, RATE_AXIS: TUNED}
                cases.append(_Case(named, rows, tuned.trials, losses, tuned))
    for group, rows in _groups(trials, axes):
        sizes = _same(trials, group, but=("base_d_model",))
        cases.append(_Case(group, rows, sizes, judge_losses(rows, rule, family=sizes), None))
    trend = _common_trend(cases)
    if not trend.established:  # then each group's own was looked for
        return cases
    return [
        replace(case, losses=judge_losses(case.judged, rule, family=case.sizes, trend=trend))
        for case in cases
    ]


def _common_trend(cases: Sequence[_Case]) -> NoiseTrend:
    """The trend of the noise over the width in all groups together; none for one group."""
    if len(cases) < 2:
        return NO_TREND
    return noise_trend(
        [
            runs.only(unsuspected(runs))
            for case in cases
            if case.losses
            for runs in (runs_of(case.judged, case.losses[0].matching),)
        ]
    )


def _look(case: _Case, curve: LossCurve) -> Look:
    """The present look at a group."""
    to_come = case.losses[0].planned["state"].isin(UNFINISHED)
    return Look(frozenset(case.losses[0].used["id"]), not to_come.any(), curve.recommended)


def _judge(
    case: _Case, tables: SweepTables, rule: LossRule, controlled: Evidence | None
) -> GroupVerdict:
    losses, tuned, trials = case.losses, case.tuned, case.trials
    if controlled is not None and not controlled.sufficient:
        losses = (withheld(losses[0], controlled, rule.false_recommendations), *losses[1:])
    seconds = next_cells.seconds_per_flop(tables.trials)
    if tuned is None:
        spectral, on_grid = judge_spectra(trials), dict(case.group)
        run_next = next_cells.missing_cells(trials, on_grid, seconds)
    else:
        spectral = judge_spectra(trials[trials[RATE_AXIS] == tuned.common_rate])
        rates = tuple(float(value) for value in np.sort(trials[RATE_AXIS].dropna().unique()))
        on_grid = {**case.group, RATE_AXIS: rates}
        run_next = next_cells.more_rates(tuned, trials, on_grid, seconds)
    decided = decide(losses)
    if not losses:
        reference = reference_multiplier(tables.config)
        run_next += next_cells.matched_cells(trials, on_grid, seconds, reference)
    elif decided.curve is None and decided.plateau is None:
        run_next += next_cells.for_refusal(losses[0], on_grid, seconds)
    at_budgets = at_equal_budgets(case.sizes, case.judged, losses, rule.tolerance)
    supply = judge_supply(
        trials,
        rule.tolerance,
        lambda rows: judge_losses(rows if tuned is None else tune(rows).trials, rule),
    )
    return _verdict(case, losses, spectral, at_budgets, run_next, tables, supply, controlled)


def _verdict(
    case: _Case,
    losses: tuple[BudgetEvidence, ...],
    spectral: SpectralEvidence,
    at_budgets: tuple[AtBudget, ...],
    run_next: Sequence[NextCells],
    tables: SweepTables,
    supply: Supply,
    controlled: Evidence | None,
) -> GroupVerdict:
    group, trials, tuned = case.group, case.trials, case.tuned
    decided = decide(losses)
    multiplier, stop = decided.width_multiplier, spectral.stop
    agrees = None
    if multiplier is not None and isinstance(stop, SpectralStop):
        agrees = stop.agrees(multiplier)
    return GroupVerdict(
        group=group,
        label=group_label(group),
        slug=_slug(group_label(group)),
        width_multiplier=multiplier,
        plateau=decided.plateau,
        interval=decided.curve.interval if decided.curve else None,
        sentence=decided.sentence,
        rule=decided.rule,
        trials=trials,
        spectral=spectral,
        losses=losses,
        controlled=controlled,
        agrees=agrees,
        choices=choices_of(losses[0]) if losses else (),
        at_budgets=at_budgets,
        tuned=tuned,
        supply=supply,
        layers=judge_layers(spectral, multiplier, tables),
        caveats=tuple(caveats_of(trials, spectral, losses, multiplier, tables, supply, tuned)),
        run_next=tuple(run_next),
    )


def _transfers(
    verdicts: Sequence[GroupVerdict], analysis: Mapping[str, Any]
) -> tuple[Transfer, ...]:
    """One transfer per combination of the axes that do not change a model's size."""
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
    """The optimum of one size; None where none is established."""
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


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python one; NaN as None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
