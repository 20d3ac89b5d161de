"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.sweep.load import DEFAULT_STORAGE, STORAGE_VARIABLE

__all__ = [
    "DEFAULT_STORAGE",
    "JsonOption",
    "NameOption",
    "RequireVerdictOption",
    "RetryFailedOption",
    "SetOption",
    "StorageOption",
    "SweepArgument",
    "TargetArgument",
    "TrackingOption",
]

SHIPPED = "a file that is not there is looked for among the sweeps that come with widthlab"

SweepArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SWEEP.yaml",
        help=f"the sweep file; paths in it are relative to its folder; {SHIPPED}",
    ),
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", help="the sweep file or the sweep's directory")
]
NameOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="the --set of `run`, if it changed the name"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override a key of the file; repeatable; paths are relative to the current folder",
    ),
]
StorageOption = Annotated[
    str,
    typer.Option(
        envvar=STORAGE_VARIABLE, metavar="DIR", help="the folder of all sweeps: a path or a URL"
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="MLflow server (default: $MLFLOW_TRACKING_URI, else a SQLite file in the storage)",
    ),
]
RetryFailedOption = Annotated[
    bool, typer.Option("--retry-failed", help="train failed trials again")
]
RequireVerdictOption = Annotated[
    bool, typer.Option("--require-verdict", help="exit 1 if the analysis refuses a verdict")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")]
