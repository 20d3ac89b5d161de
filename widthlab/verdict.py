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

_COMPARED = (
    *("axis", "other", "baseline", "where", "cells", "outcome", "difference"),
    *("ahead", "pairs", "basis", "sentence"),
)
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
        """One row per group of trials: group, verdict (`recommended`, `plateau` or `refused`), the
        width_multiplier D / d_model with the 90 % interval of the optimum, low to high, missing
        unless recommended, the ends of a plateau, missing unless there is one, and the sentence
        that says why."""
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
                    "plateau": group["plateau"],
                    "sentence": group["sentence"],
                }
            )
        return pd.DataFrame(rows)

    @property
    def comparisons(self) -> pd.DataFrame:
        """One row per comparison of two groups that differ in one axis: axis, other, baseline,
        where (the axes that they share), cells (the matching of the paired cells), outcome (`told`,
        `not told`, `no interval` or `refused`), difference [nats per token, other less baseline]
        with its simultaneous 90 % interval low to high, ahead of pairs in which other has the lower
        loss, basis (what is equal in a pair), and the sentence. docs/verdict.md has the rules."""
        found = self.recommendation["comparisons"]["pairs"]
        rows = []
        for pair in found:
            low, high = pair["interval"] or (None, None)
            given = {name: pair.get(name) for name in _COMPARED}
            where = {axis: value for axis, value in pair["where"].items() if value is not None}
            told = ", ".join(f"{axis} {value}" for axis, value in where.items())
            rows.append(given | {"where": told, "low": low, "high": high})
        return pd.DataFrame(rows, columns=[*_COMPARED, "low", "high"])

    def __str__(self) -> str:
        return f"{self.summary}\n\nreport   {self.report_url}"

    __repr__ = __str__  # a Python prompt shows a result by its repr

    def _repr_html_(self) -> str:
        groups, compared = self.groups, self.comparisons
        return "".join(
            [
                html.heading(f"Verdict of {self.recommendation['sweep']}"),
                html.table(groups.drop(columns="sentence").dropna(axis="columns", how="all")),
                html.listing(groups["group"] + ": " + groups["sentence"]),
                *self._compared(compared),
                html.folded("laws and caveats", self.summary),
                html.paragraph(f"report: {self.report_url}"),
            ]
        )

    def _compared(self, found: pd.DataFrame) -> list[str]:
        """The comparisons in HTML; nothing where there are none."""
        if found.empty:
            return []
        shown = found.drop(columns=["sentence", "basis"]).dropna(axis="columns", how="all")
        return [html.heading("Comparisons between groups"), html.table(shown)]


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
