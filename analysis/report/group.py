"""One group's section of the report: why the verdict is what it is, as one would argue it."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from analysis.laws.power_law import PowerLaw, Refusal
from analysis.laws.saturation import Saturation, Untestable
from analysis.report.page import bullets, figure, figures, paragraph, sentence, table, words
from analysis.report.tables import all_laws
from analysis.verdict.equal_budget import BUDGETS
from analysis.verdict.layer_verdict import LayerVerdict, representative
from analysis.verdict.recommend import GroupVerdict
from analysis.verdict.tuned_rate import TunedTrials
from analysis.wording import bracketed, interval, multiple

LAWS = {
    "soft_rank": "soft rank",
    "hard_rank": "hard rank",
    "edim": "eDim",
    "asymmetry": "soft / hard rank",
    "soft_utilisation": "soft rank / D",
    "hard_utilisation": "hard rank / D",
    "val_loss": "loss",
}
AGREEMENT = {
    True: "The spectral stop agrees: ",
    False: "The spectral stop does not agree: ",
    None: "The spectral stop cannot be compared: ",
}
CAPTIONS = {
    "loss-optimum": "Final held-out loss of the completed runs and the mean of the fitted curves. "
    "Blue: 90 % interval of the loss less that at the width where the band closes. Green, where an "
    "optimum is established: its 90 % interval.",
    "loss-at-budgets": "What is held equal decides which width looks best. Points are width means, "
    "diamonds optima that are established.",
    "rank-laws": "Lines are least squares in the logarithms, bands 90 % intervals of the law. "
    "Dashed, where the test finds one: the width from which on a rank no longer grows.",
    "effective-dimension": "Effective dimension, and its growth between neighbouring widths: where "
    "it stays below the dashed line, more width adds little.",
    "final-spectra": "Eigenvalues of the activations' covariance at the last snapshot, normalised, "
    "geometric mean over layers.",
    "width-law": "What a wider FFN buys when nothing is held equal: parameters and cost grow with "
    "it, so this is no reason to choose a width.",
    "layer-growth": "Right of 0 a layer's eDim grows faster with D than that of the others. "
    "Coloured: known to, at 90 % for all layers together.",
    "training-curves": "Held-out loss while training, a line a run, labelled with D / d_model. "
    "Dashed: not completed.",
}


def group_section(
    verdict: GroupVerdict, layers: LayerVerdict, common: Sequence[str], svgs: Mapping[str, bytes]
) -> str:
    """Everything about one group; `common` caveats are said elsewhere."""
    shown = _Figures(verdict.slug, svgs)
    parts = [
        f'<section id="{verdict.slug}"><h2>{escape(verdict.label)}</h2>',
        paragraph(sentence(verdict.sentence)),
        *_loss(verdict, shown),
        *_ranks(verdict, shown),
        *_layers(verdict, layers, shown),
        *_training(verdict.tuned, shown),
        *_next(verdict, common),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


class _Figures:
    """The figures of one group as HTML; those that were not drawn are nothing."""

    def __init__(self, slug: str, svgs: Mapping[str, bytes]) -> None:
        self._slug, self._svgs = slug, svgs

    def row(self, *names: str, **captions: str) -> str:
        """Figures beside each other; `captions` by name with underscores, where not the usual."""
        texts = CAPTIONS | {name.replace("_", "-"): text for name, text in captions.items()}
        drawn = []
        for name in names:
            svg = self._svgs.get(f"figures/{self._slug}-{name}.svg")
            if svg is not None:
                drawn.append(figure(f"{self._slug}-{name}", svg, texts[name]))
        return figures(drawn)


def _loss(verdict: GroupVerdict, shown: _Figures) -> Iterator[str]:
    if verdict.width_multiplier is not None:
        yield paragraph(f"Rule: {sentence(verdict.rule, capital=False)}", "faint")
    yield shown.row("loss-optimum", "loss-at-budgets")
    yield _widths(verdict)
    if verdict.choices:
        yield "<h3>Other choices</h3>"
        yield bullets(sentence(choice.sentence) for choice in verdict.choices)
    if verdict.at_budgets:
        yield "<h3>The loss at other budgets</h3>"
        yield bullets(sentence(found.sentence) for found in verdict.at_budgets)


def _widths(verdict: GroupVerdict) -> str:
    deciding = verdict.deciding
    if deciding is None or not verdict.alternatives:
        return ""
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
                f"{width['val_loss']:.4f}",
                str(width["runs"]),
                f"{width['excess_nats']:.4f}",
                f"{width['excess_upper_nats']:.4f}",
                note,
            ]
        )
    names = ["width", "D", "d_model", "loss", "runs", "excess", "upper 90 %", ""]
    return (
        f"<h3>Widths at equal {escape(BUDGETS[deciding.hold][1])}</h3>"
        + table(names, rows, chosen=chosen)
        + paragraph(
            "Excess: nats per token over the optimum of the fitted curve, with its one-sided "
            "upper bound. Equivalent: cannot be told from the chosen width.",
            "small faint",
        )
    )


def _ranks(verdict: GroupVerdict, shown: _Figures) -> Iterator[str]:
    yield "<h3>What the layers use</h3>"
    yield paragraph(
        AGREEMENT[verdict.agrees] + sentence(verdict.spectral.stop.sentence, capital=False)
    )
    laws = all_laws(verdict)
    fitted = {name: law for name, law in laws.items() if isinstance(law, PowerLaw)}
    if fitted:
        names = [
            "~ D^exponent",
            "exponent",
            "90 % interval",
            "without one width",
            "R2",
            "lack of fit",
            "plateau",
        ]
        yield table(
            names,
            [
                _law(LAWS[name], law, verdict.spectral.saturation.get(name))
                for name, law in fitted.items()
            ],
        )
    reasons = dict.fromkeys(law.reason for law in laws.values() if isinstance(law, Refusal))
    yield from (paragraph(f"No law for some of them: {reason}.", "faint") for reason in reasons)
    if fitted:
        yield paragraph(
            "Without one width: least and largest exponent with a width left out. Lack of fit: p "
            "of the test that scatter about the law is no more than that between replicates. "
            "Plateau: p of the test of the power law against one that ends.",
            "small faint",
        )
    yield shown.row("rank-laws", "effective-dimension", "final-spectra", "width-law")


def _law(name: str, law: PowerLaw, plateau: Saturation | Untestable | None) -> list[str]:
    return [
        name,
        f"{law.beta:.3f}",
        bracketed(law.beta_interval, 3),
        "" if law.leave_one_out is None else interval(law.leave_one_out, 3),
        f"{law.r_squared:.3f}" if law.r_squared == law.r_squared else "",
        "" if law.lack_of_fit_p is None else f"p = {law.lack_of_fit_p:.2g}",
        _plateau(plateau),
    ]


def _plateau(found: Saturation | Untestable | None) -> str:
    if found is None:
        return ""
    if isinstance(found, Untestable):
        return "not testable"
    low, high = found.onset_interval
    where = f", from D = {found.onset:.0f} [{low:.0f}, {high:.0f}]" if found.saturates else ""
    return f"{'found' if found.saturates else 'none found'}, p = {found.p:.2g}{where}"


def _layers(verdict: GroupVerdict, layers: LayerVerdict, shown: _Figures) -> Iterator[str]:
    yield "<h3>Layer by layer</h3>"
    yield paragraph(sentence(layers.sentence))
    trial = representative(verdict)
    caption = ""
    if trial is not None:
        caption = (
            f"Ranks by layer and step of trial {trial['id']}: {multiple(trial['width_multiplier'])}"
            f", D = {trial['D']:.0f}, seed {trial['replicate']}. Those of other widths are files "
            "in figures/layer-ranks."
        )
    yield shown.row("layer-ranks", "layer-growth", layer_ranks=caption)
    advice = layers.advice
    if isinstance(advice, Refusal):
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
    yield table(["layer", "d ln eDim / d ln D", "less that of all", "advice"], rows)
    found = layers.to_yaml()
    if found is not None:
        yield paragraph(
            "A list of widths with the same FFN parameters follows from it. It rests on an "
            "extrapolation that only a run can check: train it beside the uniform width, with "
            "these lines in place of the sweep file's hold and width_multiplier."
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


def _next(verdict: GroupVerdict, common: Sequence[str]) -> Iterator[str]:
    own = [caveat for caveat in verdict.caveats if caveat not in common]
    if own:
        yield "<h3>Caveats of this group</h3>" + bullets(own)
    if not verdict.run_next:
        return
    yield "<h3>What to run next</h3>"
    yield paragraph(
        "Add these values to those of the sweep file: what is finished is not trained again."
    )
    for cells in verdict.run_next:
        yield (
            f"<p>{words(sentence(cells.why))} "
            f'<span class="faint">{escape(sentence(cells.cost))}</span></p>'
            f"<pre>{escape(cells.to_yaml())}</pre>"
        )
