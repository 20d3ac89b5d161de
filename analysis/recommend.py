"""From a sweep's tables to a verdict a group: how wide, how sure, resting on what, and if not, why.

A group is one combination of every axis but the width and the replicate. The loss at an equal
budget decides; the spectra explain, and may agree or not. Pure: no I/O.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis import next_cells
from analysis.caveats import caveats_of
from analysis.equal_budget import BUDGETS, TOLERANCE_NATS, BudgetEvidence, judge_losses
from analysis.laws import LocalElasticity, PowerLaw, Refusal, is_shown
from analysis.loss_optimum import REQUIRED_SUPPORT, LossCurve, Unfitted
from analysis.next_cells import NextCells
from analysis.replicates import Interval
from analysis.spectral import PLATEAU, SpectralEvidence, judge_spectra
from analysis.table import SweepTables, reference_multiplier
from analysis.wording import group_label, interval, multiple


@dataclass(frozen=True)
class GroupVerdict:
    """The verdict on one group, with everything it rests on."""

    group: Mapping[str, Any]  # axis -> value
    label: str  # the group in a few words
    width_multiplier: float | None  # D / d_model; None where no width is recommended
    interval: Interval | None  # of the optimum, 90 %
    sentence: str  # the verdict
    rule: str  # by which rule the width was chosen, or why none was
    trials: pd.DataFrame  # rows of `SweepTables.trials`
    spectral: SpectralEvidence
    losses: tuple[BudgetEvidence, ...]  # by budget, the deciding one first
    agrees: bool | None  # whether the spectral stop agrees
    caveats: tuple[str, ...]
    run_next: tuple[NextCells, ...]

    @property
    def verdict(self) -> Literal["recommended", "refused"]:
        return "refused" if self.width_multiplier is None else "recommended"

    @property
    def deciding(self) -> BudgetEvidence | None:
        """The budget that decides, if any was held equal."""
        return self.losses[0] if self.losses else None

    @property
    def slug(self) -> str:
        """The label as part of a file's name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-")

    @property
    def alternatives(self) -> list[dict[str, Any]]:
        """Every width of the deciding budget, from the narrowest, with what it costs in loss."""
        return [] if self.deciding is None else _alternatives(self.deciding)

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
            "evidence": _evidence(self),
            "caveats": list(self.caveats),
            "run_next": [cells.to_dict() for cells in self.run_next],
        }


@dataclass(frozen=True)
class Recommendation:
    """The verdicts of a sweep."""

    sweep: str
    groups: tuple[GroupVerdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of recommendation.json."""
        return {"sweep": self.sweep, "groups": [group.to_dict() for group in self.groups]}


def recommend(tables: SweepTables) -> Recommendation:
    """Judge every group of a sweep, sorted by their axes."""
    analysis = tables.config.get("analysis") or {}
    tolerance = float(analysis.get("tolerance_nats") or TOLERANCE_NATS)
    rate = next_cells.seconds_per_flop(tables.trials)
    return Recommendation(
        tables.name,
        tuple(
            _judge(group, trials, tables, tolerance, rate)
            for group, trials in _groups(tables.trials, tables.group_axes)
        ),
    )


def _groups(
    trials: pd.DataFrame, axes: tuple[str, ...]
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    if not axes:
        return [({}, trials)]
    found = trials.groupby(list(axes), sort=True, dropna=False)
    return [
        ({axis: _plain(value) for axis, value in zip(axes, values, strict=True)}, members)
        for values, members in found
    ]


def _judge(
    group: dict[str, Any],
    trials: pd.DataFrame,
    tables: SweepTables,
    tolerance: float,
    rate: float,
) -> GroupVerdict:
    spectral = judge_spectra(trials)
    losses = judge_losses(trials, tolerance)
    optimum = losses[0].optimum if losses else None
    chosen = optimum if isinstance(optimum, LossCurve) and optimum.recommended else None
    run_next = next_cells.missing_cells(trials, group, rate)
    if not losses:
        reference = reference_multiplier(tables.config)
        run_next += next_cells.equal_budget_half(trials, group, rate, reference)
    elif chosen is None:
        run_next += next_cells.for_refusal(losses[0], group, rate)
    multiplier = None
    if chosen is not None and chosen.headline is not None:
        multiplier = float(chosen.multiplier[chosen.headline])
        rule, sentence = _rule(chosen), _sentence(losses[0], chosen, multiplier)
    else:
        rule = _why_refused(losses[0] if losses else None)
        sentence = f"no recommendation: {rule}"
    label = group_label(group)
    return GroupVerdict(
        group=group,
        label=label,
        width_multiplier=multiplier,
        interval=chosen.interval if chosen else None,
        sentence=sentence,
        rule=rule,
        trials=trials,
        spectral=spectral,
        losses=losses,
        agrees=spectral.stop.agrees(multiplier),
        caveats=tuple(caveats_of(trials, spectral, losses, multiplier, tables)),
        run_next=tuple(run_next),
    )


def _sentence(evidence: BudgetEvidence, curve: LossCurve, multiplier: float) -> str:
    cell = evidence.cell(multiplier)
    same = curve.multiplier[curve.equivalent & curve.admissible]
    alike = (
        f"; {multiple(same.min())} to {multiple(same.max())} are equivalent at this precision"
        if len(same) > 1
        else ""
    )
    return (
        f"use {multiple(multiplier)} (D = {cell['D']:.0f} at d_model = {cell['d_model']:.0f}); the "
        f"optimum is at {curve.optimum:.2f}x, 90 % interval {interval(curve.interval)}{alike}"
    )


def _rule(curve: LossCurve) -> str:
    if curve.within_tolerance:
        return (
            f"the smallest width whose loss excess over the optimum has an upper 90 % bound below "
            f"{curve.tolerance:g} nats; {curve.reason}"
        )
    return (
        f"the width of least loss excess: no width's upper 90 % bound is below {curve.tolerance:g} "
        f"nats; {curve.reason}"
    )


def _why_refused(evidence: BudgetEvidence | None) -> str:
    if evidence is None:
        return (
            "the sweep has no cells of equal budget (hold: params or flops), and the loss at "
            "unequal budgets only says that larger models are better"
        )
    return evidence.optimum.reason


# --- the contract's evidence ---------------------------------------------------------------


def _alternatives(evidence: BudgetEvidence) -> list[dict[str, Any]]:
    curve = evidence.optimum
    if isinstance(curve, Unfitted):
        return []
    listed = []
    for i, multiplier in enumerate(curve.multiplier):
        cell = evidence.cell(float(multiplier))
        listed.append(
            {
                "width_multiplier": float(multiplier),
                "D": int(cell["D"]),
                "d_model": int(cell["d_model"]),
                "val_loss": float(curve.loss[i]),
                "runs": int(curve.counts[i]),
                "excess_nats": float(curve.excess[i]),
                "excess_upper_nats": float(curve.excess_upper[i]),
                "within_tolerance": bool(curve.excess_upper[i] < curve.tolerance),
                "equivalent": bool(curve.equivalent[i]),
                "admissible": bool(curve.admissible[i]),
            }
        )
    return listed


def _evidence(verdict: GroupVerdict) -> dict[str, Any]:
    trials, spectral = verdict.trials, verdict.spectral
    states = trials["state"].value_counts()
    return {
        "holds_for": _holds_for(trials, verdict.deciding),
        "cells": {
            "planned": len(trials),
            "used_by_laws": len(spectral.used),
            "used_by_loss": len(verdict.deciding.used) if verdict.deciding else 0,
            "undersampled": int(trials["undersampled"].sum()),
            **{
                state: int(states.get(state, 0))
                for state in (
                    *("completed", "collapsed", "diverged", "stopped"),
                    *("failed", "unfinished", "waiting"),
                )
            },
        },
        "replicates": int(trials["replicate"].nunique()),
        "confidence": 0.9,
        "laws": {name: _law(law) for name, law in spectral.laws.items()},
        "laws_left_out": spectral.excluded,
        "elasticity": {name: _elasticity(found) for name, found in spectral.elasticity.items()},
        "spectral_stop": {
            "width_multiplier": spectral.stop.multiplier,
            "agrees": verdict.agrees,
            "below": PLATEAU,
            "sentence": spectral.stop.sentence,
        },
        "loss": {evidence.hold: _loss(evidence) for evidence in verdict.losses},
    }


def _holds_for(trials: pd.DataFrame, deciding: BudgetEvidence | None) -> dict[str, Any]:
    """Size and tokens at which the verdict was found: another size may have another optimum."""
    cells = trials if deciding is None else deciding.planned

    def span(column: str) -> list[float] | None:
        values = cells[column].dropna()
        return None if values.empty else [float(values.min()), float(values.max())]

    return {
        "budget": None if deciding is None else BUDGETS[deciding.hold][1],
        "non_embedding_parameters": span("parameters_non_embedding"),
        "parameters": span("parameters_total"),
        "flops": span("flops"),
        "tokens": span("tokens"),
        "d_model": span("d_model"),
    }


def _law(law: PowerLaw | Refusal) -> dict[str, Any]:
    if isinstance(law, Refusal):
        return {"fitted": False, "reason": law.reason, "excluded": dict(law.excluded)}
    fields = asdict(law)
    del fields["mean_log_x"], fields["spread_log_x"]
    return {"fitted": True, **fields, "shown": is_shown(law)}


def _elasticity(found: LocalElasticity | Refusal) -> dict[str, Any]:
    if isinstance(found, Refusal):
        return {"measured": False, "reason": found.reason}
    return {"measured": True, **asdict(found)}


def _loss(evidence: BudgetEvidence) -> dict[str, Any]:
    found = evidence.optimum
    shared = {"budget": BUDGETS[evidence.hold][1], "span": list(evidence.budget)}
    if isinstance(found, Unfitted):
        return {**shared, "fitted": False, **asdict(found)}
    return {
        **shared,
        "fitted": True,
        "optimum": found.optimum,
        "interval": found.interval,
        "support": found.support,
        "required_support": REQUIRED_SUPPORT,
        "recommended": found.recommended,
        "reason": found.reason,
        "tolerance_nats": found.tolerance,
        "coefficients": [float(c) for c in found.coefficients],
        "noise_sd_nats": found.noise_sd,
        "noise_from": found.noise_from,
        "lack_of_fit_p": found.lack_of_fit_p,
        "widths": len(found.multiplier),
        "replicates": found.replicates,
        "inadmissible": list(evidence.inadmissible),
    }


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own, a missing value as None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
