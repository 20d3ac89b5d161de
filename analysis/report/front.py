"""The first screen of the report: the verdicts, their reasons and caveats, and the next runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from analysis.report.page import Table, drawn_figure, plain_table, render
from analysis.verdict.group_verdict import GroupVerdict, Recommendation
from analysis.verdict.next_cells import NextCells
from analysis.verdict.transfer import Transfer
from analysis.wording import interval, large, plural

#: Anchor of the caveats that all groups share.
CAVEATS = "caveats"

OPTIMA = (
    "Bar: 90 % interval of the best width. Dot: its estimate. Ring: recommended width. Ticks: "
    "measured widths. Dashed: no optimum established; an arrow: it may lie beyond the grid."
)


@dataclass(frozen=True)
class Line:
    """A line of a card; its name links to the section `place`, if one is given."""

    name: str
    text: str
    place: str = ""


def front(
    recommendation: Recommendation, common: Sequence[str], svgs: Mapping[str, bytes]
) -> Markup:
    """Return one card per verdict, the widths at the target size, and the `common` caveats."""
    # Groups without a recommendation for the same reason share a card.
    alike: dict[str, list[GroupVerdict]] = {}
    for verdict in recommendation.groups:
        own = verdict.sentence if verdict.verdict == "refused" else verdict.slug
        alike.setdefault(own, []).append(verdict)
    return render(
        "front.html",
        cards=[(verdicts, list(_lines(verdicts, common))) for verdicts in alike.values()],
        transfers=[(found, _sizes(found)) for found in recommendation.transfers],
        optima=drawn_figure(svgs, "optima", OPTIMA),
        common=common,
    )


def _lines(verdicts: Sequence[GroupVerdict], common: Sequence[str]) -> Iterator[Line]:
    first = verdicts[0]
    if first.verdict == "recommended":
        yield Line("Why", first.rule)
    if first.verdict == "plateau":
        yield Line("No single width", first.rule)
    for verdict in verdicts:
        if verdict.on_best is not None:
            yield Line("By best loss", verdict.on_best.sentence, f"{verdict.slug}-best-losses")
    if first.agrees is not None:
        agree = "agree" if first.agrees else "disagree"
        stop = first.spectral.stop.sentence.partition(":")[0]
        yield Line("Spectra", f"{agree} with this width ({stop})", f"{first.slug}-ranks")
    yield from _next(verdicts, common)


def _next(verdicts: Sequence[GroupVerdict], common: Sequence[str]) -> Iterator[Line]:
    """What to run next, summed over the groups of one card."""
    asked: dict[str, NextCells] = {}
    for verdict in verdicts:
        for cells in verdict.run_next:
            known = asked.get(cells.why)
            asked[cells.why] = cells if known is None else _together(known, cells)
    for number, cells in enumerate(asked.values()):
        name = "Also" if number else "Run next"
        yield Line(name, f"{cells.why} ({cells.cost})", f"{verdicts[0].slug}-next")
    if asked:
        return
    text = "this verdict needs no further runs"
    caveats = verdicts[0].caveats
    if caveats:
        own = any(caveat not in common for caveat in caveats)
        place = f"{verdicts[0].slug}-{CAVEATS}" if own else CAVEATS
        yield Line(
            "Next", f"{text}; read its {plural(len(caveats), 'caveat')} before acting on it", place
        )
    else:
        yield Line("Next", text)


def _together(one: NextCells, other: NextCells) -> NextCells:
    if one.grid == other.grid and one.match == other.match:
        return one  # two groups ask for the same cells
    return replace(
        one,
        trials=one.trials + other.trials,
        flops=one.flops + other.flops,
        seconds=one.seconds + other.seconds,
    )


def _sizes(found: Transfer) -> Table:
    rows = [
        [
            large(size.parameters),
            large(size.tokens),
            f"{size.optimum:.2f}x",
            interval(size.interval),
        ]
        for size in found.sizes
    ]
    return plain_table(["non-embedding parameters", "tokens", "optimum", "90 % interval"], rows)
