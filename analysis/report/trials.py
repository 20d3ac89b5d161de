"""The last sections of the report: every trial, how to reproduce it, and the files next to it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup

from analysis.report.page import Table, plain_table, render
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
    "hard_rank_debiased": "hard",
    "hard_rank": "raw hard",
    "edim": "eDim",
    "seconds_total": "time",
}
#: Outcomes in the order of the table's columns.
STATES = (*OUTCOMES, *WITHOUT_RESULT, DUPLICATE)
#: Columns that become one sentence if all trials have the same value.
SHARED = (
    *("match", "outcome", "D", "d_model", "seed", "parameters", "tokens"),
    *("passes", "bits per byte"),
)
ABOUT = (
    "Loss: final held-out loss in nats per token. Soft, hard and eDim: ranks, in directions; hard "
    "is debiased in the number of samples, raw hard as recorded. Time: total device time."
)
#: Notes on columns that only trials from semantics version 2 on fill.
ABOUT_PASSES = "Passes: epochs over the training data."
ABOUT_ERROR = (
    "S.e.: standard error of the loss as an estimate of the loss on the whole held-out split. All "
    "trials are measured on the same tokens, so differences between trials are more precise."
)
#: Columns that are dropped if no trial fills them; passes are filled only if data were repeated.
OPTIONAL = ("passes", "s.e.", "bits per byte")
LOSES_TEXT = "undefined: the tokenizer loses text"
#: Up to this number of trials, their table is not folded.
FEW_TRIALS = 16


def trials_section(tables: SweepTables, links: Mapping[str, str]) -> Markup:
    """Return the section on the trials: outcomes by group, then every trial.

    `links` are the pages of trials on an MLflow server, by trial id.
    """
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
        told.append("Trial ids link to MLflow runs.")
    count = len(tables.trials)
    return render(
        "trials.html",
        outcomes=_outcomes(tables) if count > 1 else "",
        left_out=tables.left_out,
        few=count <= FEW_TRIALS,
        count=plural(count, "trial"),
        about=" ".join(told),
        listed=listed,
        reasons=reasons,
        broken=plural(len(reasons), "trial"),
    )


def _listed(
    groups: Mapping[str, list[list[str]]], links: Mapping[str, str]
) -> tuple[Table, Sequence[str]]:
    """The table without its constant columns, and a sentence on these."""
    names = ["width", "match", *COLUMNS.values(), "id"]
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
    shared = [f"All trials: {', '.join(f'{names[at]} {text}' for at, text in same.items())}."]
    listed = Table([names[at] for at in kept], found, links=links)
    return listed, shared if same else []


def _loses_text(trial: "pd.Series[Any]") -> bool:
    """Whether bits per byte are missing because the tokenizer is lossy."""
    measured = np.isfinite(trial["val_loss"]) and not np.isfinite(trial["val_bits_per_byte"])
    return bool(measured and trial["lossless"] is not None and not trial["lossless"])


def _group(tables: SweepTables, trial: "pd.Series[Any]") -> str:
    return group_label({axis: trial[axis] for axis in tables.group_axes})


def _outcomes(tables: SweepTables) -> Table | str:
    """Count trials by group and outcome; just the outcome if all trials have the same."""
    states = [state for state in STATES if (tables.trials["state"] == state).any()]
    if len(states) == 1:
        return states[0]
    labels = [_group(tables, trial) for _, trial in tables.trials.iterrows()]
    counts = pd.crosstab(pd.Series(labels, index=tables.trials.index), tables.trials["state"])
    rows = [
        [label, *(str(counts[state][label] or "") for state in states)]
        for label in sorted(set(labels))
    ]
    return plain_table(["group", *states], rows)


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


def reproduce(tables: SweepTables, frames: Mapping[str, pd.DataFrame]) -> Markup:
    """Return the sections on how to reproduce the report and on the files next to it."""
    resolved = tables.config["resolved"]
    written = {key: value for key, value in tables.config.items() if key != "resolved"}
    dropped = [
        f"{cell.get('axes')}: {cell.get('why')}"
        for cell in resolved.get("dropped") or []
        if isinstance(cell, Mapping)
    ]
    return render(
        "reproduce.html",
        facts=[fact for fact in _facts(tables, resolved) if fact[1] is not None],
        dropped=dropped,
        cells=plural(len(dropped), "cell"),
        sweep_file=yaml.safe_dump(written, sort_keys=False, default_flow_style=None),
        files=_files(frames),
        parquet_only=None if all(map(has_csv, frames.values())) else f"{MOST_CSV_ROWS:,}",
    )


def _facts(tables: SweepTables, resolved: Mapping[str, Any]) -> list[tuple[str, object]]:
    git = resolved.get("git") or {}
    commit = git.get("commit")
    facts: list[tuple[str, object]] = [
        ("sweep", f"{tables.name}, in {tables.url}"),
        ("git commit", f"{commit}, with uncommitted changes" if git.get("dirty") else commit),
        ("corpus fingerprint", resolved.get("corpus_fingerprint")),
        ("tokenizer hash", resolved.get("tokenizer_hash")),
        ("vocabulary", resolved.get("vocab_size")),
        ("semantics version", resolved.get("semantics_version")),
    ]
    facts += [("versions", _pairs(versions)) for versions in tables.versions.values()]
    layouts = sorted(set(tables.trials["layout"].dropna()))
    return [*facts, *(("layout", _pairs(json.loads(layout))) for layout in layouts)]


def _pairs(settings: Mapping[str, Any]) -> str:
    """Settings in one line, spelt as in a sweep file, without those that are None."""
    return ", ".join(
        f"{name.replace('_', ' ')} {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in settings.items()
        if value is not None
    )


def _files(frames: Mapping[str, pd.DataFrame]) -> Table:
    rows = [
        [
            name,
            f"{len(frame):,}",
            f"tables/{name}.{'csv, .parquet' if has_csv(frame) else 'parquet'}",
        ]
        for name, frame in frames.items()
    ]
    return plain_table(["table", "rows", "files"], rows)
