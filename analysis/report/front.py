"""The first screen of the report: how wide, how sure, why, and what to run next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from analysis.report.page import Table, drawn_figure, plain_table, render
from analysis.verdict.next_cells import NextCells
from analysis.verdict.recommend import GroupVerdict, Recommendation
from analysis.verdict.transfer import Transfer
from analysis.wording import interval, large, multiple, plural

#: Where the caveats of all groups are.
CAVEATS = "caveats"

OPTIMA = (
    "Bar: 90 % interval of the best width; dot: its estimate; ring: the width to use; ticks: the "
    "widths measured. Dashed: no optimum is established; an arrow where it may lie beyond the grid."
)


@dataclass(frozen=True)
class Line:
    """A line of a card, its name leading to where more is said."""

    name: str
    text: str
    place: str = ""


def front(
    recommendation: Recommendation, common: Sequence[str], svgs: Mapping[str, bytes]
) -> Markup:
    """Verdicts, what they say about the target, and the `common` caveats."""
    # A card a verdict; groups that are refused for the same reason share one.
    alike: dict[str, list[GroupVerdict]] = {}
    for verdict in recommendation.groups:
        own = verdict.slug if verdict.width_multiplier is not None else verdict.sentence
        alike.setdefault(own, []).append(verdict)
    return render(
        "front.html",
        cards=[(verdicts, list(_lines(verdicts, common))) for verdicts in alike.values()],
        transfers=[(found, _sizes(found)) for found in recommendation.transfers],
        optima=drawn_figure(svgs, "optima", OPTIMA),
        common=common,
        multiple=multiple,
    )


def _lines(verdicts: Sequence[GroupVerdict], common: Sequence[str]) -> Iterator[Line]:
    first = verdicts[0]
    if first.width_multiplier is not None:
        yield Line("Why", first.rule)
    for verdict in verdicts:
        if verdict.on_best is not None:  # runs end above their best loss
            yield Line("On best losses", verdict.on_best.sentence, f"{verdict.slug}-best-losses")
    if first.agrees is not None:
        agrees = "agree" if first.agrees else "do not agree"
        stop = first.spectral.stop.sentence.partition(":")[0]
        yield Line("Spectra", f"they {agrees}, {stop}", f"{first.slug}-ranks")
    yield from _next(verdicts, common)


def _next(verdicts: Sequence[GroupVerdict], common: Sequence[str]) -> Iterator[Line]:
    """What to run next, in all of these groups together."""
    asked: dict[str, NextCells] = {}
    for verdict in verdicts:
        for cells in verdict.run_next:
            known = asked.get(cells.why)
            asked[cells.why] = cells if known is None else _together(known, cells)
    for number, cells in enumerate(asked.values()):
        name = "and" if number else "Run next"
        yield Line(name, f"{cells.why} ({cells.cost})", f"{verdicts[0].slug}-next")
    if asked:
        return
    text = "no cell is missing for this verdict"
    caveats = verdicts[0].caveats
    if caveats:
        own = any(caveat not in common for caveat in caveats)
        place = f"{verdicts[0].slug}-{CAVEATS}" if own else CAVEATS
        yield Line(
            "Next", f"{text}; before acting on it read {plural(len(caveats), 'caveat')}", place
        )
    else:
        yield Line("Next", text)


def _together(one: NextCells, other: NextCells) -> NextCells:
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
