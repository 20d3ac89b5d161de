"""Run a sweep from Python."""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from orchestrator.mlflow.tracking import redacted
from orchestrator.mlflow.tracking import tracking_uri as tracking_of
from orchestrator.run import RunOptions, RunReport, run_sweep
from orchestrator.run_view import render_run
from orchestrator.sweep.find import open_sweep
from trialstore.errors import InputError
from trialstore.storage import open_storage
from widthlab import html
from widthlab.arguments import Overrides, naming_arguments, settings_of, storage_of, sweep_file_of
from widthlab.verdict import Verdict

_COLUMNS = ("id", "state", "step", "steps", "loss", "message")


@dataclass(frozen=True, repr=False)
class SweepResult:
    """What a run of a sweep came to. Prints as `widthlab run` does.

    Attributes:
        done: Everything that the run reported.
        directory: The path or URL of the sweep's directory, for `load_sweep` and `analyse`.
        text: What `widthlab run` prints at its end.
        tracking_uri: The MLflow server or database that the run was sent to, without secrets.
    """

    done: RunReport
    directory: str
    text: str
    tracking_uri: str

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: id, state, step and steps [updates], loss [nats per token: held out at
        the end, else the last of training], message where one failed, and the axes of the grid."""
        rows = [asdict(trial) for trial in self.done.ledger.trials]
        return pd.DataFrame([{name: row[name] for name in _COLUMNS} | row["axes"] for row in rows])

    @property
    def complete(self) -> bool:
        """Whether every trial is over and none has failed: `widthlab run` would exit with 0."""
        counts = self.done.ledger.counts
        left = any(counts[state] for state in ("failed", "waiting", "running", "stale"))
        return not (self.done.stopped or left)

    @property
    def verdict(self) -> Verdict | None:
        """The judgement; None where no trial has ended yet."""
        done = self.done
        if done.summary is None or done.recommendation is None or done.report is None:
            return None
        return Verdict(done.summary, done.recommendation, done.report)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__  # a Python prompt shows a result by its repr

    def _repr_html_(self) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in self.done.ledger.counts.items() if n)
        verdict = self.verdict
        shown = self.trials.dropna(axis="columns", how="all")
        alike = {name for name in shown if shown[name].map(repr).nunique() == 1}
        return "".join(
            [
                html.heading(f"Sweep {self.done.ledger.sweep}: {counts}"),
                html.table(shown[[n for n in shown if n in _COLUMNS or n not in alike]]),
                "" if verdict is None else verdict._repr_html_(),
            ]
        )


def run(
    sweep: str | Path,
    overrides: Overrides | None = None,
    *,
    storage: str | Path | None = None,
    tracking_uri: str | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    quiet: bool = False,
) -> SweepResult:
    """Train what is missing of a sweep, continue what was cut off, then judge.

    The same call continues a sweep whatever ended the last one; a finished sweep is judged again.
    The first interrupt (Ctrl-C, a notebook's stop button) lets running trials write a checkpoint.

    Args:
        sweep: As for `plan`.
        overrides: As for `plan`.
        storage: The path or URL of the folder that sweeps are kept in; by default
            $WIDTHLAB_STORAGE, or `widthlab-runs`. The sweep's directory is STORAGE/NAME.
        tracking_uri: An MLflow server; by default $MLFLOW_TRACKING_URI, or a SQLite file in the
            storage.
        address: HOST:PORT of a Ray head to join; by default $RAY_ADDRESS, or a Ray of this machine
            for the time of the call.
        retry_failed: Try trials again that used up their retries.
        quiet: Write no progress to stderr.

    Raises:
        InputError: The sweep cannot be run. Nothing has been trained or written then. A trial that
            fails raises nothing: see `SweepResult.complete` and `SweepResult.trials`.

    Example:
        >>> done = widthlab.run("tiny.yaml", storage="/tmp/sweeps")
        >>> done.verdict.groups
        >>> widthlab.load_sweep(done.directory).trials
    """
    with naming_arguments():
        _require_no_ray()
        place = storage_of(storage)
        config, directory = open_sweep(sweep_file_of(sweep), settings_of(overrides), place)
        tracking = tracking_of(open_storage(place), tracking_uri)
        joined = address or os.environ.get("RAY_ADDRESS") or None
        options = RunOptions(tracking, joined, retry_failed)
        console = Console(stderr=True, quiet=quiet, force_jupyter=False)
        done = run_sweep(config, directory, options, console)
    text = render_run(done, directory, place, tracking)
    return SweepResult(done, directory.url, text, redacted(tracking))


def _require_no_ray() -> None:
    """Raises InputError where this process has joined a Ray of its own, which can be only one."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            raise InputError(
                "this process is connected to Ray already: call ray.shutdown() first, and give the "
                "cluster's HOST:PORT as address to run the sweep there"
            )
