"""The first screen of the report: how wide, how sure, why, and what to run next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape

from analysis.report.page import bullets, figure, figures, paragraph, sentence, table, words
from analysis.verdict.group_verdict import GroupVerdict, Recommendation
from analysis.verdict.next_cells import NextCells
from analysis.verdict.transfer import Transfer
from analysis.wording import interval, large, multiple, plural

#: Where the caveats of all groups are.
CAVEATS = "caveats"

REFUSED = "no recommendation: "
OPTIMA = (
    "Bar: 90 % interval of the best width; dot: its estimate; ring: the width to use; ticks: the "
    "widths measured. Dashed: no optimum is established; an arrow where it may lie beyond the grid."
)


def front(
    recommendation: Recommendation, common: Sequence[str], svgs: Mapping[str, bytes]
) -> Iterator[str]:
    """Verdicts, what they say about the target, and the `common` caveats."""
    yield f'<div class="cards">{"".join(_cards(recommendation, common))}</div>'
    yield from (_transfer(found) for found in recommendation.transfers)
    optima = svgs.get("figures/optima.svg")
    drawn = "" if optima is None else figure("optima", optima, OPTIMA)
    told = f'<h3 id="{CAVEATS}">Before acting on it</h3>{bullets(common)}' if common else ""
    yield figures([drawn, f"<div>{told}</div>"]) if drawn else told


def _cards(recommendation: Recommendation, common: Sequence[str]) -> Iterator[str]:
    """A card a verdict; groups that are refused for the same reason share one."""
    alike: dict[str, list[GroupVerdict]] = {}
    for verdict in recommendation.groups:
        own = verdict.slug if verdict.width_multiplier is not None else verdict.sentence
        alike.setdefault(own, []).append(verdict)
    for verdicts in alike.values():
        yield _card(verdicts, common)


def _card(verdicts: Sequence[GroupVerdict], common: Sequence[str]) -> str:
    first = verdicts[0]
    width = first.width_multiplier
    labels = "<br>".join(
        f'<a href="#{verdict.slug}">{escape(verdict.label)}</a>' for verdict in verdicts
    )
    shown = "no recommendation" if width is None else multiple(width)
    parts = [
        f'<p class="label">{labels}</p><p class="width">{shown}</p>',
        paragraph(sentence(first.sentence.removeprefix(REFUSED))),
        "" if width is None else _line("Why", first.rule),
        *(_best_losses(verdict) for verdict in verdicts),
        _spectra(first),
        *_next(verdicts, common),
    ]
    return f'<div class="verdict {first.verdict}">{"".join(parts)}</div>'


def _best_losses(verdict: GroupVerdict) -> str:
    """The other verdict, where runs end above their best loss."""
    found = verdict.on_best
    if found is None:
        return ""
    return _line("On best losses", found.sentence, f"{verdict.slug}-best-losses")


def _spectra(verdict: GroupVerdict) -> str:
    if verdict.agrees is None:
        return ""
    said = ":".join(verdict.spectral_sentence.split(":")[:2])  # without the exponents
    return _line("Spectra", said, f"{verdict.slug}-ranks")


def _next(verdicts: Sequence[GroupVerdict], common: Sequence[str]) -> Iterator[str]:
    """What to run next, in all of these groups together."""
    asked: dict[str, NextCells] = {}
    for verdict in verdicts:
        for cells in verdict.run_next:
            known = asked.get(cells.why)
            asked[cells.why] = cells if known is None else _together(known, cells)
    for number, cells in enumerate(asked.values()):
        yield _line(
            "and" if number else "Run next",
            f"{cells.why} ({cells.cost})",
            f"{verdicts[0].slug}-next",
        )
    if asked:
        return
    count = len(verdicts[0].caveats)
    place = f"{verdicts[0].slug}-{CAVEATS}"
    if all(caveat in common for caveat in verdicts[0].caveats):
        place = CAVEATS
    text = "no cell is missing for this verdict"
    if count:
        yield _line("Next", f"{text}; before acting on it read {plural(count, 'caveat')}", place)
    else:
        yield _line("Next", text)


def _together(one: NextCells, other: NextCells) -> NextCells:
    return replace(
        one,
        trials=one.trials + other.trials,
        flops=one.flops + other.flops,
        seconds=one.seconds + other.seconds,
    )


def _line(name: str, text: str, place: str = "") -> str:
    """A line of a card, its name leading to where more is said."""
    shown = f'<a href="#{place}">{name}</a>' if place else name
    return f"<p><b>{shown}:</b> {words(sentence(text, capital=False))}</p>"


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
        f'<div class="verdict {kind}"><p class="label">{escape(found.label)}, at the target size'
        f"</p>{paragraph(sentence(found.sentence))}{table(names, sizes) if sizes else ''}</div>"
    )
