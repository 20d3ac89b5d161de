"""Pieces of the report's HTML. Every text that comes from a sweep is escaped here."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from analysis.figures.style import BROKEN, EDIM, FAINT, HARD, INK, RULE, SHADES, SOFT, UNSURE

#: Cells of a table that say that something broke.
_BAD = ("diverged", "collapsed", "failed", "not admissible")

#: Letters from which on a cell of a table may break.
LONG = 44

#: Pixels of the page that a point of a figure gets at most: text is of one size in all of them.
LARGEST = 1.6

#: Colours of a figure that follow the page, light or dark.
_COLOURS = (
    (INK, "currentColor"),
    (FAINT, "var(--faint)"),
    (RULE, "var(--rule)"),
    (SOFT, "var(--soft)"),
    (HARD, "var(--hard)"),
    (EDIM, "var(--edim)"),
    (BROKEN, "var(--bad)"),
    (UNSURE, "var(--no)"),
    *((on_white, f"var(--shade-{i})") for i, (on_white, _) in enumerate(SHADES)),
    ("fill: #ffffff", "fill: none"),
)


def shades(*, on_white: bool) -> str:
    """The CSS that gives the figures' shades their colours."""
    pairs = enumerate(light if on_white else dark for light, dark in SHADES)
    return " ".join(f"--shade-{i}: {colour};" for i, colour in pairs)


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, chosen: int | None = None) -> str:
    """A table of plain texts, numbers to the right; the row `chosen` stands out."""
    sides = _sides(names, rows)
    body = "".join(
        _row(row, sides, kind=' class="chosen"' if i == chosen else "")
        for i, row in enumerate(rows)
    )
    return _scrolled(names, sides, f"<tbody>{body}</tbody>")


def grouped_table(
    names: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]], links: Mapping[str, str]
) -> str:
    """A table whose rows stand below the name of their group; cells in `links` lead somewhere."""
    sides = _sides(names, [row for rows in groups.values() for row in rows])
    bodies = "".join(
        f'<tbody><tr class="group"><th colspan="{len(names)}" scope="rowgroup">'
        f"<span>{escape(title)}</span></th></tr>"
        + "".join(_row(row, sides, links=links) for row in rows)
        + "</tbody>"
        for title, rows in groups.items()
    )
    return _scrolled(names, sides, bodies)


def without_empty(
    names: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Names and rows without the columns in which no row says anything."""
    kept = [place for place, _ in enumerate(names) if any(row[place] for row in rows)]
    return [names[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _sides(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The class of each column: words are aligned to the left, with the first column, and long
    ones may break."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    kinds = []
    for place, cells in enumerate(columns):
        in_words = place == 0 or any(cell[:1].isalpha() for cell in cells)
        long = max(map(len, cells), default=0) > LONG
        kinds.append(' class="long"' if long else ' class="left"' if in_words else "")
    return kinds


def _row(
    row: Sequence[str],
    sides: Sequence[str],
    *,
    kind: str = "",
    links: Mapping[str, str] | None = None,
) -> str:
    cells = "".join(_cell(text, side, links or {}) for text, side in zip(row, sides, strict=True))
    return f"<tr{kind}>{cells}</tr>"


def _cell(text: str, side: str, links: Mapping[str, str]) -> str:
    shown = words(text)
    if text in links:
        shown = f'<a href="{escape(links[text])}" target="_blank" rel="noopener">{shown}</a>'
    if text in _BAD:
        side = ' class="left bad"'
    return f"<td{side}>{shown}</td>"


def _scrolled(names: Sequence[str], sides: Sequence[str], bodies: str) -> str:
    """Where a table is wider than the page it scrolls by itself, also by the keyboard."""
    pairs = zip(names, sides, strict=True)
    head = "".join(f'<th{side} scope="col">{escape(name)}</th>' for name, side in pairs)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>{bodies}'
        "</table></div>"
    )


def words(text: str) -> str:
    """Text as HTML, a number never parted from its percent sign."""
    return escape(text).replace(" %", "&nbsp;%")


def bullets(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{words(item)}</li>" for item in items) + "</ul>"


def paragraph(text: str, tone: str = "") -> str:
    """A sentence as a paragraph of its own; `tone` is a class of the page's style."""
    kind = f' class="{tone}"' if tone else ""
    return f"<p{kind}>{words(text)}</p>"


def folded(title: str, content: str) -> str:
    """Content behind its title, for what few readers need."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def sentence(text: str, *, capital: bool = True) -> str:
    """The text with a full stop, and a capital to begin with."""
    own = text[1:2].isupper()  # eDim is written so wherever it stands
    start = text[:1].upper() if capital and not own else text[:1]
    return start + text[1:] + ("" if text.endswith(".") else ".")


def figure(name: str, svg: bytes, caption: str) -> str:
    """A figure with its caption; `name` is unique in the page."""
    below = f"<figcaption>{words(caption)}</figcaption>" if caption else ""
    return f"<figure>{_inline(name, svg, caption or name)}{below}</figure>"


def figures(drawn: Iterable[str]) -> str:
    """Figures, or what explains them, beside each other where there is room; nothing for none."""
    shown = "".join(drawn)
    return f'<div class="figures">{shown}</div>' if shown else ""


def _inline(name: str, svg: bytes, label: str) -> str:
    """The <svg> element alone, in the page's colours, its ids made its own."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for colour, own in _COLOURS:
        text = text.replace(colour, own)
    size = re.search(r'\bwidth="([\d.]+)pt"', text)
    widest = f' style="max-width: {LARGEST * float(size[1]):.0f}px"' if size else ""
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}"{widest} ', 1)
