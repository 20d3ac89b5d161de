"""The end of the report: what became of every trial, the files beside it, how to reproduce it."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.report.page import bullets, folded, grouped_table, paragraph, table
from analysis.report.tables import MOST_CSV_ROWS, has_csv
from analysis.tables.sweep_tables import DUPLICATE, SweepTables
from analysis.wording import duration, group_label, large, multiple, passes_text, plural
from trialstore.records import OUTCOMES
from trialstore.trial_state import WITHOUT_RESULT

COLUMNS = {
    "state": "outcome",
    "D": "D",
    "d_model": "d_model",
    "replicate": "seed",
    "parameters_total": "parameters",
    "tokens": "tokens",
    "passes": "passes",
    "val_loss": "loss",
    "val_loss_se": "s.e.",
    "val_bits_per_byte": "bits per byte",
    "soft_rank": "soft",
    "hard_rank": "hard",
    "edim": "eDim",
    "seconds_total": "time",
}
#: Outcomes in the order in which they are told.
STATES = (*OUTCOMES, *WITHOUT_RESULT, DUPLICATE)
#: Columns that are said once where all trials have the same.
SHARED = (
    *("equal", "outcome", "D", "d_model", "seed", "parameters", "tokens"),
    *("passes", "bits per byte"),
)
ABOUT = (
    "Loss: held-out, at the end, in nats per token. Soft, hard, eDim: directions. Time: of the "
    "device, all told."
)
#: Said of columns that only trials from semantics version 2 on fill.
ABOUT_PASSES = "Passes: over the training data."
ABOUT_ERROR = (
    "S.e.: standard error of the loss as an estimate of the whole held-out split's; trials are "
    "measured on the same tokens, so that their differences are more exact than that."
)
#: Columns that nobody misses where no trial has them; passes are told where data were repeated.
OPTIONAL = ("passes", "s.e.", "bits per byte")
LOSES_TEXT = "not given: the tokenizer loses text"
#: Trials up to which their table is open from the start.
FEW_TRIALS = 16


def trials_section(tables: SweepTables, links: Mapping[str, str]) -> str:
    """Outcomes by group, then every trial, with a link to its MLflow run where there is one."""
    repeated = bool((tables.trials["passes"] > 1).any())
    groups: dict[str, list[list[str]]] = {}
    order = ["width_multiplier", "replicate", "d_model"]
    for _, trial in tables.trials.sort_values(order, kind="stable").iterrows():
        width = trial["width_multiplier"]
        cells = {name: _cell(name, trial[name]) for name in COLUMNS}
        if not repeated:
            cells["passes"] = ""
        if _loses_text(trial):
            cells["val_bits_per_byte"] = LOSES_TEXT
        row = [
            multiple(width) if np.isfinite(width) else "",
            "+".join(trial["holds"]),
            *cells.values(),
            str(trial["id"]),
        ]
        groups.setdefault(_group(tables, trial), []).append(row)
    groups = dict(sorted(groups.items()))
    broken = tables.trials[tables.trials["reason"].notna()]
    reasons = [
        f"{trial['id']} {trial['state']}: {trial['reason']}" for _, trial in broken.iterrows()
    ]
    listed, shared = _listed(groups, links)
    told = [*shared, ABOUT]
    told += [ABOUT_PASSES] if repeated else []
    told += [ABOUT_ERROR] if tables.trials["val_loss_se"].notna().any() else []
    if any(str(trial) in links for trial in tables.trials["id"]):
        told.append("The id of a trial leads to its MLflow run.")
    listed = paragraph(" ".join(told), "small faint") + listed
    count = len(tables.trials)
    few = count <= FEW_TRIALS
    parts = ["<h2>Trials</h2>", _outcomes(tables) if count > 1 else ""]
    parts += [paragraph(f"Not among them: {text}.") for text in tables.left_out]
    parts.append(listed if few else folded(f"All {plural(count, 'trial')}", listed))
    if reasons:
        why = bullets(reasons)
        title = f"Why {plural(len(reasons), 'trial')} did not complete"
        parts.append(why if few else folded(title, why))
    return "\n".join(part for part in parts if part)


def _listed(
    groups: Mapping[str, list[list[str]]], links: Mapping[str, str]
) -> tuple[str, Sequence[str]]:
    """The table, and what all of its rows have in common, which is no column of it."""
    names = ["width", "equal", *COLUMNS.values(), "id"]
    rows = [row for rows in groups.values() for row in rows]
    same = {
        place: rows[0][place]
        for place, name in enumerate(names)
        if name in SHARED and len(rows) > 1 and len({row[place] for row in rows}) == 1
    }
    empty = {
        place
        for place, name in enumerate(names)
        if name in OPTIONAL and not any(row[place] for row in rows)
    }
    same = {place: text for place, text in same.items() if place not in empty}
    kept = [place for place, _ in enumerate(names) if place not in {*same, *empty}]
    found = {title: [[row[at] for at in kept] for row in of] for title, of in groups.items()}
    shared = [f"All: {', '.join(f'{names[at]} {text}' for at, text in same.items())}."]
    return grouped_table([names[at] for at in kept], found, links), shared if same else []


def _loses_text(trial: "pd.Series[Any]") -> bool:
    """Whether there is a loss and no bits per byte of it, for the text is not all there."""
    measured = np.isfinite(trial["val_loss"]) and not np.isfinite(trial["val_bits_per_byte"])
    return bool(measured and trial["lossless"] is not None and not trial["lossless"])


def _group(tables: SweepTables, trial: "pd.Series[Any]") -> str:
    return group_label({axis: trial[axis] for axis in tables.group_axes})


def _outcomes(tables: SweepTables) -> str:
    """Trials by group and outcome; outcomes that nobody had are no column."""
    states = [state for state in STATES if (tables.trials["state"] == state).any()]
    if len(states) == 1:
        return paragraph(f"Every trial: {states[0]}.")
    labels = [_group(tables, trial) for _, trial in tables.trials.iterrows()]
    counts = pd.crosstab(pd.Series(labels, index=tables.trials.index), tables.trials["state"])
    rows = [
        [label, *(str(counts[state][label] or "") for state in states)]
        for label in sorted(set(labels))
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
    if name == "passes":
        return passes_text((number, number))
    losses = ("val_loss", "val_loss_se", "val_bits_per_byte")
    return f"{number:.4f}" if name in losses else f"{number:.1f}"


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
        "<pre>widthlab run SWEEP.yaml   # the sweep file below: trains, judges and reports\n"
        "widthlab analyze DIR      # this report once more, from the trials</pre>"
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
    """Settings in a line, as a sweep file would have them; what is not set is left out."""
    return ", ".join(
        f"{name.replace('_', ' ')} {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in settings.items()
        if value is not None
    )


def _files(frames: Mapping[str, pd.DataFrame]) -> str:
    rows = [
        [
            name,
            f"{len(frame):,}",
            f"tables/{name}.{'csv, .parquet' if has_csv(frame) else 'parquet'}",
        ]
        for name, frame in frames.items()
    ]
    note = (
        "recommendation.json has every number of this report; figures/ has every figure as SVG "
        "and PNG, and in layer-ranks/ the heat maps of other widths."
    )
    if not all(map(has_csv, frames.values())):
        note += f" Tables of more than {MOST_CSV_ROWS:,} rows are written as Parquet only."
    return table(["table", "rows", "files"], rows) + paragraph(note, "small faint")
