"""Read a sweep from an MLflow server: its runs, their points and their files.

Creates nothing on the server. Every failure is an InputError, because the user named the server
and the sweep.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.mlflow.identity import experiment_name
from orchestrator.mlflow.parent_run import SWEEP_FILE_TAG
from orchestrator.mlflow.sqlite_uri import sqlite_path
from orchestrator.mlflow.tracking import (
    Point,
    RefusedError,
    ServerAwayError,
    client_of,
    first_line,
    redacted,
    talking,
)
from orchestrator.mlflow.trial_run import PARENT_TAG, SWEEP_TAG, TRIAL_TAG
from trialstore.errors import InputError

#: Concurrent requests for metrics to a server. An SQLite file gets one at a time.
AT_ONCE = 8
RUNS_PER_PAGE = 100


@dataclass(frozen=True)
class ExportedRun:
    """A run on the server."""

    run_id: str
    experiment_id: str
    name: str
    started_ms: int
    tags: Mapping[str, str]
    metrics: frozenset[str]


class MlflowReader:
    """An MLflow server or SQLite file that sweeps were exported to.

    Args:
        uri: The tracking URI.

    Raises:
        InputError: The file does not exist, or the server does not answer. So do all methods.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        database = sqlite_path(uri)
        if database is not None and not database.is_file():
            raise InputError(
                f"there is no MLflow database {database}; name the server or the file that has "
                "the sweep with --tracking-uri"
            )
        self._at_once = AT_ONCE if database is None else 1
        with self._asking("connecting"):
            self._client = client_of(uri)

    def find_sweep(self, source: str, identity: str | None = None) -> ExportedRun:
        """Find the parent run of one sweep.

        Args:
            source: The id of a parent run or a trial's run, the name of an experiment with one
                sweep, or the name of a sweep in the experiment of MLFLOW_EXPERIMENT_NAME.
            identity: The sweep's identity from its directory. If given, only it counts.

        Raises:
            InputError: No sweep or several sweeps match.
        """
        default = experiment_name()
        if identity is None and re.fullmatch(r"[0-9a-f]{32}", source):
            return self._parent_of(source)
        found: list[ExportedRun] = []
        if identity is None:
            found = self._parents(source)
        if not found:
            wanted = source if identity is None else identity
            there = self._parents(default)
            found = [run for run in there if wanted in (run.tags.get("sweep"), run.tags[SWEEP_TAG])]
            # A deleted parent run gets a successor. Of several, the exporter uses the oldest.
            found = list({run.tags[SWEEP_TAG]: run for run in reversed(found)}.values())
            if not found:
                raise InputError(
                    f"{redacted(self._uri)} has no experiment and no sweep {source!r}; experiment "
                    f"{default!r} (MLFLOW_EXPERIMENT_NAME) holds {_listed(there)}. For a sweep "
                    "that an earlier version exported, run `widthlab sync DIR` first"
                )
        if len(found) > 1:
            raise InputError(f"{source!r} holds {_listed(found)}; give the run id of one")
        return found[0]

    def trials_of(self, parent: ExportedRun) -> dict[str, ExportedRun]:
        """Return the runs of a sweep's trials, by trial id."""
        tag, identity = SWEEP_TAG, parent.tags[SWEEP_TAG]
        runs: dict[str, ExportedRun] = {}
        for run in self._search(parent.experiment_id, f"tags.`{tag}` = '{identity}'"):
            if TRIAL_TAG in run.tags:
                runs.setdefault(run.tags[TRIAL_TAG], run)  # the oldest, as the exporter does
        return runs

    def page(self, run: ExportedRun) -> str | None:
        """Return the URL of a run's page; None for an SQLite file, which has no pages."""
        if not self._uri.startswith("http"):
            return None
        base = redacted(self._uri).rstrip("/")
        return f"{base}/#/experiments/{run.experiment_id}/runs/{run.run_id}"

    def points(self, run: ExportedRun, keys: Sequence[str]) -> list[Point]:
        """Return every point of these metrics of a run. Of two at one step the later counts."""

        def history(key: str) -> list[Point]:
            with self._asking(f"reading {key} of run {run.run_id}"):
                found = self._client.get_metric_history(run.run_id, key)
            ordered = sorted(found, key=lambda point: point.timestamp)
            by_step = {p.step: Point(key, p.value, p.timestamp, p.step) for p in ordered}
            return list(by_step.values())

        if self._at_once == 1:
            return [point for key in keys for point in history(key)]
        with ThreadPoolExecutor(self._at_once) as pool:
            return [point for points in pool.map(history, keys) for point in points]

    def files(self, run: ExportedRun, names: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of a run's files, by name. A missing file is left out."""
        with self._asking(f"listing the files of run {run.run_id}"):
            there = {file.path for file in self._client.list_artifacts(run.run_id)}
        found = {}
        for name in names:
            if name in there:
                with tempfile.TemporaryDirectory() as folder, self._asking(f"reading {name}"):
                    path = self._client.download_artifacts(run.run_id, name, folder)
                    found[name] = Path(path).read_bytes()
        return found

    # --- asking ----------------------------------------------------------------------------

    def _parent_of(self, run_id: str) -> ExportedRun:
        with self._asking(f"reading run {run_id}"):
            run = _exported(self._client.get_run(run_id))
            if TRIAL_TAG in run.tags and PARENT_TAG in run.tags:
                run = _exported(self._client.get_run(run.tags[PARENT_TAG]))
        if SWEEP_TAG not in run.tags or SWEEP_FILE_TAG not in run.tags:
            raise InputError(
                f"run {run_id} on {redacted(self._uri)} does not belong to a sweep, or an earlier "
                "version exported it; `widthlab sync DIR` sends the missing tags and files"
            )
        return run

    def _parents(self, experiment: str) -> list[ExportedRun]:
        """Return the parent runs in an experiment; none if there is no such experiment."""
        with self._asking(f"looking for experiment {experiment!r}"):
            found = self._client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage == "deleted":
            return []
        return list(self._search(found.experiment_id, f"tags.`{SWEEP_FILE_TAG}` LIKE '%'"))

    def _search(self, experiment_id: str, condition: str) -> Iterator[ExportedRun]:
        """Yield the runs that match a filter of MLflow, oldest first."""
        token = None
        while True:
            with self._asking("looking for runs"):
                page = self._client.search_runs(
                    [experiment_id],
                    condition,
                    max_results=RUNS_PER_PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            yield from map(_exported, page)
            token = page.token
            if not token:
                return

    @contextlib.contextmanager
    def _asking(self, doing: str) -> Iterator[None]:
        try:
            with talking(doing):
                yield
        except InputError:
            raise
        except (ServerAwayError, RefusedError) as error:
            raise InputError(f"MLflow at {redacted(self._uri)}: {error}") from error
        except Exception as error:  # every artifact store has its own client and errors
            raise InputError(
                f"MLflow at {redacted(self._uri)}: {doing}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error


def _exported(run: Any) -> ExportedRun:
    info, data = run.info, run.data
    return ExportedRun(
        info.run_id,
        info.experiment_id,
        info.run_name or info.run_id,
        info.start_time or 0,
        data.tags,
        frozenset(data.metrics),
    )


def _listed(runs: Sequence[ExportedRun]) -> str:
    """`2 sweeps: small (run 0a.., 2026-01-01 10:00), ...`."""
    if not runs:
        return "no sweep"
    named = [
        f"{run.name} (run {run.run_id}, "
        f"{datetime.fromtimestamp(run.started_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC)"
        for run in runs
    ]
    return f"{len(runs)} sweep{'s' if len(runs) > 1 else ''}: {', '.join(named)}"
