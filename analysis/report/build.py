"""The report: one self-contained HTML file, the verdict first, then the evidence.

The page has no script and fetches nothing. Figures are inline SVG in the colours of the page, light
or dark. The only external links go from trials to their MLflow runs, if there is a server.
"""

from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from analysis.laws.layer_kinds import LayerSpread
from analysis.laws.power_law import PowerLaw, is_shown
from analysis.laws.spectral import PLATEAU, RANK_NAMES
from analysis.refusal import Refusal
from analysis.report.comparisons import comparisons_section
from analysis.report.data import data_section
from analysis.report.front import front
from analysis.report.group import group_section
from analysis.report.page import drawn_figure, plain_table, render, shades
from analysis.report.stability import stability_section
from analysis.report.trials import reproduce, trials_section
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.group_verdict import Recommendation
from analysis.verdict.layer_verdict import LayerVerdict
from analysis.verdict.summary import headline, shared_caveats
from analysis.wording import bracketed, interval

QUANTITIES = {**RANK_NAMES, "asymmetry": "soft - raw hard"}

EXPONENTS = (
    "With an exponent of 1 the rank grows in proportion to D; with 0, a wider layer uses no more "
    "directions. Thin lines: range of the exponents of single layers."
)


def build_report(
    tables: SweepTables,
    recommendation: Recommendation,
    layers: Mapping[str, LayerVerdict],
    svgs: Mapping[str, bytes],
    frames: Mapping[str, pd.DataFrame],
    links: Mapping[str, str],
) -> str:
    """Return the report as HTML.

    Args:
        tables: The sweep's trials, curves and spectra.
        recommendation: The verdict of every group.
        layers: The layer-by-layer verdict of each group, by the slug of the group.
        svgs: The figures that were drawn, by key: `figures/SLUG-NAME.svg` for one group,
            `figures/NAME.svg` for the whole sweep. A missing figure leaves no gap.
        frames: The tables written next to the report, by name (see `report_tables`).
        links: The page of a trial on an MLflow server, by trial id; empty without a server.
    """
    common = shared_caveats(recommendation)
    return render(
        "report.html",
        title=f"{tables.name}: how wide should the feed-forward network be?",
        headline=headline(tables).removeprefix(f"{tables.name}: "),
        sections=[
            front(recommendation, common, svgs),
            comparisons_section(recommendation.comparisons, svgs),
            _rank_laws(recommendation, svgs),
            *(
                group_section(verdict, layers[verdict.slug], common, svgs)
                for verdict in recommendation.groups
            ),
            stability_section(tables),
            data_section(tables),
            trials_section(tables, links),
            reproduce(tables, frames),
        ],
        shades=shades,
    )


def _rank_laws(recommendation: Recommendation, svgs: Mapping[str, bytes]) -> Markup:
    """Define the ranks and compare the exponents of the groups, if there are several."""
    several = len(recommendation.groups) > 1
    laws = [verdict.spectral.laws for verdict in recommendation.groups]
    rows = []
    for verdict, own in zip(recommendation.groups, laws, strict=True):
        rows.append([verdict.label, *(_law(own[name], name) for name in QUANTITIES)])
        spread = [_spread(verdict.layers, name) for name in QUANTITIES]
        if any(spread):
            rows.append(["single layers", *spread])
    return render(
        "rank_laws.html",
        aggregation=recommendation.aggregation,
        exponents=drawn_figure(svgs, "exponents", EXPONENTS) if several else None,
        several=several,
        plateau=PLATEAU,
        any_law=any(isinstance(law, PowerLaw) for own in laws for law in own.values()),
        laws=plain_table(["group", *QUANTITIES.values()], rows),
    )


def _law(law: PowerLaw | Refusal, name: str) -> str:
    """An exponent with its interval."""
    if isinstance(law, Refusal):
        return "no law"
    note = " includes 0" if name == "asymmetry" and not is_shown(law) else ""
    return f"{law.beta:.2f} {bracketed(law.beta_interval)}{note}"


def _spread(layers: LayerVerdict, name: str) -> str:
    """The range of the exponents of single layers; empty where they have no law."""
    spread = layers.spread.get(name)
    return interval(spread.range) if isinstance(spread, LayerSpread) else ""
