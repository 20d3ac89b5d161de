"""The command `submit`: run a sweep as a Ray job, follow it, stop it."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    DEFAULT_STORAGE,
    JsonOption,
    RequireVerdictOption,
    RetryFailedOption,
    SetOption,
    StorageOption,
    TrackingOption,
)
from orchestrator.cli.output import INTERRUPTED, print_json, say, sweep_file
from trialstore.errors import InputError

if TYPE_CHECKING:
    from orchestrator.jobs.server import Job, JobServer
    from orchestrator.jobs.submit import Submission


def submit(
    sweep: Annotated[
        Path | None,
        typer.Argument(
            metavar="SWEEP.yaml", help="the sweep file; paths in it are relative to its folder"
        ),
    ] = None,
    overrides: SetOption = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
            metavar="URL",
            help="the dashboard of the Ray head: http://HEAD:8265",
        ),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    tracking_uri: TrackingOption = None,
    retry_failed: RetryFailedOption = False,
    require_verdict: RequireVerdictOption = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="print the job's log; exit with its code")
    ] = False,
    attach: Annotated[
        str | None, typer.Option(metavar="JOB", help="follow a job submitted earlier")
    ] = None,
    stop: Annotated[
        str | None,
        typer.Option(metavar="JOB", help="stop a job; its trials write checkpoints first"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep as a job of a Ray cluster. Print the job's id."""
    from orchestrator.jobs.server import ServerLostError, connect
    from orchestrator.jobs.submit import Submission

    wanted = {"a sweep file": sweep, "--attach": attach, "--stop": stop}
    if sum(map(bool, wanted.values())) != 1:
        given = " and ".join(what for what, value in wanted.items() if value) or "nothing"
        raise InputError(f"give exactly one of {', '.join(wanted)}; {given} was given")
    if sweep is None and (overrides or tracking_uri or retry_failed or require_verdict or follow):
        raise InputError(
            "--set, --tracking-uri, --retry-failed, --require-verdict and --follow need a sweep "
            "file; --attach and --stop take none of them"
        )
    if address is None:
        raise InputError("--address is missing; give the Ray dashboard, as in http://HEAD:8265")
    try:
        if sweep is not None:
            settings = tuple(overrides or ())
            asked = Submission(
                sweep_file(sweep), settings, storage, tracking_uri, retry_failed, require_verdict
            )
            _submit(asked, address, follow, as_json)
        elif attach is not None:
            server = connect(address)
            _follow(server, server.job(attach), as_json)
        elif stop is not None:
            _stop(connect(address), stop, as_json)
    except ServerLostError as error:
        typer.echo(
            f"error: {error}; jobs may still run; `ray job list` shows them once it answers",
            err=True,
        )
        raise typer.Exit(1) from None


def _submit(asked: "Submission", address: str, follow: bool, as_json: bool) -> None:
    from orchestrator.jobs.server import connect
    from orchestrator.jobs.submit import prepare, submit_sweep

    prepared = prepare(asked, address)
    server = connect(address)
    for note in prepared.notes:
        typer.echo(f"note: {note}", err=True)
    job = submit_sweep(server, asked, prepared)
    if not as_json:
        say(job.id)
    if follow:
        _follow(server, job, as_json)
    elif as_json:
        print_json(job.to_json())
    else:
        typer.echo(f"follow it with {_command(server, '--attach', job)}", err=True)


def _follow(server: "JobServer", job: "Job", as_json: bool) -> None:
    from orchestrator.jobs.follow import follow

    # With --json, stdout holds one JSON object and nothing else.
    log = sys.stderr if as_json else sys.stdout

    def write(text: str) -> None:
        log.write(text)
        log.flush()

    try:
        ended = follow(server, job.id, write)
    except KeyboardInterrupt:
        typer.echo(
            f"\njob {job.id} goes on; follow it with {_command(server, '--attach', job)}, or stop "
            f"it with {_command(server, '--stop', job)}",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(ended.to_json())
    typer.echo(ended.ending, err=True)
    raise typer.Exit(ended.exit_code or 0)


def _stop(server: "JobServer", job_id: str, as_json: bool) -> None:
    from orchestrator.jobs.follow import wait_until_over
    from orchestrator.jobs.submit import STOP_PATIENCE_S

    job = server.job(job_id)
    if job.over:
        raise InputError(f"there is nothing to stop: {job.ending}")
    server.stop(job_id)
    typer.echo(
        "asked to stop: running trials write a checkpoint first; Ray kills the job after "
        f"{STOP_PATIENCE_S} s",
        err=True,
    )
    try:
        ended = wait_until_over(server, job_id)
    except KeyboardInterrupt:
        typer.echo(f"\njob {job_id} is still stopping; it stops without this command", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(ended.to_json())
    else:
        typer.echo(ended.ending, err=True)


def _command(server: "JobServer", option: str, job: "Job") -> str:
    words = ["widthlab", "submit", option, job.id, "--address", server.address]
    return f"`{shlex.join(words)}`"
