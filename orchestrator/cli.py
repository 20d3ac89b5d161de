"""The command line. Each command imports what it needs when it runs: --help answers at once.

Exit codes: 0 done, a refusal of the analysis included; 1 some trials failed, or with
--require-verdict a refusal; 2 bad input, one clear message and no traceback.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analysis.errors import InputError
from orchestrator.cli_jobs import INTERRUPTED, submit
from orchestrator.cli_options import (
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
from orchestrator.cli_output import open_console, print_json, print_table, say

if TYPE_CHECKING:
    from analysis.storage import Storage
    from orchestrator.sweep_config import SweepConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How wide should the feed-forward network be? Train a grid, fit its laws, get a verdict.",
)


def _column(what: str) -> Any:
    """An option that names a column of a table."""
    return typer.Option(metavar="COLUMN", help=f"column {what}")


@app.command()
def plan(
    sweep: SweepArgument,
    overrides: SetOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Show the grid: every trial with its size and cost. Runs nothing."""
    from orchestrator.grid import expand
    from orchestrator.ledger import measured_rate
    from orchestrator.plan import make_plan, plan_json
    from orchestrator.plan_view import render_plan
    from orchestrator.planned_data import planned_data

    config, directory = _load(sweep, overrides, storage)
    found = planned_data(config, directory)
    grid = expand(config, found.data, found.vocab_size)
    made = make_plan(config, grid, measured_rate(directory), ids_known=found.known)
    if as_json:
        print_json(plan_json(made))
    else:
        open_console(stderr=False).print(render_plan(made))


@app.command()
def run(
    sweep: SweepArgument,
    overrides: SetOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    tracking_uri: TrackingOption = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS", metavar="HOST:PORT", help="join a Ray cluster (default: local)"
        ),
    ] = None,
    retry_failed: RetryFailedOption = False,
    require_verdict: RequireVerdictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train what is missing, continue what was cut off, then analyse."""
    from orchestrator.mirror import sync_command
    from orchestrator.run import run_sweep
    from orchestrator.tracking import redacted
    from orchestrator.tracking import tracking_uri as tracking_of

    config, directory = _load(sweep, overrides, storage)
    tracking = tracking_of(_open(storage), tracking_uri)
    console = open_console(stderr=True)
    try:
        done = run_sweep(
            config, directory, tracking, console, address=address, retry_failed=retry_failed
        )
    except KeyboardInterrupt:  # before trials run or after, or a second time
        typer.echo("interrupted; what is durable is kept, and the same command continues", err=True)
        raise typer.Exit(INTERRUPTED) from None
    counts = done.ledger.counts
    if as_json:
        print_json(
            {
                **done.ledger.to_json(),
                "trained": done.trained,
                "at_once": done.at_once,
                "stopped": done.stopped,
                "mirrored": done.mirrored,
                "recommendation": done.recommendation,
                "report": done.report,
                "tracking_uri": redacted(tracking),
            }
        )
    else:
        if done.summary:
            say(done.summary)
        for trial in done.ledger.trials:
            if trial.message and trial.state != "running":
                say(f"{trial.state}: trial {trial.id}: {trial.message}")
        if done.failed:
            say("failed trials are tried again with --retry-failed")
        named = None if tracking == _embedded(storage) else redacted(tracking)
        say(_where(directory, storage, named, done.report))
        if done.stopped:
            say("stopped on request; the same command continues")
        if not done.mirrored:
            say(f"MLflow does not have everything yet: {sync_command(directory, tracking)}")
    refused = any(
        group["verdict"] == "refused" for group in (done.recommendation or {}).get("groups", [])
    )
    unfinished = done.stopped or any(counts[state] for state in ("waiting", "running", "stale"))
    if done.failed or unfinished or (require_verdict and (refused or not done.recommendation)):
        raise typer.Exit(1)


app.command()(submit)


@app.command()
def status(
    sweep: TargetArgument,
    overrides: NameOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    as_json: JsonOption = False,
) -> None:
    """One line a trial, and the counts."""
    from orchestrator.ledger import read_ledger
    from orchestrator.progress import cell_name

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


@app.command()
def stop(
    sweep: TargetArgument, overrides: NameOption = None, storage: StorageOption = DEFAULT_STORAGE
) -> None:
    """Ask a running sweep to checkpoint its trials and end; `run` continues it."""
    from orchestrator.driver_lease import is_driven
    from orchestrator.ledger import resolved_sweep
    from orchestrator.stopping import request_stop

    directory = _target(sweep, overrides, storage)
    if not is_driven(directory):
        resolved_sweep(directory)
        raise InputError(f"{directory.url} is not running; there is nothing to stop")
    request_stop(directory)
    typer.echo(
        "asked to stop: running trials write a checkpoint within seconds; "
        "`widthlab run` continues them",
        err=True,
    )


@app.command()
def rerun(
    sweep: TargetArgument,
    trial: Annotated[str, typer.Argument(metavar="ID", help="the trial's id, or how it begins")],
    overrides: NameOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    tracking_uri: TrackingOption = None,
) -> None:
    """Discard one trial, records and checkpoints too; the next `run` trains it anew."""
    from orchestrator.driver_lease import is_driven
    from orchestrator.ledger import discard, find_trial, trial_storage
    from orchestrator.mirror import forget_trial
    from orchestrator.tracking import storage_of
    from orchestrator.tracking import tracking_uri as tracking_of

    directory = _target(sweep, overrides, storage)
    found = find_trial(directory, trial)
    if is_driven(directory):
        raise InputError(f"{directory.url} is running; `widthlab stop` it first")
    # MLflow's run goes first: a trial without records would otherwise keep the old points.
    forget_trial(directory, tracking_of(storage_of(directory), tracking_uri), found)
    objects = discard(trial_storage(directory, found))
    typer.echo(
        f"discarded trial {found} ({objects} objects); `widthlab run` trains it anew", err=True
    )


@app.command()
def gc(
    sweep: TargetArgument,
    overrides: NameOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    final: Annotated[
        bool, typer.Option("--final", help="the last checkpoints of finished trials too")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="remove what is listed")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what of a sweep nobody needs any more, with its size; --remove removes it."""
    from orchestrator.driver_lease import is_driven
    from orchestrator.plan_view import size
    from orchestrator.unneeded import unneeded

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
        say("nothing was removed; --remove does that")


@app.command()
def analyze(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="a sweep's directory; with --from-mlflow also a run or experiment"
        ),
    ],
    from_mlflow: Annotated[
        bool, typer.Option("--from-mlflow", help="read MLflow and not the trial directories")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="what --from-mlflow writes (default: NAME-from-mlflow)"),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    tracking_uri: TrackingOption = None,
    aggregate_last: Annotated[
        int | None, typer.Option(metavar="K", help="a layer's rank: median of its last K snapshots")
    ] = None,
    aggregate_layers: Annotated[
        Literal["median", "mean", "first", "deepest"] | None,
        typer.Option(help="a trial's rank of those of its layers (default: as its sweep says)"),
    ] = None,
    require_verdict: RequireVerdictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the laws, judge, and write figures and report from a sweep's directory."""
    from analysis.pipeline import analyse

    links = None
    if from_mlflow:
        from orchestrator.from_mlflow import identity_of, rebuild
        from orchestrator.tracking import storage_of
        from orchestrator.tracking import tracking_uri as tracking_of

        beside = _open(storage) if identity_of(source) is None else storage_of(_open(source))
        rebuilt = rebuild(source, tracking_of(beside, tracking_uri), out)
        directory, links = rebuilt.sweep, rebuilt.links
    elif out is not None:
        raise InputError("--out is where --from-mlflow writes; a sweep's report lies in its own")
    else:
        directory = _open(source)
    done = analyse(
        directory, links=links, aggregate_last=aggregate_last, aggregate_layers=aggregate_layers
    )
    if as_json:
        print_json(done.recommendation)
    else:
        say(done.summary)
        say(f"\nreport   {done.report_url}")
    refused = any(group["verdict"] == "refused" for group in done.recommendation["groups"])
    if require_verdict and refused:
        raise typer.Exit(1)


@app.command()
def fit(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="a .csv, .tsv or .parquet file")],
    law: Annotated[
        Literal["power", "saturating", "kaplan", "chinchilla", "width-depth"],
        typer.Option(help="the law to fit"),
    ],
    x: Annotated[str | None, _column("of power, saturating")] = None,
    y: Annotated[str | None, _column("of power, saturating")] = None,
    params: Annotated[str | None, _column("of kaplan, chinchilla: parameters N")] = None,
    tokens: Annotated[str | None, _column("of kaplan, chinchilla, width-depth: tokens D")] = None,
    width: Annotated[str | None, _column("of width-depth")] = None,
    depth: Annotated[str | None, _column("of width-depth")] = None,
    loss: Annotated[str | None, _column("of kaplan, chinchilla, width-depth")] = None,
    replicate: Annotated[str | None, _column("that labels paired replicates")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="only such rows; repeatable"),
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="a fit per value; repeatable")
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(metavar="N", help="resamples for intervals of loss laws; 0: none")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="of the resamples")] = 0,
    figure: Annotated[
        Path | None, typer.Option(metavar="PATH", help="draw to a .svg or .png file")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a law to any tidy table, with intervals and what the data cannot tell."""
    from analysis.fit.fit_table import Request
    from orchestrator.fit import as_text, assignments
    from orchestrator.fit import fit as fit_file

    roles = {
        "x": x, "y": y, "params": params, "tokens": tokens, "width": width, "depth": depth,
        "loss": loss,
    }  # fmt: skip
    request = Request(
        law=law,
        columns={role: column for role, column in roles.items() if column is not None},  # type: ignore[misc]
        where=assignments(where or []),
        group=tuple(group or []),
        replicate=replicate,
        resamples=bootstrap,
        seed=seed,
    )
    fitted = fit_file(table, request, figure)
    if as_json:
        print_json(fitted.to_json())
    else:
        say(as_text(fitted))


@app.command()
def sync(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="a sweep's directory")],
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send to MLflow what it has not seen of a sweep."""
    from dataclasses import asdict

    from orchestrator.mirror import sync as send
    from orchestrator.tracking import storage_of
    from orchestrator.tracking import tracking_uri as tracking_of

    opened = _open(directory)
    report = send(opened, tracking_of(storage_of(opened), tracking_uri))
    if as_json:
        print_json(asdict(report))
    elif report.away:
        typer.echo(f"MLflow does not answer: {report.away}; nothing is lost, try again", err=True)
    else:
        typer.echo(f"sent {report.points} points of {report.runs} runs", err=True)
        if report.refused:
            typer.echo(f"{report.refused} trials could not be read or were refused", err=True)
        if report.fileless:
            typer.echo(f"{report.fileless} runs lack files that could not be stored", err=True)
    if not report.complete:
        raise typer.Exit(1)


@app.command()
def export(
    trial: Annotated[str, typer.Argument(metavar="TRIAL_DIR", help="a trial's directory")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="a new folder")],
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="of the written weights")
    ] = "float32",
    tokenizer: Annotated[
        bool, typer.Option("--tokenizer/--no-tokenizer", help="write the tokenizer too")
    ] = True,
    block: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:CLASS", help="the block that the trial names, if you trust it"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a trial's model as a directory that transformers opens."""
    from dataclasses import asdict

    from transformers.utils import logging as transformers_logging

    from trainers.export import export as write

    transformers_logging.disable_progress_bar()
    sys.path.append("")  # a block of the user's own is looked for here too, as in training
    done = write(_open(trial), out, dtype, tokenizer, block=block)
    if as_json:
        print_json(asdict(done))
    else:
        say(done.summary)


@app.command()
def ui(
    storage: StorageOption = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option(help="taken if free, otherwise another")] = 5000,
) -> None:
    """Open MLflow on this machine's sweeps, for this machine only; Ctrl-C ends it."""
    from orchestrator.ui import open_ui

    open_ui(_open(storage), port)


# --- what the commands share ---------------------------------------------------------------


def _load(path: Path, overrides: list[str] | None, storage: str) -> tuple["SweepConfig", "Storage"]:
    """The sweep of a file and its directory."""
    from orchestrator.sweep import load_sweep

    config = load_sweep(path, overrides or [])
    if config.has_own_block:
        _find_own_code(path.resolve().parent)
    return config, _open(storage).child(config.name)


def _find_own_code(folder: Path) -> None:
    """Let a sweep's own block be imported from its file's folder or the working directory, here
    and in the processes that this one starts."""
    import os

    paths = list(dict.fromkeys([str(folder), str(Path.cwd())]))
    sys.path[:0] = [path for path in paths if path not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*paths, *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def _target(sweep: str, overrides: list[str] | None, storage: str) -> "Storage":
    """A sweep's directory, named by itself or by the sweep's file."""
    if sweep.endswith((".yaml", ".yml")) and not Path(sweep).is_dir():
        return _load(Path(sweep), overrides, storage)[1]
    if overrides:
        raise InputError("--set changes a sweep file; a sweep's directory is what it is")
    return _open(sweep)


def _open(location: str) -> "Storage":
    from analysis.storage import open_storage

    return open_storage(location)


def _where(sweep: "Storage", storage: str, tracking_uri: str | None, report: str | None) -> str:
    lines = [f"\nreport   {report}"] if report else [f"\nrecords  {sweep.url}"]
    if tracking_uri:
        lines.append(f"MLflow   {tracking_uri}")
    else:
        elsewhere = "" if storage == DEFAULT_STORAGE else f" --storage {storage}"
        lines.append(f"MLflow   {_program()} ui{elsewhere}")
    return "\n".join(lines)


def _embedded(storage: str) -> str | None:
    """The tracking URI that needs no naming, if the storage can have one."""
    from orchestrator.tracking import embedded_uri

    try:
        return embedded_uri(_open(storage))
    except InputError:
        return None


def _program() -> str:
    """As it was called, so that it can be pasted: .venv/bin/widthlab, or widthlab on the path."""
    return sys.argv[0] if Path(sys.argv[0]).name == "widthlab" else "widthlab"


def _os_error(error: OSError) -> str:
    """What the operating system would not do, and to what."""
    what = error.strerror or str(error) or type(error).__name__
    return what if error.filename is None else f"{str(error.filename)[:200]}: {what}"


def main() -> None:
    """The entry point `widthlab`."""
    import logging

    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s"
    )
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except (
        OSError
    ) as error:  # a disk that is full, a path that is too long, a right that is missing
        typer.echo(f"error: {_os_error(error)}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
