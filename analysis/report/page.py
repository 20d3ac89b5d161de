"""The report's page: its Jinja2 templates, and the tables and figures that they lay out.

Templates escape every text by themselves (autoescape); only `Markup` is HTML.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.figures.style import BROKEN, EDIM, FAINT, HARD, INK, RULE, SHADES, SOFT, UNSURE

#: Cells of a table that say that something broke.
BAD = ("diverged", "collapsed", "failed", "not admissible")

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


@dataclass(frozen=True)
class Table:
    """A table of plain texts: rows by the title of their group, "" for rows without one."""

    names: Sequence[str]
    groups: Mapping[str, Sequence[Sequence[str]]]
    chosen: int | None = None  # the row that stands out
    links: Mapping[str, str] = field(default_factory=dict)  # addresses by the text of a cell

    @property
    def kinds(self) -> list[str]:
        """The CSS class of each column: words are aligned to the left, with the first column, and
        long ones may break; numbers, of no class, to the right."""
        rows = [row for rows in self.groups.values() for row in rows]
        kinds = []
        for place, cells in enumerate(zip(*rows, strict=True) if rows else [()] * len(self.names)):
            in_words = place == 0 or any(cell[:1].isalpha() for cell in cells)
            long = max(map(len, cells), default=0) > LONG
            kinds.append("long" if long else "left" if in_words else "")
        return kinds


def plain_table(
    names: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None = None
) -> Table:
    """A table of one group without a title."""
    return Table(names, {"": rows}, chosen)


def without_empty(
    names: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Names and rows without the columns in which no row says anything."""
    kept = [place for place, _ in enumerate(names) if any(row[place] for row in rows)]
    return [names[place] for place in kept], [[row[place] for place in kept] for row in rows]


@dataclass(frozen=True)
class DrawnFigure:
    """A figure with its caption; `name` is unique in the page."""

    name: str
    svg: bytes
    caption: str

    @property
    def inline(self) -> Markup:
        """The content of the <svg> element with its tag, in the page's colours, its ids its own."""
        text = self.svg.decode()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
        text = re.sub(r'\bid="([^"]+)"', rf'id="{self.name}-\1"', text)
        text = re.sub(r'(url\(|href=")#', rf"\1#{self.name}-", text)
        for colour, own in _COLOURS:
            text = text.replace(colour, own)
        size = re.search(r'\bwidth="([\d.]+)pt"', text)
        widest = f' style="max-width: {LARGEST * float(size[1]):.0f}px"' if size else ""
        label = Markup.escape(self.caption or self.name)
        return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{label}"{widest} ', 1))


def drawn_figure(svgs: Mapping[str, bytes], name: str, caption: str) -> DrawnFigure | None:
    """The figure of that name, None where it was not drawn."""
    svg = svgs.get(f"figures/{name}.svg")
    return None if svg is None else DrawnFigure(name, svg, caption)


def shades(*, on_white: bool) -> Markup:
    """The CSS that gives the figures' shades their colours."""
    pairs = enumerate(light if on_white else dark for light, dark in SHADES)
    return Markup(" ".join(f"--shade-{i}: {colour};" for i, colour in pairs))


def sentence(text: str, *, capital: bool = True) -> str:
    """The text with a full stop, and a capital to begin with."""
    own = text[1:2].isupper()  # eDim is written so wherever it stands
    start = text[:1].upper() if capital and not own else text[:1]
    return start + text[1:] + ("" if text.endswith(".") else ".")


def tied(text: str) -> str:
    """The text, a number never parted from its percent sign."""
    return text.replace(" %", "\u00a0%")


def render(template: str, **content: Any) -> Markup:
    """A template of this package, filled."""
    return Markup(_TEMPLATES.get_template(template).render(content))


_TEMPLATES = Environment(
    loader=PackageLoader("analysis.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters.update(sentence=sentence, tied=tied)
_TEMPLATES.globals.update(BAD=BAD)
