"""The report: one HTML file with everything inside, the verdict first, then why.

No script, and nothing is fetched: figures are inline SVG whose ink follows the page, light or
dark. The only links that lead out are those of trials to their MLflow runs, where there is a
server.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

import pandas as pd

from analysis.laws.power_law import PowerLaw, Refusal, is_shown
from analysis.report.group import group_section
from analysis.report.page import bullets, figure, figures, paragraph, sentence, table, words
from analysis.report.trials import reproduce, trials_section
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.layer_verdict import LayerVerdict
from analysis.verdict.recommend import GroupVerdict, Recommendation
from analysis.verdict.summary import headline, shared_caveats
from analysis.verdict.transfer import Transfer
from analysis.wording import bracketed, interval, large, multiple

QUANTITIES = {
    "soft_rank": "soft rank",
    "hard_rank": "hard rank",
    "edim": "eDim",
    "asymmetry": "soft - hard",
}
UTILISATION = {"soft_utilisation": "soft rank / D", "hard_utilisation": "hard rank / D"}


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
        *(_verdict(verdict) for verdict in recommendation.groups),
        *(_transfer(found) for found in recommendation.transfers),
        *_overview(tables, recommendation, common, svgs),
        *(
            group_section(verdict, layers[verdict.slug], common, svgs)
            for verdict in recommendation.groups
        ),
        trials_section(tables, links),
        reproduce(tables, frames),
    ]
    template = Template(files("analysis.report").joinpath("report.html").read_text("utf-8"))
    return template.substitute(
        title=escape(f"{tables.name}: how wide should the feed-forward network be?"),
        headline=escape(headline(tables)),
        body="\n".join(part for part in body if part),
    )


def _verdict(verdict: GroupVerdict) -> str:
    width = verdict.width_multiplier
    short = "no recommendation" if width is None else multiple(width)
    said = sentence(verdict.sentence.removeprefix("no recommendation: "))
    return (
        f'<div class="verdict {verdict.verdict}"><p>{escape(verdict.label)}: '
        f'<span class="width">{short}</span></p><p>{words(said)} '
        f'<a href="#{verdict.slug}">Why</a></p></div>'
    )


def _transfer(found: Transfer) -> str:
    kind = "refused" if found.width_multiplier is None else "recommended"
    sizes = [
        [
            large(size.parameters),
            large(size.tokens),
            f"{size.optimum:.2f}x",
            interval(size.interval),
        ]
        for size in found.sizes
    ]
    names = ["non-embedding parameters", "tokens", "optimum", "90 % interval"]
    return (
        f'<div class="verdict {kind}"><p>{escape(found.label)}, at the target size</p>'
        f"{paragraph(sentence(found.sentence))}{table(names, sizes) if sizes else ''}</div>"
    )


def _overview(
    tables: SweepTables,
    recommendation: Recommendation,
    common: Sequence[str],
    svgs: Mapping[str, bytes],
) -> Iterator[str]:
    if common:
        yield "<h2>Before acting on it</h2>" + bullets(common)
    yield "<h2>Rank laws</h2>"
    yield paragraph(
        "How many directions a feed-forward layer of width D uses: rank ~ D^exponent, with "
        "d_model, depth and training fixed. Intervals are at 90 %. A gap between the exponents "
        "whose interval includes 0 is reported as not shown. Of what it could use a layer uses "
        "rank / D, whose exponent is below 0 where wider layers are used less."
    )
    rows, notes = [], []
    for verdict in recommendation.groups:
        spectral = verdict.spectral
        laws = {**spectral.laws, **spectral.utilisation}
        rows.append(
            [verdict.label, *(_law(laws[name], name) for name in (*QUANTITIES, *UTILISATION))]
        )
        if spectral.excluded:
            counts = ", ".join(f"{count} {why}" for why, count in spectral.excluded.items())
            notes.append(f"{verdict.label}: left out {counts}.")
    yield table(["group", *QUANTITIES.values(), *UTILISATION.values()], rows)
    methods = sorted(
        {
            law.interval_method
            for verdict in recommendation.groups
            for law in verdict.spectral.laws.values()
            if isinstance(law, PowerLaw)
        }
    )
    notes += [f"Intervals: {'; '.join(methods)}."] if methods else []
    notes.append(f"A trial's rank: {tables.aggregation.text}.")
    yield paragraph(" ".join(notes), "small faint")
    # One group's exponents are in its own figure.
    if "figures/exponents.svg" in svgs and len(recommendation.groups) > 1:
        yield figures([figure("exponents", svgs["figures/exponents.svg"], "")])


def _law(law: PowerLaw | Refusal, name: str) -> str:
    if isinstance(law, Refusal):
        return "no law"
    shown = "" if name != "asymmetry" else (" shown" if is_shown(law) else " not shown")
    return f"{law.beta:.2f} {bracketed(law.beta_interval)}{shown}"
