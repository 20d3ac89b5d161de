"""The report: one HTML file with everything inside, the verdict first, then why.

No script, no link to anything outside. Figures are inline SVG whose ink follows the page, light
or dark. Every text that comes from a sweep is escaped.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

import numpy as np
import yaml

from analysis.equal_budget import BUDGETS
from analysis.figure_style import BROKEN, EDIM, FAINT, HARD, INK, RULE, SOFT
from analysis.laws import PowerLaw, Refusal, is_shown
from analysis.recommend import GroupVerdict, Recommendation
from analysis.summary import headline, shared_caveats
from analysis.table import SweepTables
from analysis.wording import bracketed, duration, group_label, large, multiple, plural

CAPTIONS = {
    "loss-optimum": "Final held-out loss of the completed runs, the fitted quadratic in "
    "ln(D / d_model), and the 90 % interval of its optimum (shaded) where one is established.",
    "rank-laws": "Median over the last snapshots, then over layers. Lines are least squares in the "
    "logarithms; bands are 90 % intervals of the law.",
    "training-curves": "Held-out loss while training, a line a run, labelled with D / d_model. "
    "Dashed: not completed.",
    "final-spectra": "Eigenvalues of the activations' covariance at the last snapshot, normalised, "
    "geometric mean over layers.",
    "effective-dimension": "Effective dimension, and its growth between neighbouring widths: where "
    "it stays below the dashed line, more width adds little.",
}

QUANTITIES = {
    "soft_rank": "soft rank",
    "hard_rank": "hard rank",
    "edim": "eDim",
    "asymmetry": "soft - hard",
}


def build_report(
    tables: SweepTables, recommendation: Recommendation, svgs: Mapping[str, bytes]
) -> str:
    """The HTML. `svgs` are the figures by key (`figures/SLUG-NAME.svg`)."""
    common = shared_caveats(recommendation)
    body = [
        *(_verdict(verdict) for verdict in recommendation.groups),
        *_overview(recommendation, common, svgs),
        *(_group(verdict, common, svgs) for verdict in recommendation.groups),
        _trials(tables),
        _reproduce(tables),
    ]
    template = Template(files("analysis").joinpath("report.html").read_text("utf-8"))
    return template.substitute(
        title=escape(f"{tables.name}: how wide should the feed-forward network be?"),
        headline=escape(headline(tables)),
        body="\n".join(body),
    )


# --- sections ------------------------------------------------------------------------------


def _verdict(verdict: GroupVerdict) -> str:
    width = verdict.width_multiplier
    short = "no recommendation" if width is None else multiple(width)
    sentence = verdict.sentence.removeprefix("no recommendation: ")
    return (
        f'<div class="verdict {verdict.verdict}"><p>{escape(verdict.label)}: '
        f'<span class="width">{short}</span></p><p>{escape(_sentence(sentence))} '
        f'<a href="#{verdict.slug}">Why</a></p></div>'
    )


def _overview(
    recommendation: Recommendation, common: Sequence[str], svgs: Mapping[str, bytes]
) -> Iterable[str]:
    if common:
        yield "<h2>Before acting on it</h2>" + _list(common)
    yield "<h2>Rank laws</h2>"
    yield (
        "<p>How many directions a feed-forward layer of width D uses: rank ~ D^exponent, with "
        "d_model, depth and training fixed. Intervals are at 90 %. A gap between the exponents "
        "whose interval includes 0 is reported as not shown.</p>"
    )
    rows, notes = [], []
    for verdict in recommendation.groups:
        laws = verdict.spectral.laws
        rows.append([verdict.label, *(_law(laws[name], name) for name in QUANTITIES)])
        left_out = verdict.spectral.excluded
        if left_out:
            counts = ", ".join(f"{count} {why}" for why, count in left_out.items())
            notes.append(f"{verdict.label}: left out {counts}.")
    yield _table(["group", *QUANTITIES.values()], rows)
    methods = sorted(
        {
            law.interval_method
            for verdict in recommendation.groups
            for law in verdict.spectral.laws.values()
            if isinstance(law, PowerLaw)
        }
    )
    notes += [f"Intervals: {'; '.join(methods)}."] if methods else []
    yield f'<p class="small faint">{escape(" ".join(notes))}</p>'
    if "figures/exponents.svg" in svgs:
        figure = _figure("exponents", svgs["figures/exponents.svg"], "")
        yield f'<div class="figures">{figure}</div>'


def _group(verdict: GroupVerdict, common: Sequence[str], svgs: Mapping[str, bytes]) -> str:
    parts = [
        f'<section id="{verdict.slug}"><h2>{escape(verdict.label)}</h2>',
        f"<p>{escape(_sentence(verdict.sentence))}</p>",
    ]
    if verdict.width_multiplier is not None:
        parts.append(f'<p class="faint">Rule: {escape(_sentence(verdict.rule, False))}</p>')
    agreement = {
        True: "The spectral stop agrees: ",
        False: "The spectral stop does not agree: ",
        None: "The spectral stop cannot be compared: ",
    }
    parts.append(f"<p>{agreement[verdict.agrees]}{escape(verdict.spectral.stop.sentence)}.</p>")
    drawn = [
        _figure(f"{verdict.slug}-{name}", svgs[key], caption)
        for name, caption in CAPTIONS.items()
        if (key := f"figures/{verdict.slug}-{name}.svg") in svgs
    ]
    parts.append(f'<div class="figures">{"".join(drawn)}</div>')
    parts.append(_widths(verdict))
    own = [caveat for caveat in verdict.caveats if caveat not in common]
    if own:
        parts.append("<h3>Caveats of this group</h3>" + _list(own))
    if verdict.run_next:
        parts.append(
            "<h3>What to run next</h3><p>Add these values to those of the sweep file: what is "
            "finished is not trained again.</p>"
        )
        parts += [
            f"<p>{escape(_sentence(cells.why))} "
            f'<span class="faint">{escape(_sentence(cells.cost))}</span></p>'
            f"<pre>{escape(cells.to_yaml())}</pre>"
            for cells in verdict.run_next
        ]
    return "\n".join([*parts, "</section>"])


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
        + _table(names, rows, chosen)
        + '<p class="small faint">Excess: nats per token over the optimum of the fitted curve, '
        "with its one-sided upper bound. Equivalent: cannot be told from the chosen width.</p>"
    )


def _trials(tables: SweepTables) -> str:
    columns = {
        "state": "outcome",
        "D": "D",
        "d_model": "d_model",
        "replicate": "seed",
        "parameters_total": "parameters",
        "tokens": "tokens",
        "val_loss": "loss",
        "soft_rank": "soft",
        "hard_rank": "hard",
        "edim": "eDim",
        "seconds_total": "time",
    }
    rows = []
    for _, trial in tables.trials.iterrows():
        group = group_label({axis: trial[axis] for axis in tables.group_axes})
        held = "+".join(trial["holds"])
        cells = [_cell(name, trial[name]) for name in columns]
        rows.append([group, multiple(trial["width_multiplier"]), held, *cells, str(trial["id"])])
    broken = tables.trials[tables.trials["reason"].notna()]
    reasons = [
        f"{trial['id']} {trial['state']}: {trial['reason']}" for _, trial in broken.iterrows()
    ]
    return (
        "<h2>Trials</h2><details><summary>"
        + plural(len(rows), "trial")
        + "</summary>"
        + _table(["group", "width", "equal", *columns.values(), "id"], rows)
        + (_list(reasons) if reasons else "")
        + "</details>"
    )


def _reproduce(tables: SweepTables) -> str:
    resolved = tables.config["resolved"]
    facts = {
        "sweep": f"{tables.name}, in {tables.url}",
        "corpus fingerprint": resolved.get("corpus_fingerprint"),
        "tokenizer hash": resolved.get("tokenizer_hash"),
        "vocabulary": resolved.get("vocab_size"),
        "semantics version": resolved.get("semantics_version"),
    }
    for versions in tables.versions.values():
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    layouts = sorted(set(tables.trials["layout"].dropna()))
    if layouts:
        described = (
            ", ".join(f"{key} {value}" for key, value in json.loads(layout).items())
            for layout in layouts
        )
        facts["layout"] = "; ".join(described)
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
        if value is not None
    )
    written = {key: value for key, value in tables.config.items() if key != "resolved"}
    lost = [
        f"{cell.get('axes')}: {cell.get('why')}"
        for cell in resolved.get("dropped") or []
        if isinstance(cell, Mapping)
    ]
    dropped = (
        f"<details><summary>{plural(len(lost), 'cell')} of the grid dropped</summary>"
        f"{_list(lost)}</details>"
        if lost
        else ""
    )
    sweep_file = escape(yaml.safe_dump(written, sort_keys=False, default_flow_style=None))
    return (
        f"<h2>How to reproduce it</h2><dl>{items}</dl>{dropped}"
        "<p>Save the sweep file below and run <code>widthlab run SWEEP.yaml</code>; "
        "<code>widthlab analyze DIR</code> rebuilds this report from the trials.</p>"
        f"<details><summary>Sweep file</summary><pre>{sweep_file}</pre></details>"
    )


# --- pieces --------------------------------------------------------------------------------


def _law(law: PowerLaw | Refusal, name: str) -> str:
    if isinstance(law, Refusal):
        return "no law"
    shown = "" if name != "asymmetry" else (" shown" if is_shown(law) else " not shown")
    return f"{law.beta:.2f} {bracketed(law.beta_interval)}{shown}"


def _cell(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    number = float(value) if isinstance(value, int | float | np.number) else float("nan")
    if not np.isfinite(number):
        return ""
    if name in ("parameters_total", "tokens"):
        return large(number)
    if name == "seconds_total":
        return duration(number)
    if name in ("D", "d_model", "replicate"):
        return f"{number:g}"
    return f"{number:.4f}" if name == "val_loss" else f"{number:.1f}"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        ('<tr class="chosen">' if i == chosen else "<tr>")
        + "".join(f"<td{_tone(cell)}>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _tone(cell: str) -> str:
    broken = cell in ("diverged", "collapsed", "failed", "not admissible")
    return ' class="bad"' if broken else ""


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _sentence(text: str, capital: bool = True) -> str:
    start = text[:1].upper() if capital else text[:1]
    return start + text[1:] + ("" if text.endswith(".") else ".")


def _figure(name: str, svg: bytes, caption: str) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{_inline(name, svg)}{below}</figure>"


def _inline(name: str, svg: bytes) -> str:
    """The <svg> element alone, in the page's colours, its ids made its own."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for colour, own in (
        (INK, "currentColor"),
        (FAINT, "var(--faint)"),
        (RULE, "var(--rule)"),
        (SOFT, "var(--soft)"),
        (HARD, "var(--hard)"),
        (EDIM, "var(--edim)"),
        (BROKEN, "var(--bad)"),
        ("fill: #ffffff", "fill: none"),
    ):
        text = text.replace(colour, own)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
