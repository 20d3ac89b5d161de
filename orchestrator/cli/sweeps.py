"""The commands that take a sweep: plan, run, status, stop, rerun, gc."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    DEFAULT_STORAGE,
    JsonOption,
    NameOption,
    RequireVerdictOption,
    RetryFailedOption,
    SetOption,
    StorageOption,
    SweepArgument,
    TargetArgument,
    TrackingOption,
)
from orchestrator.cli.output import INTERRUPTED, open_console, print_json, print_table, say
from trialstore.errors import InputError
from trialstore.storage import Storage, open_storage

if TYPE_CHECKING:
    from orchestrator.sweep.config import SweepConfig


def plan(
    sweep: SweepArgument,
    overrides: SetOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Show every trial of a sweep with its size and cost. Train nothing."""
    from orchestrator.grid.expand import expand
    from orchestrator.grid.old_trials import notice_of_old_trials
    from orchestrator.grid.plan import make_plan
    from orchestrator.grid.plan_records import plan_json
    from orchestrator.grid.plan_view import render_plan
    from orchestrator.grid.planned_data import planned_data
    from orchestrator.ledger.measured_rate import measured_rate
    from trialstore.trial_state import finished_trials

    config, directory = _load(sweep, overrides, storage)
    found = planned_data(config, directory)
    grid = expand(config, found.data, found.vocab_size)
    rate = measured_rate(directory)
    made = make_plan(config, grid, rate, ids_known=found.known, contents=found.contents)
    over = finished_trials(directory)
    if left := [trial for trial in grid.trials if trial.id not in over]:
        totals = make_plan(config, replace(grid, trials=left), rate).totals
        if notice := notice_of_old_trials(directory, totals):
            made = replace(made, warnings=[notice, *made.warnings])
    if as_json:
        print_json(plan_json(made))
    else:
        open_console(stderr=False).print(render_plan(made))


def run(
    sweep: SweepArgument,
    overrides: SetOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    tracking_uri: TrackingOption = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            metavar="HOST:PORT",
            help="join this Ray cluster (default: start Ray on this machine)",
        ),
    ] = None,
    retry_failed: RetryFailedOption = False,
    require_verdict: RequireVerdictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train what is missing, then analyse the sweep.

    Interrupted trials continue from their last checkpoints.
    """
    from orchestrator.mlflow.exporter import sync_command
    from orchestrator.mlflow.tracking import redacted
    from orchestrator.mlflow.tracking import tracking_uri as tracking_of
    from orchestrator.run import RunOptions, run_sweep

    config, directory = _load(sweep, overrides, storage)
    tracking = tracking_of(open_storage(storage), tracking_uri)
    console = open_console(stderr=True)
    try:
        done = run_sweep(config, directory, RunOptions(tracking, address, retry_failed), console)
    except KeyboardInterrupt:  # outside of training, or the second Ctrl-C
        typer.echo(
            "interrupted; checkpoints and records are kept, and the same command continues",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    counts = done.ledger.counts
    if as_json:
        print_json(
            {
                **done.ledger.to_json(),
                "trained": done.trained,
                "at_once": done.at_once,
                "stopped": done.stopped,
                "mirrored": done.exported,
                "recommendation": done.recommendation,
                "report": done.report,
                "tracking_uri": redacted(tracking),
            }
        )
    else:
        if done.summary:
            say(done.summary)
        for trial in done.ledger.trials:
            if trial.message and trial.state in ("failed", "diverged", "waiting", "stale"):
                say(f"{trial.state}: trial {trial.id}: {trial.message}")
        if done.failed:
            say("--retry-failed trains the failed trials again")
        named = None if tracking == _embedded(storage) else redacted(tracking)
        say(_where(directory, storage, named, done.report))
        if done.stopped:
            say("stopped on request; the same command continues")
        if not done.exported:
            say(f"MLflow does not have everything yet: {sync_command(directory, tracking)}")
    refused = any(
        group["verdict"] == "refused" for group in (done.recommendation or {}).get("groups", [])
    )
    unfinished = done.stopped or any(counts[state] for state in ("waiting", "running", "stale"))
    if done.failed or unfinished or (require_verdict and (refused or not done.recommendation)):
        raise typer.Exit(1)


def status(
    sweep: TargetArgument,
    overrides: NameOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Show the state of every trial, and the totals."""
    from orchestrator.ledger.ledger import read_ledger
    from orchestrator.ledger.progress import cell_name

    read = read_ledger(_target(sweep, overrides, storage))
    if as_json:
        print_json(read.to_json())
        return
    rows = [
        (
            trial.id,
            cell_name(trial.axes),
            trial.state_text,
            f"{trial.step}/{trial.steps}",
            "" if trial.loss is None else f"{trial.loss:.4f}",
        )
        for trial in read.trials
    ]
    print_table(("trial", "cell", "state", "step", "loss"), rows, numbers=("step", "loss"))
    for trial in read.trials:
        if trial.message:
            say(f"{trial.id}: {trial.message}")
    counts = ", ".join(f"{number} {state}" for state, number in read.counts.items() if number)
    say(f"{read.sweep}: {counts}")


def stop(
    sweep: TargetArgument, overrides: NameOption = None, storage: StorageOption = DEFAULT_STORAGE
) -> None:
    """Ask a running sweep to stop; `run` continues it.

    Its trials write checkpoints first.
    """
    from orchestrator.tune.stopping import request_stop
    from trialstore.driver_lease import is_driven
    from trialstore.sweep_file import read_sweep_file

    directory = _target(sweep, overrides, storage)
    if not is_driven(directory):
        read_sweep_file(directory)
        raise InputError(f"{directory.url} is not running, so there is nothing to stop")
    request_stop(directory)
    typer.echo(
        "asked to stop: running trials write a checkpoint within seconds; "
        "`widthlab run` continues them",
        err=True,
    )


def rerun(
    sweep: TargetArgument,
    trial: Annotated[
        str, typer.Argument(metavar="ID", help="the trial's id, or its first characters")
    ],
    overrides: NameOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    tracking_uri: TrackingOption = None,
) -> None:
    """Discard one trial; the next `run` trains it again.

    Its records, checkpoints and MLflow run are removed.
    """
    from orchestrator.grid.old_trials import check_discard
    from orchestrator.ledger.ledger import find_trial
    from orchestrator.ledger.removal import discard
    from orchestrator.mlflow.exporter import forget_trial
    from orchestrator.mlflow.tracking import storage_of
    from orchestrator.mlflow.tracking import tracking_uri as tracking_of
    from trialstore.driver_lease import is_driven
    from trialstore.sweep_file import trial_storage

    directory = _target(sweep, overrides, storage)
    found = find_trial(directory, trial)
    if is_driven(directory):
        raise InputError(f"{directory.url} is running; `widthlab stop` it first")
    then = check_discard(directory, found)
    # First MLflow's run: otherwise a crash here leaves old points that no record explains.
    forget_trial(directory, tracking_of(storage_of(directory), tracking_uri), found)
    objects = discard(trial_storage(directory, found))
    typer.echo(f"discarded trial {found} ({objects} objects); `widthlab run` {then}", err=True)


def gc(
    sweep: TargetArgument,
    overrides: NameOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    final: Annotated[
        bool, typer.Option("--final", help="include the last checkpoints of finished trials")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="remove the listed objects")] = False,
    as_json: JsonOption = False,
) -> None:
    """List or remove objects that are no longer needed."""
    from orchestrator.grid.plan_view import size
    from orchestrator.ledger.removal import unneeded
    from trialstore.driver_lease import is_driven

    directory = _target(sweep, overrides, storage)
    found = unneeded(directory, final)
    if remove and is_driven(directory):
        raise InputError(f"{directory.url} is running; `widthlab stop` it first")
    if remove:
        for kind in found:
            kind.remove(directory)
    if as_json:
        kinds = [{"what": k.what, "bytes": k.nbytes, "objects": list(k.sizes)} for k in found]
        print_json({"removed": remove, "kinds": kinds})
        return
    rows = [(kind.what, f"{len(kind.sizes):,}", size(kind.nbytes)) for kind in found]
    print_table(("what", "objects", "size"), rows, numbers=("objects", "size"))
    if remove:
        say("removed")
    elif any(kind.sizes for kind in found):
        say("nothing was removed; --remove removes these objects")


# --- shared by the commands ----------------------------------------------------------------


def _load(path: Path, overrides: list[str] | None, storage: str) -> tuple["SweepConfig", Storage]:
    """Load a sweep file; return its configuration and its directory."""
    from orchestrator.sweep.load import load_sweep

    config = load_sweep(path, overrides or [])
    if config.has_own_block:
        _find_own_code(path.resolve().parent)
    return config, open_storage(storage).child(config.name)


def _find_own_code(folder: Path) -> None:
    """Make own blocks importable from the sweep file's folder and the current one.

    Child processes inherit both folders in PYTHONPATH.
    """
    paths = list(dict.fromkeys([str(folder), str(Path.cwd())]))
    sys.path[:0] = [path for path in paths if path not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*paths, *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def _target(sweep: str, overrides: list[str] | None, storage: str) -> Storage:
    """Open a sweep's directory, given its path or its sweep file."""
    if sweep.endswith((".yaml", ".yml")) and not Path(sweep).is_dir():
        return _load(Path(sweep), overrides, storage)[1]
    if overrides:
        raise InputError("--set needs a sweep file; a sweep's directory cannot be overridden")
    return open_storage(sweep)


def _where(sweep: Storage, storage: str, tracking_uri: str | None, report: str | None) -> str:
    lines = [f"\nreport   {report}"] if report else [f"\nrecords  {sweep.url}"]
    if tracking_uri:
        lines.append(f"MLflow   {tracking_uri}")
    else:
        elsewhere = [] if storage == DEFAULT_STORAGE else ["--storage", storage]
        lines.append(f"MLflow   {shlex.join([_program(), 'ui', *elsewhere])}")
    return "\n".join(lines)


def _embedded(storage: str) -> str | None:
    """Return the SQLite URI that is the default for this storage; None for a remote storage."""
    from orchestrator.mlflow.tracking import embedded_uri

    try:
        return embedded_uri(open_storage(storage))
    except InputError:
        return None


def _program() -> str:
    """Return the command as the user called it, ready to paste: .venv/bin/widthlab or widthlab."""
    return sys.argv[0] if Path(sys.argv[0]).name == "widthlab" else "widthlab"
