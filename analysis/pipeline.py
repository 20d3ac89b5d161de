"""From a sweep's directory to its report: read, judge, draw, write."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import figures
from analysis.errors import InputError
from analysis.figure_style import render
from analysis.laws import PowerLaw, Refusal
from analysis.recommend import Recommendation, recommend
from analysis.records import encode_json
from analysis.report import build_report
from analysis.storage import Storage
from analysis.summary import summarise
from analysis.table import SweepTables, load_sweep

REPORT = "report"


@dataclass(frozen=True)
class Analysis:
    """What an analysis came to. `recommendation` is the content of recommendation.json."""

    recommendation: dict[str, Any]
    summary: str
    report_url: str


def analyse(sweep: Storage) -> Analysis:
    """Judge a sweep and write report/ into its directory, in place of an earlier one.

    Raises InputError where the directory is no sweep, or no trial of it has finished.
    """
    tables = load_sweep(sweep)
    unfinished = tables.trials["state"].isin(["failed", "unfinished", "waiting"])
    if unfinished.all():
        counts = tables.trials["state"].value_counts().to_dict()
        raise InputError(
            f"{sweep.url}: none of {len(tables.trials)} trials has a result yet "
            f"({', '.join(f'{count} {state}' for state, count in counts.items())}); "
            "let `widthlab run` finish at least one"
        )
    recommendation = recommend(tables)
    judgement = recommendation.to_dict()
    text = summarise(tables, recommendation)
    written = dict(_figures(tables, recommendation))
    svgs = {name: data for name, data in written.items() if name.endswith(".svg")}
    written |= dict(_tables(tables, recommendation))
    written["recommendation.json"] = encode_json(judgement)
    # Last: whoever sees a report finds everything it names.
    written["report.html"] = build_report(tables, recommendation, svgs).encode()
    report = sweep.child(REPORT)
    for key, data in written.items():
        report.put(key, data)
    for key in report.list():
        if key not in written and key.startswith(("figures/", "tables/")):
            report.delete(key)  # of an earlier analysis with other groups
    return Analysis(judgement, text, f"{report.url}/report.html")


def _figures(tables: SweepTables, recommendation: Recommendation) -> Iterator[tuple[str, bytes]]:
    """Key and bytes of every figure, as SVG and PNG."""
    overview = figures.exponents(recommendation)
    drawn = {} if overview is None else {"exponents": overview}
    for verdict in recommendation.groups:
        for name, figure in figures.figures_of(verdict, tables).items():
            drawn[f"{verdict.slug}-{name}"] = figure
    for name, figure in drawn.items():
        for kind, data in render(figure).items():
            yield f"figures/{name}.{kind}", data


def _tables(tables: SweepTables, recommendation: Recommendation) -> Iterator[tuple[str, bytes]]:
    """Key and bytes of every table; those with a row per step as Parquet only."""
    trials = tables.trials.assign(holds=tables.trials["holds"].map("+".join))
    for name, frame in {
        "trials": trials,
        "laws": _laws(recommendation),
        "widths": _widths(recommendation),
    }.items():
        if len(frame.columns):
            yield f"tables/{name}.csv", frame.to_csv(index=False).encode()
            yield f"tables/{name}.parquet", _parquet(frame)
    yield "tables/spectra.parquet", _parquet(tables.spectra)
    yield "tables/curves.parquet", _parquet(tables.curves)


def _laws(recommendation: Recommendation) -> pd.DataFrame:
    """A row per group and law."""
    rows = []
    for verdict in recommendation.groups:
        for name, law in verdict.spectral.laws.items():
            row = {**verdict.group, "quantity": name, "excluded": sum(law.excluded.values())}
            if isinstance(law, Refusal):
                row |= {"refused": law.reason}
            if isinstance(law, PowerLaw):
                row |= {
                    "beta": law.beta,
                    "beta_low": law.beta_interval[0],
                    "beta_high": law.beta_interval[1],
                    "intercept": law.intercept,
                    "intercept_low": law.intercept_interval[0],
                    "intercept_high": law.intercept_interval[1],
                    "interval_method": law.interval_method,
                    "r_squared": law.r_squared,
                    "lack_of_fit_p": law.lack_of_fit_p,
                    "widths": law.widths,
                    "points": law.points,
                }
            rows.append(row)
    return pd.DataFrame(rows)


def _widths(recommendation: Recommendation) -> pd.DataFrame:
    """A row per group and width of the deciding budget."""
    rows = [
        {**verdict.group, **alternative}
        for verdict in recommendation.groups
        for alternative in verdict.alternatives
    ]
    return pd.DataFrame(rows)


def _parquet(frame: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.to_parquet(sink, index=False)
    return sink.getvalue()
