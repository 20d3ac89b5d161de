"""Read a sweep's directory as tidy tables of trials, spectra and training curves.

The planned cells come from the `resolved` section of sweep.yaml, their states and numbers from the
trial directories. A cell without a directory is a row too, in state "waiting".
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.settings import REFERENCE_MULTIPLIER
from analysis.tables.aggregate import LAW_SITE, aggregate, with_debiased, without_spectra
from analysis.tables.aggregation import Aggregation
from analysis.tables.semantics import (
    finished_beside,
    refuse_mixed,
    semantics_of_result,
    semantics_of_sweep,
)
from analysis.tables.stability import stability_row
from analysis.tables.trial_row import MEASURED, trial_row
from analysis.tables.trial_settings import read_settings
from analysis.wording import AXIS_PREFIX, plural
from trialstore import records
from trialstore.errors import InputError
from trialstore.records import ALL_TOKENS, METRICS, SPECTRA, BrokenRecordError
from trialstore.storage import Storage
from trialstore.sweep_file import (
    RECOMMENDATION,
    REPORT,
    ResolvedCell,
    read_sweep_file,
    section,
    trial_storage,
)
from trialstore.trial_state import TrialState, read_state

logger = logging.getLogger(__name__)

__all__ = [
    "LAW_SITE",
    "SweepTables",
    "load_sweep",
    "matched",
    "reference_multiplier",
]

#: The axes that vary within a group.
WITHIN_GROUP = ("width_multiplier", "ffn_width", "seed", "d_model", "D")
#: The state of a trial whose cell another trial of the sweep has too.
DUPLICATE = "duplicate"
#: Budgets with a larger relative difference belong to different model sizes.
SAME_BUDGET = 0.10

_HEAVY = ("eigenvalues", "nodes", "weights")


@dataclass(frozen=True, repr=False)
class SweepTables:
    """The tables of a sweep that the analysis works on. Frames are never changed in place.

    `trials` has a row per trial; a trial that is a cell of two model sizes has a row in each. Its
    columns are flat, except for the tuple `holds`:
    every axis by its name (with the prefix `axis_` if it has the name of a column below); id;
    state (of `trialstore.trial_state`, or duplicate) and reason; semantics_version,
    the same for all that have a result; holds;
    D [mean over layers], uniform_width, d_model, base_d_model, width_multiplier (D / d_model, of
    the achieved widths), typed_multiplier, replicate; step, steps [updates], tokens;
    parameters_* by component; flops [of training], flops_per_token, inference_flops_per_token;
    train_loss, val_loss, best_val_loss [nats per token] and best_val_loss_step; val_loss_se, the
    standard error of val_loss as an estimate for the whole held-out split; val_perplexity,
    val_bits_per_byte, missing if the tokenizer loses text;
    train_tokens, heldout_tokens [of the splits], measured_tokens [of an evaluation],
    window_tokens [of the training split's windows, once each]; passes over these; lossless and
    unknown_share [of the tokens], of the tokenizer on this corpus; unigram_loss [nats per token],
    of a model that knows only the token frequencies, on the measured tokens;
    the stability of its training (`analysis.tables.stability.stability_row`);
    seconds_* by activity; layout [JSON], versions [digest]; and the spectral summary that
    `aggregation` names (`analysis.tables.aggregate.aggregate`).

    `spectra` has a row per trial, layer, site and snapshot, `curves` a row per trial and recorded
    step, with the columns of `trialstore.records` and, in `spectra`, hard_rank_debiased
    (`analysis.sampling_bias`); `eigenvalues` a row per trial and layer of the last snapshot.
    """

    name: str
    url: str
    config: Mapping[str, Any]  # sweep.yaml with its `resolved` section
    group_axes: tuple[str, ...]  # columns of `trials` whose values make a group
    aggregation: Aggregation  # of the spectral summary in `trials`
    trials: pd.DataFrame
    spectra: pd.DataFrame
    curves: pd.DataFrame
    eigenvalues: pd.DataFrame
    versions: Mapping[str, Mapping[str, Any]]  # library versions by their digest in `trials`
    # The recommendation.json of the last analysis: how often the data have been looked at.
    earlier: Mapping[str, Any] = field(default_factory=dict)
    # Ids of finished trials in the directory that sweep.yaml does not name, by semantics version,
    # under None if a trial's version cannot be read. They are used for nothing.
    beside: Mapping[int | None, tuple[str, ...]] = field(default_factory=dict)
    # Trial id -> settings by dotted name (`analysis.tables.trial_settings`) of every trial that has
    # a result and a spec.json.
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sentences on the finished trials in `beside`: `11 finished trials of ... left out`."""
        own = set(self.trials["semantics_version"])
        told = []
        for version, ids in self.beside.items():
            if version in own:
                of = "of an earlier version of the sweep file"
            elif version is None:
                of = "whose semantics version cannot be read"
            else:
                of = f"of semantics version {version}"
            told.append(f"{plural(len(ids), 'finished trial')} {of} left out")
        return tuple(told)

    def __repr__(self) -> str:
        return (
            f"SweepTables of {self.name}: {plural(len(self.trials), 'trial')}, "
            f"{len(self.spectra)} spectra, {len(self.curves)} curve points ({self.url})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.trials.to_html(max_rows=20, border=0)}"

    def of(self, frame: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of `spectra`, `curves` or `eigenvalues` that belong to `trials`."""
        return frame[frame["id"].isin(trials["id"])]

    def with_axes(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Add the trial's columns to each row of `spectra` or `curves`.

        These are the axes, state, semantics_version, holds (joined by +), replicate, d_model and
        width_multiplier. An axis with the name of a column of the frame, such as the learning rate
        of a step, gets the prefix `axis_`.
        """
        axes = [axis for axis in self.group_axes if axis != "base_d_model"]
        about = ["state", "semantics_version", "holds", "replicate", "d_model", "width_multiplier"]
        columns = list(dict.fromkeys([*axes, *about]))
        trials = self.trials.drop_duplicates("id").set_index("id")[columns]
        trials = trials.assign(holds=trials["holds"].map("+".join))
        taken = {name: f"{AXIS_PREFIX}{name}" for name in columns if name in frame}
        return frame.join(trials.rename(columns=taken), on="id")


def load_sweep(
    sweep: Storage, aggregate_last: int | None = None, aggregate_layers: str | None = None
) -> SweepTables:
    """Read a sweep's directory into tables: one row per trial, spectrum and curve point.

    A trial that cannot be read is a row of state "failed", with the reason.

    Args:
        sweep: The sweep's directory.
        aggregate_last: Snapshots per layer in the spectral summary; None for the file's choice.
        aggregate_layers: Statistic over layers; None for the file's choice.

    Raises:
        InputError: The directory is not a sweep's, its file cannot be used, or its finished trials
            have several semantics versions.
    """
    resolved = read_sweep_file(sweep)
    config, cells = resolved.content, resolved.cells
    of_sweep = semantics_of_sweep(resolved)
    how = Aggregation.of(section(config, "analysis"), last=aggregate_last, layers=aggregate_layers)
    axes = _axes(cells)
    rows, spectra, curves, eigenvalues = [], [], [], []
    finished = []
    versions, settings = {}, {}
    for cell in cells:
        trial = trial_storage(sweep, cell.id)
        try:
            state = read_state(trial, cell.id)
            result = state.result
            snapshots = _records(trial, SPECTRA, cell.id, result)
            curve = _records(trial, METRICS, cell.id, result)
            _refuse_contradiction(trial, result, curve)
            version = of_sweep
            if result is not None:
                version = semantics_of_result(result, trial.url_of(records.RESULT))
            row = trial_row(cell, axes, state, version)
        except InputError as error:  # one damaged trial must not take the others' verdict
            logger.warning("left out: %s", error)
            result, snapshots, curve = None, _none(SPECTRA), _none(METRICS)
            broken = TrialState(state="failed", message=str(error))
            row = trial_row(cell, axes, broken, of_sweep)
        snapshots = snapshots.filter(pc.field("bucket") == ALL_TOKENS)
        light = snapshots.drop_columns(list(_HEAVY))
        rows.append(row | stability_row(curve))
        if result is not None and (result["records"] or np.isfinite(row["val_loss"])):
            finished.append(row["semantics_version"])  # without numbers it enters no law
        spectra.append(light)
        eigenvalues.append(_last_eigenvalues(snapshots))
        curves.append(curve)
        if row["versions"] is not None:
            versions[row["versions"]] = section(result or {}, "versions")
        own = None if result is None else read_settings(trial, cell.id)
        if own is not None:
            settings[cell.id] = own
    refuse_mixed(finished, sweep.url)
    group_axes = [axes[name] for name in axes if name not in WITHIN_GROUP]
    reference = reference_multiplier(config)
    typed = section(config, "grid").get("d_model")
    snapshots = with_debiased(pa.concat_tables(spectra).to_pandas())
    trials = _summed_up(_frame(_marked(rows, cells), axes.values()), snapshots, how)
    trials = _by_size(trials, group_axes, typed, reference)
    if trials["base_d_model"].nunique() > 1:
        group_axes.append("base_d_model")
    return SweepTables(
        name=resolved.name,
        url=sweep.url,
        config=config,
        group_axes=tuple(group_axes),
        aggregation=how,
        trials=trials,
        spectra=snapshots,
        curves=pa.concat_tables(curves).to_pandas(),
        eigenvalues=pa.concat_tables(eigenvalues).to_pandas(),
        versions=versions,
        beside=finished_beside(sweep, resolved.ids),
        earlier=_earlier_recommendation(sweep),
        settings=settings,
    )


def _earlier_recommendation(sweep: Storage) -> Mapping[str, Any]:
    """The content of the last recommendation.json; empty without one."""
    key = f"{REPORT}/{RECOMMENDATION}"
    try:
        return records.get_json(sweep, key) or {}
    except BrokenRecordError as error:
        logger.warning("%s: earlier looks at the sweep are not counted", error)
        return {}


def _marked(rows: Sequence[dict[str, Any]], cells: Sequence[ResolvedCell]) -> list[dict[str, Any]]:
    """Mark the rows whose cell another trial has too, except the first completed one.

    A second trial with the same initialisation and data is not a replicate.
    """
    named = [json.dumps([cell.axes, cell.holds], sort_keys=True, default=str) for cell in cells]
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
    """Add the spectral summary to the trials."""
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
    lost = int(summary["not_debiased"].sum())
    if lost:
        logger.warning(
            "%d spectra have too few samples for a debiased hard rank, which is left out of the "
            "summaries (column not_debiased of the table of trials)",
            lost,
        )
    types = {"snapshots": int, "undersampled": bool, "invalid_spectra": int, "not_debiased": int}
    return pd.concat([trials, found.astype(types)], axis="columns")


def _frame(rows: Sequence[Mapping[str, Any]], axes: Iterable[str]) -> pd.DataFrame:
    """Return the rows as a frame that keeps the axes' types.

    pandas would turn an integer axis into floats if some cells leave it open.
    """
    frame = pd.DataFrame(rows)
    open_ended = [axis for axis in axes if axis in frame and frame[axis].isna().any()]
    return frame.assign(
        **{axis: pd.Series([row[axis] for row in rows], dtype=object) for axis in open_ended}
    )


def reference_multiplier(config: Mapping[str, Any]) -> float:
    """Return the width multiplier whose budget the sweep's cells of equal budget keep."""
    typed = section(config, "model").get("reference_multiplier")
    return float(typed) if typed else REFERENCE_MULTIPLIER


def matched(trials: pd.DataFrame, matching: str) -> pd.DataFrame:
    """Return the trials of one matching: "none", "params" or "flops"."""
    return trials[np.array([matching in holds for holds in trials["holds"]], dtype=bool)]


def _axes(cells: Sequence[ResolvedCell]) -> dict[str, str]:
    """Map each axis to its column. An axis with the name of a measured value gets a prefix."""
    names = dict.fromkeys(name for cell in cells for name in cell.axes)
    return {name: f"{AXIS_PREFIX}{name}" if name in MEASURED else name for name in names}


def _by_size(
    trials: pd.DataFrame, group_axes: Sequence[str], typed: object, reference: float
) -> pd.DataFrame:
    """Add `base_d_model`: the d_model of the file, which an equal budget trades for width.

    If d_model is an axis, the cells of equal budget form model sizes. Each size belongs to the
    d_model of the axis that it comes nearest to at the `reference` multiplier. A trial that is a
    cell of one size at a fixed d_model, and of another at an equal budget, gets a row in each.
    """
    free = matched(trials, "none")
    sizes = np.unique(typed if isinstance(typed, list) else free["d_model"].dropna())
    if len(sizes) <= 1:
        only = sizes[0] if len(sizes) else trials["d_model"].median()
        return trials.assign(base_d_model=float(only))
    base_of: dict[tuple[Any, float], list[str]] = {}  # (row, base_d_model) -> holds
    for label, d_model in free["d_model"].items():
        base_of[label, float(d_model)] = ["none"]
    for matching, budget in (("params", "parameters_non_embedding"), ("flops", "flops")):
        held = matched(trials, matching)
        alike = held.groupby(list(group_axes), dropna=False) if group_axes else [((), held)]
        for _, cells in alike:
            for members in _clusters(cells[budget]):
                own = cells.loc[members].sort_values("width_multiplier")
                at = np.interp(np.log(reference), np.log(own["width_multiplier"]), own["d_model"])
                nearest = float(sizes[np.argmin(np.abs(np.log(sizes / at)))])
                for label in members:
                    base_of.setdefault((label, nearest), []).append(matching)
    labels = sorted(base_of)
    split = trials.loc[[label for label, _ in labels]].reset_index(drop=True)
    split["base_d_model"] = [base for _, base in labels]
    split["holds"] = pd.Series([tuple(base_of[label]) for label in labels])
    return split


def _clusters(values: pd.Series) -> list[list[Any]]:
    """Group the index labels of sorted values whose gaps are at most SAME_BUDGET."""
    ordered = values.dropna().sort_values()
    clusters: list[list[Any]] = []
    previous = np.nan
    for label, value in ordered.items():
        if not clusters or value > previous * (1 + SAME_BUDGET):
            clusters.append([])
        clusters[-1].append(label)
        previous = value
    return clusters


# --- the records of a trial ----------------------------------------------------------------


def _last_eigenvalues(snapshots: pa.Table) -> pa.Table:
    """Return a row per layer of the last snapshot. Lists are null without exact eigenvalues."""
    law = snapshots.filter(pc.equal(snapshots.column("site"), LAW_SITE))
    last = law.filter(pc.equal(law.column("step"), pc.max(law.column("step"))))
    return last.select(["id", "step", "layer", "D", "method", "eigenvalues"])


def _records(
    trial: Storage, table: str, trial_id: str, result: Mapping[str, Any] | None
) -> pa.Table:
    """Return a trial's table with its id as the first column; empty if it has no rows."""
    if result is not None and not result["records"]:
        logger.warning("%s: the result names no records; only the result is used", trial.url)
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
    """Raise InputError if the final loss of a result differs from the one in its records."""
    said = section(result or {}, "final").get("val_loss")
    if result is None or said is None or not curve.num_rows:
        return
    at_end = pc.and_(pc.equal(curve["step"], result["step"]), pc.equal(curve["kind"], "evaluation"))
    found = curve.filter(at_end)["val_loss"].to_pylist()
    if found != [said]:
        raise InputError(
            f"{trial.url_of(records.RESULT)} has a final val_loss of {said}, but its records have "
            f"{found[0] if found else 'none'}: one of them was changed; `widthlab rerun` discards "
            "the trial"
        )


def _none(table: str) -> pa.Table:
    return records.SCHEMAS[table].empty_table().add_column(0, "id", pa.array([], pa.string()))
