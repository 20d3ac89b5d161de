"""From the directory of a sweep to its report: read, judge, draw, write."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.figures import overview_figures, rank_figures
from analysis.figures import verdict_figures as figures
from analysis.figures.style import render
from analysis.report.build import build_report
from analysis.report.tables import report_tables, written
from analysis.tables.sweep_tables import SweepTables, load_sweep
from analysis.verdict.group_verdict import Recommendation
from analysis.verdict.layer_verdict import LayerVerdict
from analysis.verdict.recommend import recommend
from analysis.verdict.summary import summarise
from trialstore.errors import InputError
from trialstore.records import OUTCOMES, encode_json
from trialstore.storage import Storage
from trialstore.sweep_file import RECOMMENDATION, REPORT

#: Most heat maps in addition to those in the report, one per width.
MOST_HEAT_MAPS = 16


@dataclass(frozen=True)
class Analysis:
    """The outcome of an analysis."""

    recommendation: dict[str, Any]  # content of recommendation.json
    summary: str  # for the terminal
    report_url: str


def analyse(
    sweep: Storage,
    *,
    links: Mapping[str, str] | None = None,
    aggregate_last: int | None = None,
    aggregate_layers: str | None = None,
) -> Analysis:
    """Judge a sweep and write report/ into its directory, replacing an earlier report.

    Args:
        sweep: the storage of the sweep's directory.
        links: trial id -> page of the trial on an MLflow server.
        aggregate_last: snapshots per rank; overrides the sweep file.
        aggregate_layers: how layers become one rank; overrides the sweep file.

    Raises:
        InputError: the directory is not a sweep, or none of its trials has finished.
    """
    tables = load_sweep(sweep, aggregate_last, aggregate_layers)
    if not tables.trials["state"].isin(OUTCOMES).any():
        counts = tables.trials["state"].value_counts().to_dict()
        raise InputError(
            f"{sweep.url}: none of {len(tables.trials)} trials has a result yet "
            f"({', '.join(f'{count} {state}' for state, count in counts.items())}); "
            "let `widthlab run` finish at least one"
        )
    recommendation = recommend(tables)
    layers = {verdict.slug: verdict.layers for verdict in recommendation.groups}
    judgement = recommendation.to_dict()
    frames = report_tables(tables, recommendation, layers)
    files = dict(_figures(tables, recommendation, layers))
    svgs = {key: data for key, data in files.items() if key.endswith(".svg")}
    page = build_report(tables, recommendation, layers, svgs, frames, links or {})
    files |= dict(written(frames))
    files[RECOMMENDATION] = encode_json(judgement)
    files["report.html"] = page.encode()  # last, after all files that it names
    report = sweep.child(REPORT)
    for key, data in files.items():
        report.put(key, data)
    for key in report.list():
        if key not in files and key.startswith(("figures/", "tables/")):
            report.delete(key)  # left by an earlier analysis with other groups
    return Analysis(judgement, summarise(tables, recommendation), report.url_of("report.html"))


def _figures(
    tables: SweepTables, recommendation: Recommendation, layers: Mapping[str, LayerVerdict]
) -> Iterator[tuple[str, bytes]]:
    """Yield the key and bytes of every figure, as SVG and PNG."""

    def all_of_them() -> Iterator[tuple[str, Any]]:
        yield from overview_figures.overviews(recommendation)
        for verdict in recommendation.groups:
            advice = layers[verdict.slug].advice
            for name, figure in figures.figures_of(verdict, tables, advice):
                yield f"{verdict.slug}-{name}", figure
        yield from itertools.islice(_heat_maps(tables, recommendation), MOST_HEAT_MAPS)

    for name, figure in all_of_them():
        for kind, data in render(figure).items():
            yield f"figures/{name}.{kind}", data


def _heat_maps(tables: SweepTables, recommendation: Recommendation) -> Iterator[tuple[str, Any]]:
    """Yield heat maps of ranks by layer and step, for all widths that the report does not show."""
    for verdict in recommendation.groups:
        shown = verdict.representative
        first = verdict.spectral.used.sort_values(["D", "replicate"]).drop_duplicates("D")
        for trial_id in first["id"]:
            if shown is None or trial_id == shown["id"]:
                continue
            figure = rank_figures.heat_map(str(trial_id), tables)
            if figure is not None:
                yield f"layer-ranks/{trial_id}", figure
