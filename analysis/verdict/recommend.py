"""Judge every group of a sweep: the recommended width, its uncertainty and its evidence.

A group is one combination of all axes except width and replicate. The loss at an equal budget
decides; the spectra are reported beside it. Pure: no I/O.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.laws.spectral import SpectralStop
from analysis.settings import FALSE_RECOMMENDATIONS, TOLERANCE_NATS
from analysis.tables.sweep_tables import SweepTables, reference_multiplier
from analysis.verdict import next_cells
from analysis.verdict.budgets import at_equal_budgets
from analysis.verdict.cases import Case, Judge, cases_of, like
from analysis.verdict.caveats import caveats_of
from analysis.verdict.choices import choices_of
from analysis.verdict.comparable import compare_trials
from analysis.verdict.compare import compare
from analysis.verdict.decision import decide
from analysis.verdict.differences import NotComparable
from analysis.verdict.equal_budget import BudgetEvidence, LossRule
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
from analysis.verdict.loss_over_width import LossCurve
from analysis.verdict.next_cells import NextCells
from analysis.verdict.supply import judge_supply
from analysis.verdict.trained_enough import judge_training
from analysis.verdict.transfer import SizeOptimum, Target, Transfer, transfer
from analysis.verdict.tuned_rate import AXIS as RATE_AXIS
from analysis.wording import group_label
from trialstore.sweep_file import positive, section
from trialstore.trial_state import UNFINISHED

#: Axes that change the size of a model: groups that differ only in them are sizes of one family.
SIZE_AXES = ("base_d_model", "depth")
#: Characters of a slug: a file name has at most 255 bytes, and a suffix follows the slug.
LONGEST_SLUG = 120


def recommend(tables: SweepTables) -> Recommendation:
    """Judge every group of a sweep.

    With three or more learning rates on the grid, a combination of the other axes has one verdict,
    with every width at its own rate. What is found at each rate is part of its evidence.

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
    judge = Judge(tables, rule)
    cases = cases_of(judge)
    controlled = _controlled(cases, tables, rule)
    verdicts = [_judge(case, judge, controlled.get(number)) for number, case in enumerate(cases)]
    transfers = _transfers(verdicts, analysis)
    told = tuple(_told_apart(verdicts))
    return Recommendation(
        tables.name, tables.aggregation.text, told, transfers, tables.left_out, compare(tables)
    )


def loss_rule(analysis: Mapping[str, Any]) -> LossRule:
    """Return the settings of the judgement of losses. Raises InputError for unusable ones."""
    noise = analysis.get("noise_nats")
    return LossRule(
        positive(analysis, "tolerance_nats", TOLERANCE_NATS),
        positive(analysis, "false_recommendations", FALSE_RECOMMENDATIONS),
        None if noise is None else positive(analysis, "noise_nats"),
    )


def _controlled(cases: Sequence[Case], tables: SweepTables, rule: LossRule) -> dict[int, Evidence]:
    """The evidence of each group with a loss curve, over its looks and all groups, by its place."""
    curves, looks = {}, {}
    for number, case in enumerate(cases):
        if case.losses and isinstance(curve := case.losses[0].optimum, LossCurve):
            curves[number] = curve
            looks[number] = with_look(looks_in(tables.earlier), _look(case, curve))
    return evidence_of_looks(curves, looks, rule.false_recommendations)


def _look(case: Case, curve: LossCurve) -> Look:
    """The present look at a group."""
    to_come = case.losses[0].planned["state"].isin(UNFINISHED)
    return Look(frozenset(case.losses[0].used["id"]), not to_come.any(), curve.recommended)


def _judge(case: Case, judge: Judge, controlled: Evidence | None) -> GroupVerdict:
    tables, rule, losses = judge.tables, judge.rule, case.losses
    if controlled is not None and not controlled.sufficient:
        losses = (withheld(losses[0], controlled, rule.false_recommendations), *losses[1:])
    decided, spectral = decide(losses), case.spectral
    multiplier = decided.width_multiplier
    agrees = None
    if multiplier is not None and isinstance(spectral.stop, SpectralStop):
        agrees = spectral.stop.agrees(multiplier)
    supply = judge_supply(case.trials, rule.tolerance, lambda rows: judge.again(case, rows))
    layers = judge_layers(spectral, multiplier, tables)
    caveats = [
        *caveats_of(case.trials, spectral, losses, multiplier, tables, supply, case.tuned),
        *layers.caveats(spectral),
    ]
    return GroupVerdict(
        group=case.group,
        label=group_label(case.group),
        slug=_slug(group_label(case.group)),
        width_multiplier=multiplier,
        plateau=decided.plateau,
        interval=decided.curve.interval if decided.curve else None,
        sentence=decided.sentence,
        rule=decided.rule,
        trials=case.trials,
        spectral=spectral,
        losses=losses,
        controlled=controlled,
        agrees=agrees,
        choices=choices_of(losses[0]) if losses else (),
        at_budgets=at_equal_budgets(
            case.sizes,
            case.judged,
            losses,
            rule.tolerance,
            lambda rows: compare_trials(rows, tables, free=case.free),
        ),
        tuned=case.tuned,
        at_rates=case.at_rates,
        supply=supply,
        layers=layers,
        caveats=tuple(caveats),
        run_next=tuple(_run_next(case, losses, tables)),
    )


def _run_next(
    case: Case, losses: Sequence[BudgetEvidence], tables: SweepTables
) -> Iterator[NextCells]:
    """The cells that are missing, and those that could remove the obstacle to a verdict."""
    trials, rate = case.trials, next_cells.seconds_per_flop(tables.trials)
    yield from next_cells.missing_cells(trials, case.on_grid, rate)
    if case.tuned is not None:
        yield from next_cells.more_rates(case.tuned, trials, case.group, rate)
    yield from _to_decide(losses, trials, case.on_grid, tables, rate)
    healthy = not losses or not judge_training(losses[0].used).needs_lower_rate
    if case.tuned is None and RATE_AXIS in case.group and healthy:
        rates = like(tables.trials, case.group, but=(RATE_AXIS,))
        if rates[RATE_AXIS].nunique() == 2:  # a third makes them tunable
            yield from next_cells.third_rate(rates, case.group, rate)


def _to_decide(
    losses: Sequence[BudgetEvidence],
    trials: pd.DataFrame,
    group: Mapping[str, Any],
    tables: SweepTables,
    rate: float,
) -> list[NextCells]:
    """The cells that could remove the obstacle to a verdict."""
    if not losses:
        reference = reference_multiplier(tables.config)
        return next_cells.matched_cells(trials, group, rate, reference)
    optimum = losses[0].optimum
    if isinstance(optimum, NotComparable):
        return next_cells.trained_anew(optimum, trials, group, rate)
    training = judge_training(losses[0].used)
    if training.needs_lower_rate:
        lower = next_cells.lower_rates(losses[0], tables.trials, group, rate, training)
        if lower or training.refusal is not None:
            return lower
    decided = decide(losses)
    if decided.curve is None and decided.plateau is None:
        return next_cells.for_refusal(losses[0], group, rate)
    return []


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
