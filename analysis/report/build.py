"""The report: one HTML file with everything inside, the verdict first, then why.

No script, and nothing is fetched: figures are inline SVG whose ink follows the page, light or
dark. The only links that lead out are those of trials to their MLflow runs, where there is a
server.
"""

from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from analysis.laws.power_law import PowerLaw, Refusal, is_shown
from analysis.report.data import data_section
from analysis.report.front import front
from analysis.report.group import group_section
from analysis.report.page import drawn_figure, plain_table, render, shades
from analysis.report.trials import reproduce, trials_section
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.layer_verdict import LayerVerdict
from analysis.verdict.recommend import Recommendation
from analysis.verdict.summary import headline, shared_caveats
from analysis.wording import bracketed

QUANTITIES = {
    "soft_rank": "soft rank",
    "hard_rank": "hard rank",
    "edim": "eDim",
    "asymmetry": "soft - hard",
}

EXPONENTS = "At 1 the ranks would grow in step with D; at 0 more width adds no directions."


def build_report(
    tables: SweepTables,
    recommendation: Recommendation,
    layers: Mapping[str, LayerVerdict],
    svgs: Mapping[str, bytes],
    frames: Mapping[str, pd.DataFrame],
    links: Mapping[str, str],
) -> str:
    """The HTML.

    `layers` by a group's slug; `svgs` are the figures by key (`figures/SLUG-NAME.svg`), `frames`
    the tables that lie beside it, `links` the pages of trials on an MLflow server by id.
    """
    common = shared_caveats(recommendation)
    return render(
        "report.html",
        title=f"{tables.name}: how wide should the feed-forward network be?",
        headline=headline(tables).removeprefix(f"{tables.name}: "),
        sections=[
            front(recommendation, common, svgs),
            _rank_laws(recommendation, svgs),
            *(
                group_section(verdict, layers[verdict.slug], common, svgs)
                for verdict in recommendation.groups
            ),
            data_section(tables),
            trials_section(tables, links),
            reproduce(tables, frames),
        ],
        shades=shades,
    )


def _rank_laws(recommendation: Recommendation, svgs: Mapping[str, bytes]) -> Markup:
    """What the ranks are, and the exponents of several groups: those of one are in its section."""
    several = len(recommendation.groups) > 1
    laws = [verdict.spectral.laws for verdict in recommendation.groups]
    rows = [
        [verdict.label, *(_law(own[name], name) for name in QUANTITIES)]
        for verdict, own in zip(recommendation.groups, laws, strict=True)
    ]
    return render(
        "rank_laws.html",
        aggregation=recommendation.aggregation,
        exponents=drawn_figure(svgs, "exponents", EXPONENTS) if several else None,
        several=several,
        any_law=any(isinstance(law, PowerLaw) for own in laws for law in own.values()),
        laws=plain_table(["group", *QUANTITIES.values()], rows),
    )


def _law(law: PowerLaw | Refusal, name: str) -> str:
    if isinstance(law, Refusal):
        return "no law"
    shown = "" if name != "asymmetry" or is_shown(law) else " not shown"
    return f"{law.beta:.2f} {bracketed(law.beta_interval)}{shown}"
