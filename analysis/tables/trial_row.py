"""One trial as a row of the table of trials, from its cell, its state and its result."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.tables.stability import STABILITY
from trialstore.records import SPECTRUM_COLUMNS
from trialstore.sweep_file import ResolvedCell, section
from trialstore.trial_state import TrialState

_PARAMETERS = ("total", "non_embedding", "embedding", "head", "attention", "ffn", "norm")
_LOSSES = ("train_loss", "val_loss", "val_loss_se", "val_perplexity", "val_bits_per_byte")
_SECONDS = ("training", "evaluation", "spectra", "checkpoints", "start", "total")
_DATA = (
    *("train_tokens", "heldout_tokens", "measured_tokens", "window_tokens"),
    *("passes", "unknown_share", "unigram_loss"),
)
#: Columns of measured values. An axis with such a name gets a prefix.
MEASURED = frozenset(
    (
        *("id", "state", "reason", "holds", "replicate", "uniform_width", "typed_multiplier"),
        *("base_d_model", "step", "steps", "tokens", "flops", "flops_per_token", "snapshots"),
        *("undersampled", "n_over_d", "invalid_spectra", "not_debiased", "versions", "layout"),
        *("semantics_version", "best_val_loss", "best_val_loss_step", "lossless"),
        *_LOSSES,
        *_DATA,
        *STABILITY,
        *SPECTRUM_COLUMNS,
        "hard_rank_debiased",
    )
)


def trial_row(
    cell: ResolvedCell, axes: Mapping[str, str], trial: TrialState, semantics_version: int
) -> dict[str, Any]:
    """Return a trial's row of `SweepTables.trials`, without its spectral summary.

    Args:
        cell: The trial as planned.
        axes: The column of each axis, by the axis's name.
        trial: Its state; without a result the measured columns are NaN or None.
        semantics_version: The version that the trial was trained under.
    """
    given, result = cell.axes, trial.result or {}
    final, seconds = section(result, "final"), section(result, "seconds")
    data = section(result, "data")
    lossless = data.get("lossless")
    parameters = {**cell.parameters, **section(result, "parameters")}
    widths = np.atleast_1d(np.asarray(given.get("D", np.nan), float))
    uniform = bool((widths == widths[0]).all())
    width, d_model = float(widths.mean()), _number(given.get("d_model"))
    versions, layout = section(result, "versions"), dict(section(result, "layout"))
    layout.pop("branch_points", None)  # says which checkpoints are kept, nothing of the layout
    row = {
        "id": cell.id,
        "state": trial.state,
        "reason": trial.message,
        "semantics_version": semantics_version,
        "holds": cell.holds,
        **{column: _scalar(given.get(name)) for name, column in axes.items()},
        "replicate": given.get("seed", 0),
        "D": width,
        "uniform_width": uniform,
        "d_model": d_model,
        "typed_multiplier": _number(given.get("width_multiplier")),
        "width_multiplier": width / d_model,
        "step": _number(result.get("step")),
        "steps": _number(result.get("steps")),
        "tokens": _number(result.get("tokens")),
        "flops": _number(result.get("flops") or cell.flops),
        "flops_per_token": _number(result.get("flops_per_token")),
        "inference_flops_per_token": _number(result.get("inference_flops_per_token")),
        "best_val_loss": _number(result.get("best_val_loss")),
        "best_val_loss_step": _number(result.get("best_val_loss_step")),
        "lossless": lossless if isinstance(lossless, bool) else None,
        "versions": _digest(versions),
        "layout": json.dumps(layout, sort_keys=True) if layout else None,
    }
    row |= {f"parameters_{name}": _number(parameters.get(name)) for name in _PARAMETERS}
    row |= {name: _number(final.get(name)) for name in _LOSSES}
    row |= {name: _number(data.get(name)) for name in _DATA}
    return row | {f"seconds_{name}": _number(seconds.get(name)) for name in _SECONDS}


def _number(value: object) -> float:
    """Return a float: NaN for anything but a number, infinity for an integer too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else -float("inf")


def _scalar(value: object) -> object:
    """Return a table cell: a list becomes JSON, and a date of YAML becomes text."""
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, default=str)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _digest(versions: Mapping[str, Any]) -> str | None:
    """Return eight hex digits, equal for equal library versions."""
    if not versions:
        return None
    return hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:8]
