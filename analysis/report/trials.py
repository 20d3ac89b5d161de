"""The end of the report: what became of every trial, the files beside it, how to reproduce it."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.report.page import bullets, folded, paragraph, table
from analysis.report.tables import MOST_CSV_ROWS, has_csv
from analysis.tables.sweep_tables import SweepTables
from analysis.wording import duration, group_label, large, multiple, plural

COLUMNS = {
    "state": "outcome",
    "D": "D",
    "d_model": "d_model",
    "replicate": "seed",
    "parameters_total": "parameters",
    "tokens": "tokens",
    "val_loss": "loss",
    "soft_rank": "soft",
    "hard_rank": "hard",
    "edim": "eDim",
    "seconds_total": "time",
}
#: Outcomes in the order in which they are told.
STATES = (
    *("completed", "collapsed", "diverged", "stopped"),
    *("failed", "unfinished", "waiting", "duplicate"),
)
#: Trials up to which their table is open from the start.
FEW_TRIALS = 16


def trials_section(tables: SweepTables, links: Mapping[str, str]) -> str:
    """Outcomes by group, then every trial, with a link to its MLflow run where there is one."""
    rows = []
    for _, trial in tables.trials.iterrows():
        group = group_label({axis: trial[axis] for axis in tables.group_axes})
        cells = [_cell(name, trial[name]) for name in COLUMNS]
        width = trial["width_multiplier"]
        rows.append(
            [
                group,
                multiple(width) if np.isfinite(width) else "",
                "+".join(trial["holds"]),
                *cells,
                str(trial["id"]),
            ]
        )
    broken = tables.trials[tables.trials["reason"].notna()]
    reasons = [
        f"{trial['id']} {trial['state']}: {trial['reason']}" for _, trial in broken.iterrows()
    ]
    names = ["group", "width", "equal", *COLUMNS.values(), "id"]
    listed = table(names, rows, links=links)
    few = len(rows) <= FEW_TRIALS
    parts = ["<h2>Trials</h2>", "" if len(rows) == 1 else _outcomes(tables)]
    if any(str(trial) in links for trial in tables.trials["id"]):
        parts.append(paragraph("The id of a trial leads to its MLflow run.", "small faint"))
    parts.append(listed if few else folded(plural(len(rows), "trial"), listed))
    if reasons:
        told = bullets(reasons)
        title = f"Why {plural(len(reasons), 'trial')} did not complete"
        parts.append(told if few else folded(title, told))
    return "\n".join(part for part in parts if part)


def _outcomes(tables: SweepTables) -> str:
    """Trials by group and outcome; outcomes that nobody had are no column."""
    states = [state for state in STATES if (tables.trials["state"] == state).any()]
    labels = [
        group_label({axis: trial[axis] for axis in tables.group_axes})
        for _, trial in tables.trials.iterrows()
    ]
    counts = pd.crosstab(pd.Series(labels, index=tables.trials.index), tables.trials["state"])
    rows = [
        [label, *(str(counts[state][label] or "") for state in states)]
        for label in dict.fromkeys(labels)
    ]
    return table(["group", *states], rows)


def _cell(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    number = float(value) if isinstance(value, int | float | np.number) else float("nan")
    if not np.isfinite(number):
        return ""
    if name in ("parameters_total", "tokens"):
        return large(number)
    if name == "seconds_total":
        return duration(number)
    if name in ("D", "d_model", "replicate"):
        return f"{number:g}"
    return f"{number:.4f}" if name == "val_loss" else f"{number:.1f}"


def reproduce(tables: SweepTables, frames: Mapping[str, pd.DataFrame]) -> str:
    """The files beside the report, and all that it takes to come to it again."""
    resolved = tables.config["resolved"]
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in _facts(tables, resolved)
        if value is not None
    )
    lost = [
        f"{cell.get('axes')}: {cell.get('why')}"
        for cell in resolved.get("dropped") or []
        if isinstance(cell, Mapping)
    ]
    dropped = (
        folded(f"{plural(len(lost), 'cell')} of the grid dropped", bullets(lost)) if lost else ""
    )
    written = {key: value for key, value in tables.config.items() if key != "resolved"}
    sweep_file = escape(yaml.safe_dump(written, sort_keys=False, default_flow_style=None))
    return (
        f"<h2>How to reproduce it</h2><dl>{items}</dl>{dropped}"
        "<p>Save the sweep file below and run <code>widthlab run SWEEP.yaml</code>; "
        "<code>widthlab analyze DIR</code> rebuilds this report from the trials.</p>"
        + folded("Sweep file", f"<pre>{sweep_file}</pre>")
        + f"<h2>Beside this file</h2>{_files(frames)}"
    )


def _facts(tables: SweepTables, resolved: Mapping[str, Any]) -> list[tuple[str, object]]:
    git = resolved.get("git") or {}
    commit = git.get("commit")
    facts: list[tuple[str, object]] = [
        ("sweep", f"{tables.name}, in {tables.url}"),
        ("git commit", f"{commit}, with changes" if git.get("dirty") else commit),
        ("corpus fingerprint", resolved.get("corpus_fingerprint")),
        ("tokenizer hash", resolved.get("tokenizer_hash")),
        ("vocabulary", resolved.get("vocab_size")),
        ("semantics version", resolved.get("semantics_version")),
    ]
    facts += [("versions", _pairs(versions)) for versions in tables.versions.values()]
    layouts = sorted(set(tables.trials["layout"].dropna()))
    return [*facts, *(("layout", _pairs(json.loads(layout))) for layout in layouts)]


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _files(frames: Mapping[str, pd.DataFrame]) -> str:
    rows = [
        [name, str(len(frame)), f"tables/{name}.{'csv, .parquet' if has_csv(frame) else 'parquet'}"]
        for name, frame in frames.items()
    ]
    note = (
        "recommendation.json has every number of this report; figures/ has every figure as SVG "
        "and PNG, and in layer-ranks/ the heat maps of other widths."
    )
    if not all(map(has_csv, frames.values())):
        note += f" Tables of more than {MOST_CSV_ROWS:,} rows are written as Parquet only."
    return table(["table", "rows", "files"], rows) + paragraph(note, "small faint")
