"""The report: one HTML file with everything inside, the verdict first, then why.

No script, and nothing is fetched: figures are inline SVG whose ink follows the page, light or
dark. The only links that lead out are those of trials to their MLflow runs, where there is a
server.
"""

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from string import Template

import pandas as pd

from analysis.laws.power_law import PowerLaw, is_shown
from analysis.refusal import Refusal
from analysis.report.data import data_section
from analysis.report.front import front
from analysis.report.group import group_section
from analysis.report.page import figure, figures, paragraph, shades, table, words
from analysis.report.trials import reproduce, trials_section
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.group_verdict import Recommendation
from analysis.verdict.layer_verdict import LayerVerdict
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
    body = [
        *front(recommendation, common, svgs),
        *_rank_laws(recommendation, svgs),
        *(
            group_section(verdict, layers[verdict.slug], common, svgs)
            for verdict in recommendation.groups
        ),
        data_section(tables),
        trials_section(tables, links),
        reproduce(tables, frames),
    ]
    template = Template(files("analysis.report").joinpath("report.html").read_text("utf-8"))
    return template.substitute(
        title=escape(f"{tables.name}: how wide should the feed-forward network be?"),
        headline=words(headline(tables).removeprefix(f"{tables.name}: ")),
        body="\n".join(part for part in body if part),
        shades_on_white=shades(on_white=True),
        shades_on_black=shades(on_white=False),
    )


def _rank_laws(recommendation: Recommendation, svgs: Mapping[str, bytes]) -> Iterator[str]:
    """What the ranks are, and the exponents of several groups: those of one are in its section."""
    yield "<h2>Rank laws</h2>"
    text = paragraph(
        "How many of its D directions a feed-forward layer uses, as D grows and d_model, depth "
        "and training stay: rank ~ D^exponent. With p the eigenvalues of its activations' "
        "covariance as shares of their sum, soft rank is exp(-sum p ln p), which also counts the "
        "faint directions, and hard rank 1 / sum p^2, which counts the strong ones. eDim, the "
        "effective dimension, combines both."
    )
    text += paragraph(f"A trial's rank: {recommendation.aggregation}.", "small faint")
    # One group's exponents are in its own figure.
    drawn = svgs.get("figures/exponents.svg") if len(recommendation.groups) > 1 else None
    yield figures([figure("exponents", drawn, EXPONENTS), f"<div>{text}</div>"]) if drawn else text
    laws = {verdict.label: verdict.spectral.laws for verdict in recommendation.groups}
    if len(laws) == 1:
        return
    if not any(isinstance(law, PowerLaw) for own in laws.values() for law in own.values()):
        yield paragraph("No group has enough widths with spectra for a law.")
        return
    rows = [[label, *(_law(own[name], name) for name in QUANTITIES)] for label, own in laws.items()]
    yield table(["group", *QUANTITIES.values()], rows)
    yield paragraph(
        "Exponents with 90 % intervals. Soft - hard is the difference of the exponents, not shown "
        "where its interval includes 0.",
        "small faint",
    )


def _law(law: PowerLaw | Refusal, name: str) -> str:
    if isinstance(law, Refusal):
        return "no law"
    shown = "" if name != "asymmetry" or is_shown(law) else " not shown"
    return f"{law.beta:.2f} {bracketed(law.beta_interval)}{shown}"
