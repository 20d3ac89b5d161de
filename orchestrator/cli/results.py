"""The commands that read finished work: analyze, fit, sync, export, ui."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from orchestrator.cli.options import (
    DEFAULT_STORAGE,
    JsonOption,
    RequireVerdictOption,
    StorageOption,
    TrackingOption,
)
from orchestrator.cli.output import print_json, say
from trialstore.errors import InputError
from trialstore.storage import open_storage


def _column(what: str) -> Any:
    """Return an option that names a column of a table."""
    return typer.Option(metavar="COLUMN", help=what)


def analyze(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="a sweep's directory; with --from-mlflow also a run or an experiment",
        ),
    ],
    from_mlflow: Annotated[
        bool, typer.Option("--from-mlflow", help="read MLflow instead of the trial directories")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="folder that --from-mlflow writes (default: NAME-from-mlflow)"
        ),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    tracking_uri: TrackingOption = None,
    aggregate_last: Annotated[
        int | None,
        typer.Option(metavar="K", help="a layer's rank is the median of its last K snapshots"),
    ] = None,
    aggregate_layers: Annotated[
        Literal["median", "mean", "first", "deepest"] | None,
        typer.Option(
            help="how a trial's rank follows from its layers' (default: as in the sweep file)"
        ),
    ] = None,
    require_verdict: RequireVerdictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the laws, recommend a width, write the report into DIR/report.

    Print the verdicts, or with --json the content of recommendation.json.
    """
    from analysis.pipeline import analyse

    links = None
    if from_mlflow:
        from orchestrator.mlflow.from_mlflow import identity_of, rebuild
        from orchestrator.mlflow.tracking import storage_of
        from orchestrator.mlflow.tracking import tracking_uri as tracking_of

        beside = (
            open_storage(storage)
            if identity_of(source) is None
            else storage_of(open_storage(source))
        )
        rebuilt = rebuild(source, tracking_of(beside, tracking_uri), out)
        directory, links = rebuilt.sweep, rebuilt.links
    elif out is not None:
        raise InputError(
            "--out needs --from-mlflow; otherwise the report goes into the sweep's directory"
        )
    else:
        directory = open_storage(source)
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


def fit(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="a .csv, .tsv or .parquet file")],
    law: Annotated[
        Literal["power", "saturating", "kaplan", "chinchilla", "width-depth"],
        typer.Option(help="the law to fit"),
    ],
    x: Annotated[str | None, _column("column of x (power, saturating)")] = None,
    y: Annotated[str | None, _column("column of y (power, saturating)")] = None,
    params: Annotated[str | None, _column("column of parameters N (kaplan, chinchilla)")] = None,
    tokens: Annotated[
        str | None, _column("column of tokens D (kaplan, chinchilla, width-depth)")
    ] = None,
    width: Annotated[str | None, _column("column of the width (width-depth)")] = None,
    depth: Annotated[str | None, _column("column of the depth (width-depth)")] = None,
    loss: Annotated[
        str | None, _column("column of the loss (kaplan, chinchilla, width-depth)")
    ] = None,
    replicate: Annotated[
        str | None, _column("column that labels paired replicates, such as the seed")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="use only these rows; repeatable"),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="one fit for each value of the column; repeatable"),
    ] = None,
    bootstrap: Annotated[
        int,
        typer.Option(
            metavar="N", help="bootstrap resamples for the intervals of loss laws; 0: no intervals"
        ),
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", help="seed of the bootstrap")] = 0,
    figure: Annotated[
        Path | None, typer.Option(metavar="PATH", help="draw the fit to a .svg or .png file")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a law to any tidy table.

    Print the parameters with intervals, and say what the data cannot decide.
    """
    from analysis.fit.fit_text import as_text
    from analysis.fit.request import Request, parse_where
    from analysis.fit_pipeline import fit_and_draw

    roles = {
        "x": x, "y": y, "params": params, "tokens": tokens, "width": width, "depth": depth,
        "loss": loss,
    }  # fmt: skip
    request = Request(
        law=law,
        columns={role: column for role, column in roles.items() if column is not None},  # type: ignore[misc]
        where=parse_where(where or []),
        group=tuple(group or []),
        replicate=replicate,
        resamples=bootstrap,
        seed=seed,
    )
    fitted = fit_and_draw(table, request, figure)
    if as_json:
        print_json(fitted.to_json())
    else:
        say(as_text(fitted))


def sync(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="a sweep's directory")],
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send to MLflow what it lacks of a sweep."""
    from dataclasses import asdict

    from analysis.wording import plural
    from orchestrator.mlflow.exporter import sync as send
    from orchestrator.mlflow.tracking import storage_of
    from orchestrator.mlflow.tracking import tracking_uri as tracking_of

    opened = open_storage(directory)
    report = send(opened, tracking_of(storage_of(opened), tracking_uri))
    if as_json:
        print_json(asdict(report))
    elif report.away:
        typer.echo(
            f"MLflow does not answer: {report.away}; nothing is lost, repeat the command later",
            err=True,
        )
    else:
        typer.echo(f"sent {report.points} points of {report.runs} runs", err=True)
        if report.refused:
            typer.echo(
                f"{plural(report.refused, 'trial')} missing: unreadable, or refused by the server",
                err=True,
            )
        if report.fileless:
            typer.echo(
                f"{report.fileless} runs lack files: the artifact store did not take them", err=True
            )
    if not report.complete:
        raise typer.Exit(1)


def export(
    trial: Annotated[str, typer.Argument(metavar="TRIAL_DIR", help="a trial's directory")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="the folder to create")],
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="data type of the written weights")
    ] = "float32",
    tokenizer: Annotated[
        bool, typer.Option("--tokenizer/--no-tokenizer", help="write the tokenizer too")
    ] = True,
    block: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:CLASS", help="the own block that the trial names; its code will run"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a trial's model for Hugging Face transformers."""
    from dataclasses import asdict

    from transformers.utils import logging as transformers_logging

    from trainers.export.export import export as write

    transformers_logging.disable_progress_bar()
    sys.path.append("")  # own blocks may lie in the current folder, as in training
    done = write(open_storage(trial), out, dtype, tokenizer, block=block)
    if as_json:
        print_json(asdict(done))
    else:
        say(done.summary)


def ui(
    storage: StorageOption = DEFAULT_STORAGE,
    port: Annotated[
        int, typer.Option(metavar="PORT", help="use this port, or another if it is taken")
    ] = 5000,
) -> None:
    """Show the sweeps of a storage in MLflow's pages.

    The server listens on this machine only. Ctrl-C ends it.
    """
    from orchestrator.mlflow.ui import open_ui

    open_ui(open_storage(storage), port)
