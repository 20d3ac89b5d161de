"""A sweep's directory as tidy tables: one row a trial, one a snapshot of a layer, one a metric.

Which cells exist is read from the `resolved` section of sweep.yaml, what became of them from the
trial directories: a cell without a directory is a row too, and says "waiting".
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from analysis import records
from analysis.errors import InputError
from analysis.records import ALL_TOKENS, METRICS, SPECTRA, SPECTRUM_COLUMNS
from analysis.storage import Storage
from analysis.wording import AXIS_PREFIX

logger = logging.getLogger(__name__)

SWEEP_FILE = "sweep.yaml"

#: Of the axes, those that do not tell one group from another.
WITHIN_GROUP = ("width_multiplier", "ffn_width", "seed", "d_model", "D")
#: The site whose ranks the scaling laws are about (arXiv 2510.00537).
LAW_SITE = "post"
#: Snapshots a layer is summarised over, where the sweep file does not say.
AGGREGATE_LAST = 5
#: The width whose budget a sweep keeps, where its file does not say.
REFERENCE_MULTIPLIER = 4.0
#: Budgets further apart than this (relative) are of different model sizes, not one size missed.
SAME_BUDGET = 0.10

_PARAMETERS = ("total", "non_embedding", "embedding", "head", "attention", "ffn", "norm")
_LOSSES = ("train_loss", "val_loss", "val_perplexity", "val_bits_per_byte")
_SECONDS = ("training", "evaluation", "spectra", "checkpoints", "start", "total")
_MEASURED = (
    *("id", "state", "reason", "holds", "replicate", "uniform_width", "typed_multiplier"),
    *("base_d_model", "step", "steps", "tokens", "flops", "flops_per_token", "snapshots"),
    *("undersampled", "n_over_d", "versions", "layout"),
)
_HEAVY = ("eigenvalues", "nodes", "weights")


@dataclass(frozen=True)
class SweepTables:
    """Everything the judgement needs of a sweep. Frames are never changed in place.

    `trials` has a column per axis, and for every trial: id, state (an outcome, or failed,
    unfinished, waiting), holds, D, d_model, base_d_model, width_multiplier (D / d_model, of the
    achieved widths) and typed_multiplier, replicate, budgets, losses (nats per token), seconds,
    layout, versions, and the spectral summary: per layer the median over the last snapshots,
    then the median over layers. `spectra` has a row per trial, step, site and layer, `curves` a
    row per trial and recorded step, `eigenvalues` a row per trial and layer of the last snapshot.
    """

    name: str
    url: str
    config: Mapping[str, Any]  # sweep.yaml with its `resolved` section
    group_axes: tuple[str, ...]  # columns of `trials` that tell the groups apart
    trials: pd.DataFrame
    spectra: pd.DataFrame
    curves: pd.DataFrame
    eigenvalues: pd.DataFrame
    versions: Mapping[str, Mapping[str, Any]]  # library versions by their digest in `trials`

    def of(self, frame: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
        """The rows of `spectra`, `curves` or `eigenvalues` that belong to these trials."""
        return frame[frame["id"].isin(trials["id"])]


def load_sweep(sweep: Storage) -> SweepTables:
    """Read a sweep's directory.

    Raises InputError where it is no sweep or an object in it cannot be read.
    """
    config = _config(sweep)
    cells = config["resolved"]["trials"]
    axes = _axes(cells)
    last = int(_section(config, "analysis").get("aggregate_last") or AGGREGATE_LAST)
    rows, spectra, curves, eigenvalues = [], [], [], []
    versions = {}
    for cell in cells:
        trial = sweep.child(f"trials/{cell['id']}")
        try:
            result = records.get_result(trial)
            snapshots = _records(trial, SPECTRA, cell["id"], result)
            curve = _records(trial, METRICS, cell["id"], result)
            row = _trial_row(trial, cell, axes, result or {})
        except InputError as error:  # one damaged trial must not take the others' verdict
            logger.warning("left out: %s", error)
            result, snapshots, curve = None, _none(SPECTRA), _none(METRICS)
            row = _trial_row(None, cell, axes, {}) | {"state": "failed", "reason": str(error)}
        snapshots = snapshots.filter(pc.field("bucket") == ALL_TOKENS)
        light = snapshots.drop_columns(list(_HEAVY))
        rows.append(row | summarise(light.to_pandas(), last))
        spectra.append(light)
        eigenvalues.append(_last_eigenvalues(snapshots))
        curves.append(curve)
        if row["versions"] is not None:
            versions[row["versions"]] = _section(result or {}, "versions")
    group_axes = [axes[name] for name in axes if name not in WITHIN_GROUP]
    reference = reference_multiplier(config)
    typed = _section(config, "grid").get("d_model")
    trials = _by_size(_frame(rows, axes.values()), group_axes, typed, reference)
    if trials["base_d_model"].nunique() > 1:
        group_axes.append("base_d_model")
    return SweepTables(
        name=str(config.get("name") or sweep.url.rstrip("/").rpartition("/")[2]),
        url=sweep.url,
        config=config,
        group_axes=tuple(group_axes),
        trials=trials,
        spectra=pa.concat_tables(spectra).to_pandas(),
        curves=pa.concat_tables(curves).to_pandas(),
        eigenvalues=pa.concat_tables(eigenvalues).to_pandas(),
        versions=versions,
    )


def _frame(rows: Sequence[Mapping[str, Any]], axes: Iterable[str]) -> pd.DataFrame:
    """The rows, with axes as the file has them: pandas would make a float of an integer that
    some cells leave open."""
    frame = pd.DataFrame(rows)
    open_ended = [axis for axis in axes if axis in frame and frame[axis].isna().any()]
    return frame.assign(
        **{axis: pd.Series([row[axis] for row in rows], dtype=object) for axis in open_ended}
    )


def reference_multiplier(config: Mapping[str, Any]) -> float:
    """The width whose budget the sweep's other widths keep."""
    typed = _section(config, "model").get("reference_multiplier")
    return float(typed) if typed else REFERENCE_MULTIPLIER


def holding(trials: pd.DataFrame, hold: str) -> pd.DataFrame:
    """The trials that belong to one half of a grid: "none", "params" or "flops"."""
    return trials[np.array([hold in holds for holds in trials["holds"]], dtype=bool)]


def summarise(snapshots: pd.DataFrame, last: int) -> dict[str, Any]:
    """The spectral summary of one trial: medians over its last snapshots, then over layers.

    The snapshot of step 0 is of weights that have learnt nothing and never enters. Without a
    snapshot every metric is NaN and `snapshots` is 0.
    """
    used = snapshots[(snapshots["site"] == LAW_SITE) & (snapshots["step"] > 0)]
    steps = np.sort(used["step"].unique())[-last:]
    used = used[used["step"].isin(steps)]
    layers = used.groupby("layer")[list(SPECTRUM_COLUMNS)].median()
    return {
        "snapshots": len(steps),
        "undersampled": bool((used["status"] == "undersampled").any()),
        "n_over_d": float(used["n_over_d"].min()) if len(used) else np.nan,
        **{name: float(layers[name].median()) for name in SPECTRUM_COLUMNS},
    }


# --- the sweep file ------------------------------------------------------------------------


def _config(sweep: Storage) -> dict[str, Any]:
    place = f"{sweep.url}/{SWEEP_FILE}"
    try:
        config = yaml.safe_load(sweep.get(SWEEP_FILE))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{sweep.url} is no sweep: it has no {SWEEP_FILE}; give the directory that "
            "`widthlab run` made, the one that holds trials/"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{place} is not YAML: {error}") from error
    cells = _section(config, "resolved").get("trials") if isinstance(config, dict) else None
    if not isinstance(cells, list) or not cells:
        raise InputError(
            f"{place} does not list its trials (resolved.trials): it is a sweep as written, not "
            "as run; give the directory that `widthlab run` made"
        )
    for cell in cells:
        if not isinstance(cell, dict) or not {"id", "axes"} <= cell.keys():
            raise InputError(f"{place}: resolved.trials holds {cell!r}, which has no id or axes")
    assert isinstance(config, dict)
    return config


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _axes(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Column by axis. An axis called like a measured quantity gets a prefix."""
    taken = {*_MEASURED, *_LOSSES, *SPECTRUM_COLUMNS}
    names = dict.fromkeys(name for cell in cells for name in cell["axes"])
    return {name: f"{AXIS_PREFIX}{name}" if name in taken else name for name in names}


def _by_size(
    trials: pd.DataFrame, group_axes: Sequence[str], typed: object, reference: float
) -> pd.DataFrame:
    """The trials with `base_d_model`: the d_model of the file, which a budget trades for width.

    Where d_model is an axis, the cells of equal budget fall into sizes; each size belongs to the
    d_model on the axis that it comes nearest to at the `reference` multiplier. A trial that is a
    cell of one size with a fixed d_model and of another at an equal budget gets a row in each.
    """
    free = holding(trials, "none")
    sizes = np.unique(typed if isinstance(typed, list) else free["d_model"].dropna())
    if len(sizes) <= 1:
        only = sizes[0] if len(sizes) else trials["d_model"].median()
        return trials.assign(base_d_model=float(only))
    base_of: dict[tuple[Any, float], list[str]] = {}  # (row, base_d_model) -> holds
    for label, d_model in free["d_model"].items():
        base_of[label, float(d_model)] = ["none"]
    for hold, budget in (("params", "parameters_non_embedding"), ("flops", "flops")):
        held = holding(trials, hold)
        alike = held.groupby(list(group_axes), dropna=False) if group_axes else [((), held)]
        for _, cells in alike:
            for members in _clusters(cells[budget]):
                own = cells.loc[members].sort_values("width_multiplier")
                at = np.interp(np.log(reference), np.log(own["width_multiplier"]), own["d_model"])
                nearest = float(sizes[np.argmin(np.abs(np.log(sizes / at)))])
                for label in members:
                    base_of.setdefault((label, nearest), []).append(hold)
    labels = sorted(base_of)
    split = trials.loc[[label for label, _ in labels]].reset_index(drop=True)
    split["base_d_model"] = [base for _, base in labels]
    split["holds"] = pd.Series([tuple(base_of[label]) for label in labels])
    return split


def _clusters(values: pd.Series) -> list[list[Any]]:
    """Index labels of values that follow each other with no gap beyond SAME_BUDGET."""
    ordered = values.dropna().sort_values()
    clusters: list[list[Any]] = []
    previous = np.nan
    for label, value in ordered.items():
        if not clusters or value > previous * (1 + SAME_BUDGET):
            clusters.append([])
        clusters[-1].append(label)
        previous = value
    return clusters


# --- a trial -------------------------------------------------------------------------------


def _trial_row(
    trial: Storage | None,
    cell: Mapping[str, Any],
    axes: Mapping[str, str],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """A row of what is known; without `trial` of nothing but the cell itself."""
    given = cell["axes"]
    state, reason = ("waiting", None) if trial is None else _state(trial, result)
    final, seconds = _section(result, "final"), _section(result, "seconds")
    parameters = {**_section(cell, "parameters"), **_section(result, "parameters")}
    widths = np.atleast_1d(np.asarray(given.get("D", np.nan), float))
    uniform = bool((widths == widths[0]).all())
    width, d_model = float(widths.mean()), _number(given.get("d_model"))
    versions, layout = _section(result, "versions"), dict(_section(result, "layout"))
    layout.pop("branch_points", None)  # which checkpoints are kept, not how the work lies
    row = {
        "id": str(cell["id"]),
        "state": state,
        "reason": reason,
        "holds": tuple(cell.get("holds") or ("none",)),
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
        "flops": _number(result.get("flops") or cell.get("flops")),
        "flops_per_token": _number(result.get("flops_per_token")),
        "inference_flops_per_token": _number(result.get("inference_flops_per_token")),
        "best_val_loss": _number(result.get("best_val_loss")),
        "versions": _digest(versions),
        "layout": json.dumps(layout, sort_keys=True) if layout else None,
    }
    row |= {f"parameters_{name}": _number(parameters.get(name)) for name in _PARAMETERS}
    row |= {name: _number(final.get(name)) for name in _LOSSES}
    return row | {f"seconds_{name}": _number(seconds.get(name)) for name in _SECONDS}


def _state(trial: Storage, result: Mapping[str, Any]) -> tuple[str, str | None]:
    if result:
        return str(result.get("outcome")), result.get("reason")
    failure = records.get_json(trial, records.FAILURE)
    if failure:
        return "failed", failure.get("message")
    begun = records.get_json(trial, records.LEASE) is not None
    return ("unfinished", None) if begun else ("waiting", None)


def _last_eigenvalues(snapshots: pa.Table) -> pa.Table:
    """Of the last snapshot, a row per layer; without exact eigenvalues the lists are null."""
    law = snapshots.filter(pc.equal(snapshots.column("site"), LAW_SITE))
    last = law.filter(pc.equal(law.column("step"), pc.max(law.column("step"))))
    return last.select(["id", "step", "layer", "D", "method", "eigenvalues"])


def _records(
    trial: Storage, table: str, trial_id: str, result: Mapping[str, Any] | None
) -> pa.Table:
    """A trial's table, its id in the first column; empty where the trial has none."""
    if result is not None and not result["records"]:
        logger.warning("%s names no records; it enters with its result only", trial.url)
        return _none(table)
    try:
        rows = records.read_records(trial, table)
    except (FileNotFoundError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(
            f"{trial.url}: the records of {table} cannot be read: {error}; "
            "`widthlab rerun` discards the trial"
        ) from error
    return rows.add_column(0, "id", pa.array([trial_id] * rows.num_rows, pa.string()))


def _none(table: str) -> pa.Table:
    return records.SCHEMAS[table].empty_table().add_column(0, "id", pa.array([], pa.string()))


def _number(value: object) -> float:
    """A float; NaN for anything that is not a number."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable else float("nan")  # type: ignore[arg-type]


def _scalar(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | dict | tuple) else value


def _digest(versions: Mapping[str, Any]) -> str | None:
    """Eight digits that are equal for equal library versions."""
    if not versions:
        return None
    return hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:8]
