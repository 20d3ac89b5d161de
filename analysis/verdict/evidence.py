"""The evidence of a verdict as plain values, for recommendation.json."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.power_law import LocalElasticity, PowerLaw, is_shown
from analysis.laws.saturation import Saturation
from analysis.laws.spectral import PLATEAU, SpectralEvidence
from analysis.refusal import Refusal
from analysis.replicates import CONFIDENCE
from analysis.tables.sweep_tables import DUPLICATE
from analysis.verdict.differences import NotComparable
from analysis.verdict.equal_budget import BUDGETS, BudgetEvidence
from analysis.verdict.loss_over_width import plateau_of
from analysis.verdict.trained_enough import UnstableRefusal, judge_training
from trialstore.records import OUTCOMES

#: Fields of a law that only its band is computed from.
_WORKINGS = ("mean_log_x", "spread_log_x", "beta_errors", "replicate_error", "level_error")


def widths_of(evidence: BudgetEvidence) -> list[dict[str, Any]]:
    """Return one row per width of an equal budget, in ascending order, with its loss excess."""
    curve = evidence.optimum
    if isinstance(curve, Refusal):
        return []
    listed = []
    for i, multiplier in enumerate(curve.multiplier):
        cell = evidence.cell(float(multiplier))
        listed.append(
            {
                "width_multiplier": float(multiplier),
                "D": int(cell["D"]),
                "d_model": int(cell["d_model"]),
                "val_loss": float(curve.measured[i]),
                "val_loss_at_budget": float(curve.loss[i]),
                "runs": int(curve.counts[i]),
                "excess_nats": float(curve.excess[i]),
                "excess_upper_nats": float(curve.excess_upper[i]),
                "within_tolerance": bool(curve.excess_upper[i] < curve.tolerance),
                "equivalent": bool(curve.equivalent[i]),
                "admissible": bool(curve.admissible[i]),
            }
        )
    return listed


def evidence_of(
    trials: pd.DataFrame,
    spectral: SpectralEvidence,
    losses: Sequence[BudgetEvidence],
    agrees: bool | None,
) -> dict[str, Any]:
    """Return `evidence` of one group in recommendation.json.

    Args:
        trials: rows of `SweepTables.trials` of the group.
        spectral: the rank laws.
        losses: the loss optima by budget, the deciding one first.
        agrees: whether the spectral stop agrees with the recommended width; None if unknown.
    """
    deciding = losses[0] if losses else None
    states = trials["state"].value_counts()
    return {
        "holds_for": _holds_for(trials, deciding),
        "cells": {
            "planned": len(trials),
            "used_by_laws": len(spectral.used),
            "used_by_loss": len(deciding.used) if deciding else 0,
            "undersampled": int(trials["undersampled"].sum()),
            **{state: int(states.get(state, 0)) for state in (*OUTCOMES, "failed", "waiting")},
            # The file's own word, from before a cell said which of the two it is.
            "unfinished": int(states.get("running", 0) + states.get("stale", 0)),
            DUPLICATE: int(states.get(DUPLICATE, 0)),
        },
        "invalid_spectra": int(trials["invalid_spectra"].sum()),
        "not_debiased": int(trials["not_debiased"].sum()),
        "replicates": int(trials["replicate"].nunique()),
        "confidence": CONFIDENCE,
        "laws": laws_of(spectral),
        "width_law": _law(spectral.width_law),
        "saturation": {name: _saturation(found) for name, found in spectral.saturation.items()},
        "laws_left_out": spectral.excluded,
        "elasticity": {name: _elasticity(found) for name, found in spectral.elasticity.items()},
        "spectral_stop": {
            "width_multiplier": None
            if isinstance(spectral.stop, Refusal)
            else spectral.stop.multiplier,
            "agrees": agrees,
            "below": PLATEAU,
            "sentence": spectral.stop.sentence,
        },
        "loss": losses_of(losses),
        "training": judge_training(deciding.used).to_dict() if deciding else None,
    }


def laws_of(spectral: SpectralEvidence) -> dict[str, Any]:
    """Return quantity -> law of a rank, as in recommendation.json."""
    return {name: _law(law) for name, law in {**spectral.laws, **spectral.utilisation}.items()}


def losses_of(losses: Sequence[BudgetEvidence]) -> dict[str, Any]:
    """Return budget -> loss optimum, as in recommendation.json."""
    return {evidence.matching: _loss(evidence) for evidence in losses}


def _holds_for(trials: pd.DataFrame, deciding: BudgetEvidence | None) -> dict[str, Any]:
    """The sizes and tokens of the cells: another size may have another optimum."""
    cells = trials if deciding is None else deciding.planned

    def span(column: str) -> list[float] | None:
        values = cells[column].dropna()
        return None if values.empty else [float(values.min()), float(values.max())]

    return {
        "budget": None if deciding is None else BUDGETS[deciding.matching].name,
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
    for name in _WORKINGS:
        del fields[name]
    return {"fitted": True, **fields, "shown": is_shown(law)}


def _saturation(found: Saturation | Refusal) -> dict[str, Any]:
    if isinstance(found, Refusal):
        return {"tested": False, "reason": found.reason, "excluded": dict(found.excluded)}
    return {"tested": True, **asdict(found)}


def _elasticity(found: LocalElasticity | Refusal) -> dict[str, Any]:
    if isinstance(found, Refusal):
        return {"measured": False, "reason": found.reason}
    return {"measured": True, **asdict(found)}


def _obstacle(evidence: BudgetEvidence, found: Refusal) -> str:
    if isinstance(found, UnstableRefusal):
        return "unstable"
    if isinstance(found, NotComparable):
        return "not comparable"
    return "few widths" if len(evidence.used) else "no losses"


def _loss(evidence: BudgetEvidence) -> dict[str, Any]:
    found = evidence.optimum
    shared = {"budget": BUDGETS[evidence.matching].name, "span": list(evidence.budget)}
    if isinstance(found, Refusal):
        differ = {}
        if isinstance(found, NotComparable):
            differ = {"differences": [one.to_dict() for one in found.differences]}
        return {
            **shared,
            **differ,
            "fitted": False,
            "obstacle": _obstacle(evidence, found),
            "reason": found.reason,
            "widths": int(np.log(evidence.used["width_multiplier"]).nunique()),
            "replicates": int(evidence.used["replicate"].nunique()),
        }
    return {
        **shared,
        "fitted": True,
        "optimum": found.optimum,
        "interval": found.interval,
        "support": found.support,
        "required_support": found.required_support,
        "recommended": found.recommended,
        "reason": found.reason,
        "tolerance_nats": found.tolerance,
        "shape": {"p": found.shape[0], "q": found.shape[1]},
        "noise_sd_nats": found.noise_sd,
        "noise_from": found.noise_from,
        "lack_of_fit_p": found.lack_of_fit_p,
        "budget_slope": asdict(found.slope) if found.slope.applied else None,
        "noise_exponent": found.trend.exponent if found.trend.established else None,
        "noise_exponent_p": found.trend.p,
        "suspect_runs": [
            {
                "id": str(evidence.used["id"].iloc[suspect.index]),
                "deviation_nats": suspect.deviation,
                "p": suspect.p,
            }
            for suspect in found.suspects
        ],
        "support_without_suspects": found.support_without,
        "support_if_narrow_are_noisy": found.support_if_noisy,
        "log_evidence": found.log_evidence,
        "plateau": plateau_of(found),
        "widths": len(found.multiplier),
        "replicates": found.replicates,
        "inadmissible": list(evidence.inadmissible),
        "left_out": dict(evidence.left_out),
    }
