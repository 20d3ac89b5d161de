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

from analysis import records
from analysis.errors import InputError
from analysis.records import ALL_TOKENS, METRICS, SPECTRA, SPECTRUM_COLUMNS
from analysis.storage import Storage
from analysis.tables.aggregate import LAW_SITE, aggregate, without_spectra
from analysis.tables.aggregation import AGGREGATE_LAST, Aggregation
from analysis.tables.sweep_file import holds_of, planned_cells, read_sweep_file, section
from analysis.wording import AXIS_PREFIX

logger = logging.getLogger(__name__)

__all__ = [
    "AGGREGATE_LAST",
    "LAW_SITE",
    "SweepTables",
    "holding",
    "load_sweep",
    "reference_multiplier",
]

#: Of the axes, those that do not tell one group from another.
WITHIN_GROUP = ("width_multiplier", "ffn_width", "seed", "d_model", "D")
#: The state of a trial whose cell another trial of the sweep is already.
DUPLICATE = "duplicate"
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
    *("undersampled", "n_over_d", "invalid_spectra", "versions", "layout"),
)
_HEAVY = ("eigenvalues", "nodes", "weights")


@dataclass(frozen=True)
class SweepTables:
    """Everything the judgement needs of a sweep. Frames are never changed in place.

    `trials` has a row per trial, in flat columns but for `holds`, a tuple:
    every axis by its name (with `axis_` before it where it is called like a column below); id;
    state (an outcome, or failed, unfinished, waiting, duplicate) and reason; holds;
    D [mean over layers], uniform_width, d_model, base_d_model, width_multiplier (D / d_model, of
    the achieved widths), typed_multiplier, replicate; step, steps [updates], tokens;
    parameters_* by component; flops [of training], flops_per_token, inference_flops_per_token;
    train_loss, val_loss, best_val_loss [nats per token], val_perplexity, val_bits_per_byte;
    seconds_* by what they were spent on; layout [JSON], versions [digest]; and the spectral
    summary that `aggregation` names (`analysis.tables.aggregate.aggregate`). A trial that is a
    cell of two model sizes has a row in each.

    `spectra` has a row per trial, layer, site and snapshot, `curves` a row per trial and recorded
    step, with the columns of `analysis.records`; `eigenvalues` a row per trial and layer of the
    last snapshot.
    """

    name: str
    url: str
    config: Mapping[str, Any]  # sweep.yaml with its `resolved` section
    group_axes: tuple[str, ...]  # columns of `trials` that tell the groups apart
    aggregation: Aggregation  # of the spectral summary in `trials`; its `text` names it
    trials: pd.DataFrame
    spectra: pd.DataFrame
    curves: pd.DataFrame
    eigenvalues: pd.DataFrame
    versions: Mapping[str, Mapping[str, Any]]  # library versions by their digest in `trials`

    def of(self, frame: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
        """The rows of `spectra`, `curves` or `eigenvalues` that belong to these trials."""
        return frame[frame["id"].isin(trials["id"])]

    def with_axes(self, frame: pd.DataFrame) -> pd.DataFrame:
        """`spectra` or `curves` with what the trial of a row is, so that it stands alone: axes,
        state, holds (joined by +), replicate, d_model and width_multiplier. An axis that is
        called like a column of the frame (the learning rate of a step) has `axis_` before it."""
        axes = [axis for axis in self.group_axes if axis != "base_d_model"]
        about = ["state", "holds", "replicate", "d_model", "width_multiplier"]
        columns = list(dict.fromkeys([*axes, *about]))
        trials = self.trials.drop_duplicates("id").set_index("id")[columns]
        trials = trials.assign(holds=trials["holds"].map("+".join))
        taken = {name: f"{AXIS_PREFIX}{name}" for name in columns if name in frame}
        return frame.join(trials.rename(columns=taken), on="id")


def load_sweep(
    sweep: Storage, aggregate_last: int | None = None, aggregate_layers: str | None = None
) -> SweepTables:
    """Read a sweep's directory; `aggregate_*` go before what its file says.

    Raises InputError where it is no sweep, or its file cannot be used. A trial that cannot be
    read is a row of state "failed" that says why.
    """
    config = read_sweep_file(sweep)
    how = Aggregation.of(section(config, "analysis"), last=aggregate_last, layers=aggregate_layers)
    cells = planned_cells(config, sweep.url)
    axes = _axes(cells)
    rows, spectra, curves, eigenvalues = [], [], [], []
    versions = {}
    for cell in cells:
        trial = sweep.child(f"trials/{cell['id']}")
        try:
            result = records.get_result(trial, str(cell["id"]))
            snapshots = _records(trial, SPECTRA, str(cell["id"]), result)
            curve = _records(trial, METRICS, str(cell["id"]), result)
            _refuse_contradiction(trial, result, curve)
            row = _trial_row(trial, cell, axes, result or {})
        except InputError as error:  # one damaged trial must not take the others' verdict
            logger.warning("left out: %s", error)
            result, snapshots, curve = None, _none(SPECTRA), _none(METRICS)
            row = _trial_row(None, cell, axes, {}) | {"state": "failed", "reason": str(error)}
        snapshots = snapshots.filter(pc.field("bucket") == ALL_TOKENS)
        light = snapshots.drop_columns(list(_HEAVY))
        rows.append(row)
        spectra.append(light)
        eigenvalues.append(_last_eigenvalues(snapshots))
        curves.append(curve)
        if row["versions"] is not None:
            versions[row["versions"]] = section(result or {}, "versions")
    group_axes = [axes[name] for name in axes if name not in WITHIN_GROUP]
    reference = reference_multiplier(config)
    typed = section(config, "grid").get("d_model")
    snapshots = pa.concat_tables(spectra).to_pandas()
    trials = _summed_up(_frame(_marked(rows, cells), axes.values()), snapshots, how)
    trials = _by_size(trials, group_axes, typed, reference)
    if trials["base_d_model"].nunique() > 1:
        group_axes.append("base_d_model")
    return SweepTables(
        name=str(config.get("name") or sweep.name),
        url=sweep.url,
        config=config,
        group_axes=tuple(group_axes),
        aggregation=how,
        trials=trials,
        spectra=snapshots,
        curves=pa.concat_tables(curves).to_pandas(),
        eigenvalues=pa.concat_tables(eigenvalues).to_pandas(),
        versions=versions,
    )


def _marked(
    rows: Sequence[dict[str, Any]], cells: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of `cells`, those marked whose cell another trial is already, the first completed
    one counting: the same initialisation and data once more are no replicate."""
    named = [
        json.dumps([cell["axes"], holds_of(cell)], sort_keys=True, default=str) for cell in cells
    ]
    counting: dict[str, str] = {}
    for wanted in (True, False):
        for name, row in zip(named, rows, strict=True):
            if (row["state"] == "completed") is wanted:
                counting.setdefault(name, row["id"])
    marked = []
    for name, row in zip(named, rows, strict=True):
        if row["id"] != counting[name]:
            reason = f"the same cell as trial {counting[name]}, which counts in its place"
            logger.warning("trial %s is %s", row["id"], reason)
            row = {**row, "state": DUPLICATE, "reason": reason}
        marked.append(row)
    return marked


def _summed_up(trials: pd.DataFrame, spectra: pd.DataFrame, how: Aggregation) -> pd.DataFrame:
    """The trials with their spectral summary."""
    summary = aggregate(spectra, how)
    missing = ~trials["id"].isin(summary.index)
    found = summary.reindex(trials["id"]).set_axis(trials.index)
    for name, value in without_spectra().items():
        found.loc[missing, name] = value
    invalid = int(summary["invalid_spectra"].sum())
    if invalid:
        logger.warning(
            "%d spectra have a rank that is missing, infinite or below 1; these ranks are left "
            "out of the summaries (column invalid_spectra of the table of trials)",
            invalid,
        )
    types = {"snapshots": int, "undersampled": bool, "invalid_spectra": int}
    return pd.concat([trials, found.astype(types)], axis="columns")


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
    typed = section(config, "model").get("reference_multiplier")
    return float(typed) if typed else REFERENCE_MULTIPLIER


def holding(trials: pd.DataFrame, hold: str) -> pd.DataFrame:
    """The trials that belong to one half of a grid: "none", "params" or "flops"."""
    return trials[np.array([hold in holds for holds in trials["holds"]], dtype=bool)]


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
    final, seconds = section(result, "final"), section(result, "seconds")
    parameters = {**section(cell, "parameters"), **section(result, "parameters")}
    widths = np.atleast_1d(np.asarray(given.get("D", np.nan), float))
    uniform = bool((widths == widths[0]).all())
    width, d_model = float(widths.mean()), _number(given.get("d_model"))
    versions, layout = section(result, "versions"), dict(section(result, "layout"))
    layout.pop("branch_points", None)  # which checkpoints are kept, not how the work lies
    row = {
        "id": str(cell["id"]),
        "state": state,
        "reason": reason,
        "holds": holds_of(cell),
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


def _refuse_contradiction(
    trial: Storage, result: Mapping[str, Any] | None, curve: pa.Table
) -> None:
    """Raises InputError where a result says another final loss than the records it rests on."""
    said = section(result or {}, "final").get("val_loss")
    if result is None or said is None or not curve.num_rows:
        return
    at_end = pc.and_(pc.equal(curve["step"], result["step"]), pc.equal(curve["kind"], "evaluation"))
    found = curve.filter(at_end)["val_loss"].to_pylist()
    if found != [said]:
        raise InputError(
            f"{trial.url_of(records.RESULT)} says a final val_loss of {said}, and its records say "
            f"{found[0] if found else 'none'}; one of them was changed: `widthlab rerun` discards "
            "the trial"
        )


def _none(table: str) -> pa.Table:
    return records.SCHEMAS[table].empty_table().add_column(0, "id", pa.array([], pa.string()))


def _number(value: object) -> float:
    """A float; NaN for anything that is not a number, infinity for one that is too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else -float("inf")


def _scalar(value: object) -> object:
    """What can be a cell of a table: a list as JSON, and a date, which YAML knows, as text."""
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, default=str)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _digest(versions: Mapping[str, Any]) -> str | None:
    """Eight digits that are equal for equal library versions."""
    if not versions:
        return None
    return hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:8]
