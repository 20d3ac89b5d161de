"""Rebuild a sweep's directory from MLflow, to analyse it without the trial directories.

The rebuilt directory has the resolved sweep.yaml, the spec, result and state of every trial, and
the rows that MLflow stores (`orchestrator.mlflow.rows`), but no checkpoints. Its analysis gives the
same verdict as that of the original directory.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.mlflow.identity import IDENTITY_FILE
from orchestrator.mlflow.reader import ExportedRun, MlflowReader
from orchestrator.mlflow.rows import metrics_rows, needed, spectra_rows
from orchestrator.mlflow.tracking import redacted
from orchestrator.mlflow.trial_run import COLLAPSED_TAG, NONFINITE_TAG, SWEEP_TAG
from trialstore import records
from trialstore.errors import InputError
from trialstore.records import BrokenRecordError, encode_json, get_json
from trialstore.storage import Storage, open_storage
from trialstore.sweep_file import REPORT, SWEEP_FILE, read_sweep_file, trial_storage

log = logging.getLogger(__name__)

#: Marks a directory as rebuilt. Only such a directory may be overwritten.
ORIGIN_FILE = "from-mlflow.json"
ATTEMPT = 1


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt sweep, and what it lacks."""

    sweep: Storage
    nonfinite: int  # points that MLflow could not store
    unreadable: Mapping[str, str]  # trial id -> why it counts as failed
    links: Mapping[str, str]  # trial id -> its page on the server; empty for an SQLite file


def rebuild(source: str, uri: str, out: str | None = None) -> Rebuilt:
    """Write a sweep's directory from the contents of MLflow.

    Args:
        source: A sweep's directory, or a source for `MlflowReader.find_sweep`.
        uri: The tracking URI.
        out: The folder to write, by default NAME-from-mlflow. An earlier rebuilt directory is
            overwritten, except for its report.

    Raises:
        InputError: The sweep is not found, the server does not answer, or `out` holds other files.
    """
    reader = MlflowReader(uri)
    parent = reader.find_sweep(source, identity_of(source))
    name = parent.tags.get("sweep") or parent.name
    sweep = _emptied(open_storage(out or f"{name}-from-mlflow"))
    file = reader.files(parent, [SWEEP_FILE]).get(SWEEP_FILE)
    if file is None:
        raise InputError(
            f"run {parent.run_id} on {redacted(uri)} lacks {SWEEP_FILE}; `widthlab sync DIR` "
            "sends it"
        )
    runs = reader.trials_of(parent)
    origin = {"tracking_uri": redacted(uri), "run_id": parent.run_id}
    # First, so that an interrupted rebuild can be repeated.
    sweep.put(ORIGIN_FILE, encode_json(origin))
    sweep.put(SWEEP_FILE, file)
    sweep.put(IDENTITY_FILE, encode_json({"identity": parent.tags[SWEEP_TAG]}))
    unreadable, nonfinite, links = {}, 0, {}
    ids = read_sweep_file(sweep).ids
    for trial_id in ids:
        run = runs.get(trial_id)
        if run is None:
            continue  # not started
        nonfinite += int(run.tags.get(NONFINITE_TAG, 0))
        page = reader.page(run)
        if page is not None:
            links[trial_id] = page
        trial = trial_storage(sweep, trial_id)
        try:
            _rebuild_trial(reader, run, trial)
        except BrokenRecordError as error:
            unreadable[trial_id] = str(error)
            trial.put(records.FAILURE, _failure("mlflow", str(error)))
    beside = len(runs.keys() - set(ids))
    if beside:
        log.warning(
            "%d runs of the sweep are left out: its %s no longer has their trials, which came from "
            "an earlier version of the file or of widthlab",
            beside,
            SWEEP_FILE,
        )
    for trial_id, why in unreadable.items():
        log.warning("trial %s counts as failed: %s", trial_id, why)
    if nonfinite:
        log.warning(
            "%d points are missing because they are not finite: MLflow cannot store them", nonfinite
        )
    sweep.put(
        ORIGIN_FILE,
        encode_json({**origin, "nonfinite_points": nonfinite, "unreadable_trials": unreadable}),
    )
    return Rebuilt(sweep, nonfinite, unreadable, links)


def run_links(sweep: Storage, tracking_uri: str) -> dict[str, str]:
    """Return the MLflow page of each trial that has a run, by trial id.

    Empty if MLflow is an SQLite file, which has no pages, or if the sweep was not exported yet.
    Also empty, with a warning, if the server does not answer: a report does not wait for it.
    """
    if not tracking_uri.startswith("http"):
        return {}
    try:
        identity = identity_of(sweep.url)
        if identity is None:
            return {}
        reader = MlflowReader(tracking_uri)
        runs = reader.trials_of(reader.find_sweep(sweep.url, identity))
    except InputError as error:
        log.warning("the report has no links to MLflow: %s", error)
        return {}
    pages = {trial_id: reader.page(run) for trial_id, run in runs.items()}
    return {trial_id: page for trial_id, page in pages.items() if page is not None}


def identity_of(source: str) -> str | None:
    """Return the MLflow identity of a sweep's directory; None if `source` was never exported."""
    if "://" not in source and not Path(source).is_dir():
        return None
    noted = get_json(open_storage(source), IDENTITY_FILE, needs=["identity"])
    return None if noted is None else str(noted["identity"])


def _emptied(out: Storage) -> Storage:
    """Delete the files of an earlier rebuild, except for its report."""
    keys = out.list()
    if keys and ORIGIN_FILE not in keys:
        raise InputError(
            f"{out.url} holds files that were not rebuilt from MLflow; name another folder with "
            "--out"
        )
    for key in keys:
        if not key.startswith(f"{REPORT}/") and key != ORIGIN_FILE:
            out.delete(key)
    return out


def _rebuild_trial(reader: MlflowReader, run: ExportedRun, trial: Storage) -> None:
    """Rebuild one trial. Raises BrokenRecordError for a run without a readable spec or result."""
    files = reader.files(run, [records.SPEC, records.RESULT])
    spec = _json(files, records.SPEC, run)
    outcome = run.tags.get("outcome", "")
    result = _json(files, records.RESULT, run) if outcome in records.OUTCOMES else None
    try:
        batch_tokens = int(spec["training"]["batch_tokens"])
        steps = int(spec["training"]["steps"])
        widths = [int(width) for width in spec["model"]["ffn_widths"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenRecordError(f"{records.SPEC} of run {run.run_id} lacks {error}") from error
    trial.put(records.SPEC, encode_json(spec))
    points = reader.points(run, needed(run.metrics))
    tables = {
        records.METRICS: metrics_rows(points, batch_tokens),
        records.SPECTRA: spectra_rows(points, batch_tokens, widths),
    }
    parts = {
        table: records.put_part(trial, table, ATTEMPT, rows)
        for table, rows in tables.items()
        if rows
    }
    collapsed = run.tags.get(COLLAPSED_TAG, "").removeprefix("since step ")
    if collapsed.isdigit():
        trial.put(records.COLLAPSE, encode_json({"step": int(collapsed)}))
    if result is not None:
        trial.put(records.RESULT, encode_json({**result, "records": parts}))
        return
    reached = max((point.step for point in points), default=0)
    lease = {"attempt": ATTEMPT, "released": True, "step": reached, "steps": steps, "loss": None}
    trial.put(records.LEASE, encode_json(lease))
    if outcome == "failed":
        stage, _, message = run.tags.get("failure", "").partition(": ")
        trial.put(records.FAILURE, _failure(stage, message))


def _json(files: Mapping[str, bytes], name: str, run: ExportedRun) -> dict[str, Any]:
    if name not in files:
        raise BrokenRecordError(f"run {run.run_id} lacks {name}; `widthlab sync DIR` sends it")
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise BrokenRecordError(f"{name} of run {run.run_id} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BrokenRecordError(f"{name} of run {run.run_id} is not a JSON object")
    return value


def _failure(stage: str, message: str) -> bytes:
    return encode_json({"stage": stage, "message": message, "attempt": ATTEMPT, "gave_up": True})
