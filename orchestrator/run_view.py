"""What a run comes to, as text: the verdict, trials that failed, and where everything lies."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from orchestrator.mlflow.exporter import sync_command
from orchestrator.mlflow.tracking import embedded_uri, redacted
from orchestrator.run import RunReport
from orchestrator.sweep.load import DEFAULT_STORAGE
from trialstore.errors import InputError
from trialstore.storage import Storage, open_storage


def render_run(done: RunReport, sweep: Storage, storage: str, tracking: str) -> str:
    """Return what `widthlab run` prints at its end.

    Args:
        done: What `orchestrator.run.run_sweep` returned.
        sweep: The sweep's directory.
        storage: The storage that holds it, as the user named it.
        tracking: The MLflow tracking URI of the run.
    """
    return "\n".join(_lines(done, sweep, storage, tracking))


def _lines(done: RunReport, sweep: Storage, storage: str, tracking: str) -> Iterator[str]:
    if done.summary:
        yield done.summary
    for trial in done.ledger.trials:
        if trial.message and trial.state in ("failed", "diverged", "waiting", "stale"):
            yield f"{trial.state}: trial {trial.id}: {trial.message}"
    if done.failed:
        yield "failed trials are tried again with --retry-failed"
    named = None if tracking == _embedded(storage) else redacted(tracking)
    yield places(sweep, storage, named, done.report)
    if done.stopped:
        yield "stopped on request; the same command continues"
    if not done.exported:
        yield f"MLflow does not have everything yet: {sync_command(sweep, tracking)}"


def places(sweep: Storage, storage: str, tracking_uri: str | None, report: str | None) -> str:
    """Return the lines that say where report and MLflow are; no URI means the storage's own."""
    lines = [f"\nreport   {report}"] if report else [f"\nrecords  {sweep.url}"]
    if tracking_uri:
        lines.append(f"MLflow   {tracking_uri}")
    else:
        elsewhere = [] if storage == DEFAULT_STORAGE else ["--storage", storage]
        lines.append(f"MLflow   {shlex.join([_program(), 'ui', *elsewhere])}")
    return "\n".join(lines)


def _embedded(storage: str) -> str | None:
    """The tracking URI that needs no naming, if the storage can have one."""
    try:
        return embedded_uri(open_storage(storage))
    except InputError:
        return None


def _program() -> str:
    """As it was called, so that it can be pasted: .venv/bin/widthlab, or widthlab on the path."""
    return sys.argv[0] if Path(sys.argv[0]).name == "widthlab" else "widthlab"
