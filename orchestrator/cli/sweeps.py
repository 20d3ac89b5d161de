"""The commands that take a sweep: plan, run, status, stop, rerun, gc."""

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
from orchestrator.cli.output import (
    INTERRUPTED,
    open_console,
    print_json,
    print_table,
    say,
    sweep_file,
)
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
    from orchestrator.grid.plan_records import plan_json
    from orchestrator.grid.plan_sweep import plan_sweep
    from orchestrator.grid.plan_view import render_plan

    made = plan_sweep(*_load(sweep, overrides, storage))
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
    from orchestrator.mlflow.tracking import redacted
    from orchestrator.mlflow.tracking import tracking_uri as tracking_of
    from orchestrator.run import RunOptions, run_sweep
    from orchestrator.run_view import render_run

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
        say(render_run(done, directory, storage, tracking))
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
    from orchestrator.sweep.find import open_sweep

    return open_sweep(sweep_file(path), overrides or [], storage)


def _target(sweep: str, overrides: list[str] | None, storage: str) -> Storage:
    """Open a sweep's directory, given its path or its sweep file."""
    if sweep.endswith((".yaml", ".yml")) and not Path(sweep).is_dir():
        return _load(Path(sweep), overrides, storage)[1]
    if overrides:
        raise InputError("--set needs a sweep file; a sweep's directory cannot be overridden")
    return open_storage(sweep)
