"""Show a corpus on a terminal: documents, bytes and tokens per source and split, files and
documents that were left out with their reasons, and remarks."""

from collections.abc import Sequence

from rich.text import Text

from trainers.data.contents import SPLITS, Contents, SourcePart, added
from trainers.data.documents import LeftOut, Split

#: Number of the largest sources shown. One line sums up the others; the JSON has all.
SHOWN = 12

HEADER = ("source", "split", "documents", "bytes", "tokens")


def render_contents(contents: Contents) -> list[Text]:
    """Return the lines of the section: a table, then sentences."""
    rows = [_row(part, contents.estimated) for part in _shown(contents)]
    rows += [
        _row(_named(contents.total(split), "all"), contents.estimated)
        for split in SPLITS
        if len({part.source for part in contents.sources}) > 1
    ]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = [
        Text("Corpus", "bold"),
        Text(f"split: {contents.split_rule}"),
        _line(HEADER, widths),
    ]
    lines[-1].stylize("bold")
    lines += [_line(row, widths) for row in rows]
    if contents.estimated:
        lines.append(Text("~: estimated from excerpts of each source; a run counts exactly", "dim"))
    lines += [
        Text(
            f"left out: {left.count:,} {_unit(left)}{f' ({left.suffix})' if left.suffix else ''}: "
            f"{left.reason}, such as {left.example}"
        )
        for left in contents.left_out
    ]
    return lines + [Text(f"corpus: {remark}", "yellow") for remark in contents.remarks]


def _unit(left: LeftOut) -> str:
    return left.unit.removesuffix("s") if left.count == 1 else left.unit


def _shown(contents: Contents) -> list[SourcePart]:
    sizes: dict[str, int] = {}
    for part in contents.sources:
        sizes[part.source] = sizes.get(part.source, 0) + part.bytes
    largest = sorted(sizes, key=lambda source: -sizes[source])[:SHOWN]
    shown = [part for part in contents.sources if part.source in largest]
    rest = [part for part in contents.sources if part.source not in largest]
    for split in SPLITS:
        others = _sum(rest, split, f"{len(sizes) - len(largest)} other sources")
        shown += [others] if others.documents else []
    return shown


def _sum(parts: Sequence[SourcePart], split: Split, name: str) -> SourcePart:
    total = SourcePart(name, split, 0, 0, 0)
    for part in parts:
        if part.split == split:
            total = added(total, part.documents, part.bytes, part.tokens)
    return total


def _named(part: SourcePart, name: str) -> SourcePart:
    return SourcePart(name, part.split, part.documents, part.bytes, part.tokens)


def _row(part: SourcePart, estimated: bool) -> tuple[str, ...]:
    split = "held out" if part.split == "heldout" else part.split
    tokens = f"{'~' if estimated else ''}{part.tokens:,}"
    return part.source, split, f"{part.documents:,}", f"{part.bytes:,}", tokens


def _line(cells: Sequence[str], widths: Sequence[int]) -> Text:
    words = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return Text("  ".join([*words, *numbers]))
