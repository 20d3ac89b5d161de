"""One group's section of the report: why the verdict is what it is, as one would argue it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from analysis.laws.power_law import PowerLaw
from analysis.laws.saturation import Saturation
from analysis.refusal import Refusal
from analysis.report.captions import captions_of
from analysis.report.page import (
    bullets,
    figure,
    figures,
    folded,
    paragraph,
    sentence,
    table,
    without_empty,
    words,
)
from analysis.verdict.budgets import CURRENCIES
from analysis.verdict.equal_budget import BUDGETS
from analysis.verdict.evidence import widths_of
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.layer_verdict import LayerVerdict
from analysis.verdict.loss_optimum import LossCurve
from analysis.verdict.next_cells import NextCells
from analysis.verdict.supply import SELECTION
from analysis.verdict.tuned_rate import TunedTrials
from analysis.wording import bracketed, interval, multiple, plural
from trialstore.records import FIRST_SEMANTICS

LAWS = {
    "soft_rank": "soft rank",
    "hard_rank": "hard rank",
    "edim": "eDim",
    "asymmetry": "soft / hard rank",
}
LOSS = "loss"
UTILISATION = {"soft_utilisation": "soft rank / D", "hard_utilisation": "hard rank / D"}
AGREEMENT = {
    True: "The spectral stop agrees: ",
    False: "The spectral stop does not agree: ",
    None: "The spectral stop cannot be compared: ",
}


def group_section(
    verdict: GroupVerdict, layers: LayerVerdict, common: Sequence[str], svgs: Mapping[str, bytes]
) -> str:
    """Everything about one group; `common` caveats are said elsewhere."""
    shown = _Figures(verdict, svgs)
    width = verdict.width_multiplier
    short = "no recommendation" if width is None else multiple(width)
    parts = [
        f'<section id="{verdict.slug}" class="{verdict.verdict}"><h2>{escape(verdict.label)}: '
        f'<span class="width">{short}</span></h2>',
        *_loss(verdict, shown),
        *_caveats(verdict, common),
        *_next(verdict),
        *_ranks(verdict, shown),
        *_layers(verdict, layers, shown),
        *_training(verdict.tuned, shown),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


class _Figures:
    """The figures of one group as HTML; those that were not drawn are nothing."""

    def __init__(self, verdict: GroupVerdict, svgs: Mapping[str, bytes]) -> None:
        self._slug, self._svgs = verdict.slug, svgs
        self._captions = captions_of(verdict)

    def row(self, *names: str, beside: str = "") -> str:
        """Figures beside each other, and beside them what explains them."""
        drawn = []
        for name in names:
            svg = self._svgs.get(f"figures/{self._slug}-{name}.svg")
            if svg is not None:
                drawn.append(figure(f"{self._slug}-{name}", svg, self._captions[name]))
        return figures([*drawn, f"<div>{beside}</div>"] if beside else drawn)


def _loss(verdict: GroupVerdict, shown: _Figures) -> Iterator[str]:
    yield shown.row("loss-optimum", beside=_widths(verdict))
    if verdict.choices:
        yield "<h3>Other choices</h3>"
        yield bullets(sentence(choice.sentence) for choice in verdict.choices)
    if verdict.on_best is not None:
        yield f'<h3 id="{verdict.slug}-best-losses">On best losses</h3>'
        yield paragraph(sentence(verdict.on_best.sentence))
        yield _best_losses(verdict)
        yield paragraph(SELECTION, "small faint")
    others = _budgets(verdict)
    if others:
        yield "<h3>At other budgets</h3>"
        yield shown.row("loss-at-budgets")
        yield bullets(others)


def _widths(verdict: GroupVerdict) -> str:
    """The widths of the deciding budget, with what each costs in loss."""
    deciding = verdict.deciding
    if deciding is None or not isinstance(deciding.optimum, LossCurve):
        return ""
    digits = decimals(deciding.optimum.tolerance)
    runs = {width["runs"] for width in verdict.alternatives}
    rows, chosen = [], None
    for i, width in enumerate(verdict.alternatives):
        note = "equivalent" if width["equivalent"] else ""
        if width["width_multiplier"] == verdict.width_multiplier:
            chosen, note = i, "chosen"
        elif verdict.width_multiplier is None:
            note = ""
        if not width["admissible"]:
            note = "not admissible"
        rows.append(
            [
                multiple(width["width_multiplier"]),
                str(width["D"]),
                str(width["d_model"]),
                "" if len(runs) == 1 else str(width["runs"]),
                *(
                    f"{width[name]:.{digits}f}"
                    for name in ("val_loss", "excess_nats", "excess_upper_nats")
                ),
                note,
            ]
        )
    names, rows = without_empty(
        ["width", "D", "d_model", "runs", "loss", "excess", "at most", ""], rows
    )
    each = f" ({plural(runs.pop(), 'run')} a width)" if len(runs) == 1 else ""
    about = (
        f"Loss: mean of the runs, in nats per token{each}. Excess: of the fitted curve over its "
        "lowest point, with its upper 90 % bound."
    )
    if chosen is not None:
        about += " Equivalent: cannot be told from the chosen width."
    return (
        f"<h3>Widths at equal {escape(BUDGETS[deciding.hold][1])}</h3>"
        + table(names, rows, chosen=chosen)
        + paragraph(about, "small faint")
    )


def _best_losses(verdict: GroupVerdict) -> str:
    """Final and best losses side by side, by width of the deciding budget."""
    final, best = verdict.alternatives, widths_of(verdict.supply.on_best[0])
    ends = {width["width_multiplier"]: width for width in final}
    digits = decimals(verdict.supply.tolerance)
    rows = [
        [
            multiple(width["width_multiplier"]),
            str(width["D"]),
            f"{ends[width['width_multiplier']]['val_loss']:.{digits}f}",
            f"{width['val_loss']:.{digits}f}",
            f"{width['excess_nats']:.{digits}f}",
            f"{width['excess_upper_nats']:.{digits}f}",
        ]
        for width in best
        if width["width_multiplier"] in ends
    ]
    names = ["width", "D", "final loss", "best loss", "excess of the best", "at most"]
    return table(names, rows) if rows else ""


def decimals(tolerance: float) -> int:
    """Decimals of a loss that tell apart what `tolerance` does, and one more."""
    return max(2, 1 - math.floor(math.log10(tolerance)))


def _budgets(verdict: GroupVerdict) -> list[str]:
    """What is found where something else is held equal, said once where it is the same."""
    alike: dict[str, list[str]] = {}
    for found in verdict.at_budgets:
        if verdict.deciding is None or found.currency != verdict.deciding.hold:
            answer = found.sentence.partition(": ")[2]
            alike.setdefault(answer, []).append(CURRENCIES[found.currency][1])
    return [
        f"At equal {', '.join(names)}: {sentence(said, capital=False)}"
        for said, names in alike.items()
    ]


def _caveats(verdict: GroupVerdict, common: Sequence[str]) -> Iterator[str]:
    own = [caveat for caveat in verdict.caveats if caveat not in common]
    if own:
        yield f'<h3 id="{verdict.slug}-caveats">Caveats of this group</h3>' + bullets(
            map(sentence, own)
        )


def _next(verdict: GroupVerdict) -> Iterator[str]:
    if not verdict.run_next:
        return
    yield f'<h3 id="{verdict.slug}-next">What to run next</h3>'
    if not all(cells.planned for cells in verdict.run_next):
        # Only this widthlab's own version of the meaning goes on; the first is surely another's.
        old = (verdict.trials["semantics_version"] == FIRST_SEMANTICS).any()
        yield paragraph(
            "Add these values to those of the sweep file: "
            + (
                "a run trains the whole of it anew, for these trials are of semantics version "
                f"{FIRST_SEMANTICS}; the figures below are of the added cells alone."
                if old
                else "what is finished is not trained again."
            )
        )
    yield figures(
        f'<div><p>{words(sentence(cells.why))} <span class="faint">'
        f"{words(sentence(cells.cost))}</span></p>{_pasted(cells)}</div>"
        for cells in verdict.run_next
    )


def _pasted(cells: NextCells) -> str:
    added = cells.to_yaml()
    return f"<pre>{escape(added)}</pre>" if added else ""


def _ranks(verdict: GroupVerdict, shown: _Figures) -> Iterator[str]:
    yield f'<h3 id="{verdict.slug}-ranks">What the layers use</h3>'
    yield paragraph(
        AGREEMENT[verdict.agrees] + sentence(verdict.spectral.stop.sentence, capital=False)
    )
    laws: dict[str, PowerLaw | Refusal] = {
        **{text: verdict.spectral.laws[name] for name, text in LAWS.items()},
        LOSS: verdict.spectral.width_law,
    }
    if any(isinstance(law, PowerLaw) for law in laws.values()):
        yield _law_table(verdict, laws)
        yield paragraph(_about_laws(verdict, laws), "small faint")
    reasons = dict.fromkeys(law.reason for law in laws.values() if isinstance(law, Refusal))
    yield from (paragraph(f"No law for some of them: {reason}.", "faint") for reason in reasons)
    yield shown.row("rank-laws", "effective-dimension", "final-spectra", "width-law")


def _law_table(verdict: GroupVerdict, laws: Mapping[str, PowerLaw | Refusal]) -> str:
    saturation = {LOSS: verdict.spectral.saturation["val_loss"]} | {
        text: found
        for name, text in LAWS.items()
        if (found := verdict.spectral.saturation.get(name)) is not None
    }
    rows = [
        _law(text, law, saturation.get(text), digits=3 if text == LOSS else 2)
        for text, law in laws.items()
        if isinstance(law, PowerLaw)
    ]
    names = ["", "~ D^", "90 % interval", "a width left out", "R²", "lack of fit", "levels off"]
    return table(*without_empty(names, rows))


def _law(
    text: str, law: PowerLaw, levels_off: Saturation | Refusal | None, *, digits: int
) -> list[str]:
    return [
        text,
        f"{law.beta:.{digits}f}",
        bracketed(law.beta_interval, digits),
        "" if law.leave_one_out is None else interval(law.leave_one_out, digits),
        f"{law.r_squared:.2f}" if law.r_squared == law.r_squared else "",
        "" if law.lack_of_fit_p is None else f"p = {law.lack_of_fit_p:.2g}",
        _levels_off(levels_off),
    ]


def _levels_off(found: Saturation | Refusal | None) -> str:
    if found is None:
        return ""
    if isinstance(found, Refusal):
        return "not testable"
    if not found.saturates:
        return f"not shown, p = {found.p:.2g}"
    low, high = found.onset_interval
    return f"from D = {found.onset:.0f} [{low:.0f}, {high:.0f}], p = {found.p:.2g}"


def _about_laws(verdict: GroupVerdict, laws: Mapping[str, PowerLaw | Refusal]) -> str:
    """What the columns of the laws mean, what was left out, and where the intervals come from."""
    told = [
        "A width left out: least and largest exponent without any one width. Lack of fit: p of "
        "the test that widths scatter about the law no more than replicates do. Levels off: p of "
        "the test of the power law against one that ends, and where it ends; the spectral stop "
        "asks for more, that the growth is surely small."
    ]
    used = {
        text: f"D^{law.beta:.2f} {bracketed(law.beta_interval)}"
        for name, text in UTILISATION.items()
        if isinstance(law := verdict.spectral.utilisation[name], PowerLaw)
    }
    if used:
        shares = ", ".join(f"{text} ~ {exponent}" for text, exponent in used.items())
        told.append(f"The share of the width in use: {shares}.")
    methods: dict[str, list[str]] = {}
    for text, law in laws.items():
        if isinstance(law, PowerLaw):
            methods.setdefault(law.interval_method, []).append(text)
    sources = "; ".join(f"{', '.join(of)}: {method}" for method, of in methods.items())
    told.append(f"Intervals: {sources if len(methods) > 1 else next(iter(methods))}.")
    if verdict.spectral.excluded:
        counts = ", ".join(f"{count} {why}" for why, count in verdict.spectral.excluded.items())
        told.append(f"Of the cells, left out {counts}.")
    return " ".join(told)


def _layers(verdict: GroupVerdict, layers: LayerVerdict, shown: _Figures) -> Iterator[str]:
    yield "<h3>Layer by layer</h3>"
    yield paragraph(sentence(layers.sentence))
    advice = layers.advice
    if isinstance(advice, Refusal):
        yield shown.row("layer-ranks")
        return
    rows = [
        [
            str(grown.layer),
            f"{grown.elasticity.beta:.2f} {bracketed(grown.elasticity.beta_interval)}",
            f"{grown.relative.beta:+.2f} {bracketed(grown.relative_interval)}",
            grown.advice,
        ]
        for grown in advice.layers
    ]
    listed = table(["layer", "eDim ~ D^", "less that of all", "advice"], rows)
    yield shown.row("layer-ranks", "layer-growth")
    yield folded("Exponents by layer, with 90 % intervals", listed)
    found = layers.to_yaml()
    if found is not None:
        yield paragraph(
            "A list of widths with the same FFN parameters follows from it. It rests on an "
            "extrapolation that only a run can check: train it beside the uniform width, with "
            "these lines in place of the sweep file's match and width_multiplier."
        )
        yield f"<pre>{escape(found)}</pre>"


def _training(tuned: TunedTrials | None, shown: _Figures) -> Iterator[str]:
    curves = shown.row("training-curves")
    if curves:
        yield "<h3>Training</h3>" + curves
    if tuned is None or not tuned.widths:
        return
    rows = [
        [
            multiple(width.width_multiplier),
            str(width.D),
            str(width.d_model),
            f"{width.learning_rate:.3g}",
            f"the {width.edge} of the grid" if width.edge else "",
        ]
        for width in tuned.widths
    ]
    yield "<h3>Learning rates</h3>" + table(["width", "D", "d_model", "tuned to", ""], rows)
