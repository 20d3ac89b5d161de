"""Read and judge a sweep's directory from Python."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from analysis import pipeline
from analysis.tables import sweep_tables
from analysis.tables.sweep_tables import SweepTables
from trialstore.storage import open_storage
from widthlab import html
from widthlab.arguments import naming_arguments

AggregateLayers = Literal["median", "mean", "first", "deepest"]


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a sweep says about the width. Prints as `widthlab analyze` does.

    Attributes:
        summary: The verdict as text: exponents, widths, refusals with their reasons, caveats.
        recommendation: The content of recommendation.json (docs/verdict.md).
        report_url: The HTML report that was written.
    """

    summary: str
    recommendation: dict[str, Any]
    report_url: str

    @property
    def groups(self) -> pd.DataFrame:
        """One row per group of trials: group, verdict (`recommended` or `refused`), the
        width_multiplier D / d_model with its 90 % interval low to high, missing where refused, and
        the sentence that says why."""
        rows = []
        for group in self.recommendation["groups"]:
            low, high = group["interval"] or (None, None)
            rows.append(
                {
                    "group": group["label"],
                    "verdict": group["verdict"],
                    "width_multiplier": group["width_multiplier"],
                    "low": low,
                    "high": high,
                    "sentence": group["sentence"],
                }
            )
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return f"{self.summary}\n\nreport   {self.report_url}"

    __repr__ = __str__  # a Python prompt shows a result by its repr

    def _repr_html_(self) -> str:
        groups = self.groups
        return "".join(
            [
                html.heading(f"Verdict of {self.recommendation['sweep']}"),
                html.table(groups.drop(columns="sentence").dropna(axis="columns", how="all")),
                html.listing(groups["group"] + ": " + groups["sentence"]),
                html.folded("laws and caveats", self.summary),
                html.paragraph(f"report: {self.report_url}"),
            ]
        )


def load_sweep(
    directory: str | Path,
    *,
    aggregate_last: int | None = None,
    aggregate_layers: AggregateLayers | None = None,
) -> SweepTables:
    """Read a sweep's directory as tables; it may still be running.

    Args:
        directory: The path or URL of the sweep's directory: `widthlab-runs/tiny`.
        aggregate_last: A layer's rank in `trials` is the median of so many last snapshots; by
            default as the sweep file says.
        aggregate_layers: How the ranks of a trial's layers become one; by default as the file says.

    Returns:
        Frames `trials` (a row per trial), `spectra` (per trial, layer, site and snapshot), `curves`
        (per trial and recorded step) and `eigenvalues` (per trial and layer, last snapshot).

    Raises:
        InputError: The directory holds no sweep, or trials of several semantics versions.

    Example:
        >>> tables = widthlab.load_sweep("widthlab-runs/tiny")
        >>> tables.trials[["id", "D", "val_loss", "soft_rank"]]
    """
    with naming_arguments():
        return sweep_tables.load_sweep(
            open_storage(str(directory)), aggregate_last, aggregate_layers
        )


def analyse(
    directory: str | Path,
    *,
    aggregate_last: int | None = None,
    aggregate_layers: AggregateLayers | None = None,
) -> Verdict:
    """Fit the laws, judge, and write figures and report into a sweep's directory.

    Args:
        directory: The path or URL of the sweep's directory. Its `report/` is replaced.
        aggregate_last: As for `load_sweep`.
        aggregate_layers: As for `load_sweep`.

    Raises:
        InputError: The directory holds no sweep, or no trial of it has finished.

    Example:
        >>> verdict = widthlab.analyse("widthlab-runs/small")
        >>> verdict.groups[["group", "verdict", "width_multiplier"]]
    """
    with naming_arguments():
        done = pipeline.analyse(
            open_storage(str(directory)),
            aggregate_last=aggregate_last,
            aggregate_layers=aggregate_layers,
        )
    return Verdict(done.summary, done.recommendation, done.report_url)
