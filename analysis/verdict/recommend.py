"""Judge every group of a sweep: the recommended width, its uncertainty and its evidence.

A group is one combination of all axes except width and replicate. The loss at an equal budget
decides; the spectra are reported beside it. Pure: no I/O.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.spectral import SpectralEvidence, SpectralStop, judge_spectra
from analysis.settings import TOLERANCE_NATS
from analysis.tables.sweep_tables import SweepTables, reference_multiplier
from analysis.verdict import next_cells
from analysis.verdict.budgets import AtBudget, at_equal_budgets
from analysis.verdict.caveats import TUNED, caveats_of
from analysis.verdict.choices import choices_of
from analysis.verdict.decision import decide
from analysis.verdict.equal_budget import BudgetEvidence, judge_losses
from analysis.verdict.group_verdict import GroupVerdict, Recommendation
from analysis.verdict.layer_verdict import judge_layers
from analysis.verdict.loss_optimum import LossCurve
from analysis.verdict.next_cells import NextCells
from analysis.verdict.supply import Supply, judge_supply
from analysis.verdict.trained_enough import judge_training
from analysis.verdict.transfer import SizeOptimum, Target, Transfer, transfer
from analysis.verdict.tuned_rate import AXIS as RATE_AXIS
from analysis.verdict.tuned_rate import TunedTrials, is_tunable, tune
from analysis.wording import group_label
from trialstore.sweep_file import positive, section

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
        InputError: the sweep file's tolerance or target is not a number above 0.

    Example:
        >>> for verdict in recommend(load_sweep(LocalStorage("widthlab-runs/small"))).groups:
        ...     print(verdict.label, verdict.width_multiplier, verdict.rule)
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


def _judge(
    group: dict[str, Any],
    trials: pd.DataFrame,
    sizes: pd.DataFrame,
    tables: SweepTables,
    tolerance: float,
    rate: float,
) -> GroupVerdict:
    """One group; `sizes` has its trials at every d_model of the grid."""
    spectral = judge_spectra(trials)
    losses = judge_losses(trials, tolerance)
    run_next = next_cells.missing_cells(trials, group, rate)
    if not losses:
        reference = reference_multiplier(tables.config)
        run_next += next_cells.matched_cells(trials, group, rate, reference)
    else:
        run_next += _asked_by_losses(losses, group, tables, rate)
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
    run_next += _asked_by_losses(losses, on_grid, tables, rate)
    at_budgets = at_equal_budgets(tuned.trials, tuned.trials, losses, tolerance)
    supply = judge_supply(
        trials, tolerance, lambda rows: judge_losses(tune(rows).trials, tolerance)
    )
    named = {**group, RATE_AXIS: TUNED}
    return _verdict(named, trials, spectral, losses, at_budgets, run_next, tables, supply, tuned)


def _asked_by_losses(
    losses: tuple[BudgetEvidence, ...],
    group: Mapping[str, Any],
    tables: SweepTables,
    rate: float,
) -> list[NextCells]:
    """Lower learning rates where the training needs them, else what could mend a refusal."""
    training = judge_training(losses[0].used)
    if training.needs_lower_rate:
        lower = next_cells.lower_rates(losses[0], tables.trials, group, rate, training)
        if lower or training.refusal is not None:
            return lower
    if decide(losses).curve is None:
        return next_cells.for_refusal(losses[0], group, rate)
    return []


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
    multiplier, stop = decided.width_multiplier, spectral.stop
    agrees = None
    if multiplier is not None and isinstance(stop, SpectralStop):
        agrees = stop.agrees(multiplier)
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
