"""Pieces of the report's HTML. Every text that comes from a sweep is escaped here."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from analysis.figures.style import BROKEN, EDIM, FAINT, HARD, INK, RULE, SOFT

#: Cells of a table that say that something broke.
_BAD = ("diverged", "collapsed", "failed", "not admissible")

#: Pixels of the page that a point of a figure gets at most: text is of one size in all of them.
LARGEST = 1.54

#: Colours of a figure that follow the page, light or dark.
_COLOURS = (
    (INK, "currentColor"),
    (FAINT, "var(--faint)"),
    (RULE, "var(--rule)"),
    (SOFT, "var(--soft)"),
    (HARD, "var(--hard)"),
    (EDIM, "var(--edim)"),
    (BROKEN, "var(--bad)"),
    ("fill: #ffffff", "fill: none"),
)


def table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    chosen: int | None = None,
    links: Mapping[str, str] | None = None,
) -> str:
    """A table of plain texts; the row `chosen` stands out, cells in `links` lead somewhere."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        ('<tr class="chosen">' if i == chosen else "<tr>")
        + "".join(_cell(cell, links or {}) for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(text: str, links: Mapping[str, str]) -> str:
    tone = ' class="bad"' if text in _BAD else ""
    shown = escape(text)
    if text in links:
        shown = f'<a href="{escape(links[text])}" target="_blank" rel="noopener">{shown}</a>'
    return f"<td{tone}>{shown}</td>"


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
    """Figures beside each other where there is room; nothing for none."""
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
