"""The section of one group: the evidence for its verdict, the loss first, then the spectra."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from analysis.laws.layer_kinds import LayerSpread
from analysis.laws.layers import LayerAdvice
from analysis.laws.power_law import PowerLaw
from analysis.laws.saturation import Saturation
from analysis.laws.spectral import ASYMMETRY_NAME, RANK_NAMES
from analysis.refusal import Refusal
from analysis.report.captions import captions_of
from analysis.report.page import (
    Table,
    drawn_figure,
    plain_table,
    render,
    sentence,
    without_empty,
)
from analysis.verdict.budgets import CURRENCIES
from analysis.verdict.equal_budget import BUDGETS
from analysis.verdict.evidence import widths_of
from analysis.verdict.fixed_rates import NO_VERDICT, FixedRate
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.layer_verdict import LayerVerdict
from analysis.verdict.loss_over_width import LossCurve
from analysis.verdict.supply import SELECTION
from analysis.verdict.tuned_rate import TunedTrials
from analysis.wording import bracketed, interval, multiple, plural
from trialstore.records import FIRST_SEMANTICS

LAWS = {**RANK_NAMES, "asymmetry": ASYMMETRY_NAME}
LOSS = "loss"
NO_FREE_CELLS = (
    "Rank laws need cells at fixed d_model, and the sweep has none: add `none` to `match` in the "
    "sweep file"
)
UTILISATION = {
    "soft_utilisation": "soft rank / D",
    "hard_utilisation_debiased": "hard rank / D",
    "hard_utilisation": "raw hard rank / D",
}
AGREEMENT = {
    True: "The spectra agree with the recommended width: ",
    False: "The spectra disagree with the recommended width: ",
    None: "The spectra neither support nor contradict a width: ",
}


def group_section(
    verdict: GroupVerdict, layers: LayerVerdict, common: Sequence[str], svgs: Mapping[str, bytes]
) -> Markup:
    """Return the section of one group, without the `common` caveats, which the front shows."""
    drawn = {
        name: figure
        for name, caption in captions_of(verdict).items()
        if (figure := drawn_figure(svgs, f"{verdict.slug}-{name}", caption))
    }
    laws: dict[str, PowerLaw | Refusal] = {
        **{text: verdict.spectral.laws[name] for name, text in LAWS.items()},
        LOSS: verdict.spectral.width_law,
    }
    fitted = {text: law for text, law in laws.items() if isinstance(law, PowerLaw)}
    # A run continues trials of its own semantics version only, and the first is never its own.
    old = (verdict.trials["semantics_version"] == FIRST_SEMANTICS).any()
    return render(
        "group.html",
        verdict=verdict,
        drawn=drawn,
        widths=_widths(verdict),
        budget="" if verdict.deciding is None else BUDGETS[verdict.deciding.matching][1],
        runs=sorted({width["runs"] for width in verdict.alternatives}),
        plural=plural,
        best_losses=None if verdict.on_best is None else _best_losses(verdict),
        selection=SELECTION,
        budgets=_budgets(verdict),
        caveats=[sentence(caveat) for caveat in verdict.caveats if caveat not in common],
        anew=FIRST_SEMANTICS if old else None,
        agreement=AGREEMENT[verdict.agrees],
        laws=_law_table(verdict, layers, fitted) if fitted else None,
        about_laws=_about_laws(verdict, fitted) if fitted else "",
        missing=_missing(verdict, laws),
        layers=layers,
        growth=_growth(layers.advice),
        rates=_rates(verdict.tuned),
        at_rates=_at_rates(verdict.at_rates),
        no_verdict=NO_VERDICT,
    )


def _widths(verdict: GroupVerdict) -> Table | None:
    """The widths of the deciding budget, with the loss that each costs."""
    deciding = verdict.deciding
    if deciding is None or not isinstance(deciding.optimum, LossCurve):
        return None
    digits = decimals(deciding.optimum.tolerance)
    runs, moved = {width["runs"] for width in verdict.alternatives}, deciding.optimum.slope.applied
    rows, chosen = [], None
    for i, width in enumerate(verdict.alternatives):
        note = "equivalent" if width["equivalent"] else ""
        if width["width_multiplier"] == verdict.width_multiplier:
            chosen, note = i, "chosen"
        elif verdict.plateau is not None:
            low, high = verdict.plateau
            note = "will do" if low <= width["width_multiplier"] <= high else ""
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
                f"{width['val_loss']:.{digits}f}",
                f"{width['val_loss_at_budget']:.{digits}f}" if moved else "",
                f"{width['excess_nats']:.{digits}f}",
                f"{width['excess_upper_nats']:.{digits}f}",
                note,
            ]
        )
    names, rows = without_empty(
        ["width", "D", "d_model", "runs", "loss", "at one budget", "excess", "at most", ""], rows
    )
    return plain_table(names, rows, chosen)


def _best_losses(verdict: GroupVerdict) -> Table | None:
    """Final and best losses per width of the deciding budget."""
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
    names = ["width", "D", "final loss", "best loss", "excess of best loss", "at most"]
    return plain_table(names, rows) if rows else None


def decimals(tolerance: float) -> int:
    """Return the decimals for a loss in nats: one more than `tolerance` needs, at least 2."""
    return max(2, 1 - math.floor(math.log10(tolerance)))


def _budgets(verdict: GroupVerdict) -> list[str]:
    """The optimum at each other budget held equal; budgets with the same answer share a line."""
    alike: dict[str, list[str]] = {}
    for found in verdict.at_budgets:
        if verdict.deciding is None or found.currency != verdict.deciding.matching:
            answer = found.sentence.partition(": ")[2]
            alike.setdefault(answer, []).append(CURRENCIES[found.currency][1])
    return [
        f"At equal {', '.join(names)}: {sentence(said, capital=False)}"
        for said, names in alike.items()
    ]


def _missing(verdict: GroupVerdict, laws: Mapping[str, PowerLaw | Refusal]) -> list[str]:
    """Why there is no law for some quantities."""
    if verdict.spectral.used.empty and verdict.spectral.left_out.empty:
        return [NO_FREE_CELLS]
    reasons = dict.fromkeys(law.reason for law in laws.values() if isinstance(law, Refusal))
    return [f"No law for some quantities: {reason}" for reason in reasons]


def _law_table(
    verdict: GroupVerdict, layers: LayerVerdict, fitted: Mapping[str, PowerLaw]
) -> Table:
    saturation = {LOSS: verdict.spectral.saturation["val_loss"]} | {
        text: found
        for name, text in LAWS.items()
        if (found := verdict.spectral.saturation.get(name)) is not None
    }
    rows = [
        _law(text, law, saturation.get(text), of_layers, digits=3 if text == LOSS else 2)
        for text, law in fitted.items()
        for of_layers in [_single_layers(layers, text)]
    ]
    names = ["", "~ D^", "90 % interval", "single layers", "leave one out", "R²", "lack of fit"]
    names.append("levels off")
    return plain_table(*without_empty(names, rows))


def _single_layers(layers: LayerVerdict, text: str) -> str:
    """The range of the layers' own exponents; empty for a quantity without them."""
    found = next((of for name, of in layers.spread.items() if LAWS[name] == text), None)
    return interval(found.range) if isinstance(found, LayerSpread) else ""


def _law(
    text: str,
    law: PowerLaw,
    levels_off: Saturation | Refusal | None,
    single_layers: str,
    *,
    digits: int,
) -> list[str]:
    return [
        text,
        f"{law.beta:.{digits}f}",
        bracketed(law.beta_interval, digits),
        single_layers,
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
        return f"no evidence, p = {found.p:.2g}"
    low, high = found.onset_interval
    return f"from D = {found.onset:.0f} [{low:.0f}, {high:.0f}], p = {found.p:.2g}"


def _about_laws(verdict: GroupVerdict, fitted: Mapping[str, PowerLaw]) -> str:
    """The share of the width in use, the source of the intervals, and the cells left out."""
    told = []
    used = {
        text: f"D^{law.beta:.2f} {bracketed(law.beta_interval)}"
        for name, text in UTILISATION.items()
        if isinstance(law := verdict.spectral.utilisation[name], PowerLaw)
    }
    if used:
        shares = ", ".join(f"{text} ~ {exponent}" for text, exponent in used.items())
        told.append(f"Share of the width in use: {shares}.")
    if verdict.layers.spread_sentence:
        told.append(f"Exponents of single layers: {verdict.layers.spread_sentence}.")
    methods: dict[str, list[str]] = {}
    for text, law in fitted.items():
        methods.setdefault(law.interval_method, []).append(text)
    sources = "; ".join(f"{', '.join(of)}: {method}" for method, of in methods.items())
    told.append(f"Intervals: {sources if len(methods) > 1 else next(iter(methods))}.")
    if verdict.spectral.excluded:
        counts = ", ".join(f"{count} {why}" for why, count in verdict.spectral.excluded.items())
        told.append(f"Cells left out: {counts}.")
    return " ".join(told)


def _growth(advice: LayerAdvice | Refusal) -> Table | None:
    if isinstance(advice, Refusal):
        return None
    rows = [
        [
            str(grown.layer),
            f"{grown.elasticity.beta:.2f} {bracketed(grown.elasticity.beta_interval)}",
            f"{grown.relative.beta:+.2f} {bracketed(grown.relative_interval)}",
            grown.advice,
        ]
        for grown in advice.layers
    ]
    return plain_table(["layer", "eDim ~ D^", "minus all layers", "advice"], rows)


def _rates(tuned: TunedTrials | None) -> Table | None:
    if tuned is None or not tuned.widths:
        return None
    rows = [
        [
            multiple(width.width_multiplier),
            str(width.D),
            str(width.d_model),
            f"{width.learning_rate:.3g}",
            f"{width.edge} of the grid" if width.edge else "",
        ]
        for width in tuned.widths
    ]
    return plain_table(["width", "D", "d_model", "learning rate", ""], rows)


def _at_rates(at_rates: Sequence[FixedRate]) -> Table | None:
    """The optimum and the exponents of the ranks at each learning rate of the grid."""
    if not at_rates:
        return None
    rows = []
    for at in at_rates:
        curve = at.curve
        exponents = [
            f"{law.beta:.2f} {bracketed(law.beta_interval)}" if isinstance(law, PowerLaw) else ""
            for law in (at.spectral.laws[name] for name in ("soft_rank", "hard_rank"))
        ]
        rows.append(
            [
                f"{at.learning_rate:.3g}",
                "none" if curve is None else f"{curve.optimum:.2f}x",
                "" if curve is None else bracketed(curve.interval),
                *exponents,
                at.reason if curve is None else "",
            ]
        )
    names = ["learning rate", "optimum", "90 % interval", "soft rank ~ D^", "hard rank ~ D^", ""]
    return plain_table(*without_empty(names, rows))
