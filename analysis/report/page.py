"""The report's Jinja2 templates, and the tables and figures that they lay out.

Autoescape is on: a template escapes every text of a sweep. Only `Markup` is taken for HTML.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.figures.style import BROKEN, EDIM, FAINT, HARD, INK, RULE, SHADES, SOFT, UNSURE

#: Cells of a table that report a failure: they are drawn in red.
BAD = ("diverged", "collapsed", "failed", "not admissible")

#: A column with a cell of more letters may wrap.
LONG = 44

#: Most pixels of the page per point of a figure, so that all figures have text of one size.
LARGEST = 1.6

#: Colours of a figure, and the CSS that replaces them to follow a light or dark page.
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

#: Spaces at which a line must not break: before a unit, and around the sign of an equation.
_TIED = re.compile(r"(?<=\d) (?=%|(?:nats|FLOPs|s|min|h|days)\b)| (?=[=~] )|(?<= [=~]) ")


@dataclass(frozen=True)
class Table:
    """A table of plain text: its rows by the title of their group, "" for no title."""

    names: Sequence[str]
    groups: Mapping[str, Sequence[Sequence[str]]]
    chosen: int | None = None  # the row that stands out
    links: Mapping[str, str] = field(default_factory=dict)  # addresses by the text of a cell

    @property
    def kinds(self) -> list[str]:
        """The CSS class of each column: `left` for words and the first column, `long` for cells
        that may wrap, and none for numbers, which are aligned to the right."""
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
    """Return a table without groups."""
    return Table(names, {"": rows}, chosen)


def without_empty(
    names: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Return names and rows without the columns that are empty in every row."""
    kept = [place for place, _ in enumerate(names) if any(row[place] for row in rows)]
    return [names[place] for place in kept], [[row[place] for place in kept] for row in rows]


@dataclass(frozen=True)
class DrawnFigure:
    """A figure with its caption; its `name` is unique in the page."""

    name: str
    svg: bytes
    caption: str

    @property
    def inline(self) -> Markup:
        """The <svg> element in the colours of the page, its ids prefixed with the name."""
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
    """Return the figure of that name from `svgs` (by key), or None if it was not drawn."""
    svg = svgs.get(f"figures/{name}.svg")
    return None if svg is None else DrawnFigure(name, svg, caption)


def shades(*, on_white: bool) -> Markup:
    """Return the CSS variables of `SHADES`, for a light or a dark page."""
    pairs = enumerate(light if on_white else dark for light, dark in SHADES)
    return Markup(" ".join(f"--shade-{i}: {colour};" for i, colour in pairs))


def sentence(text: str, *, capital: bool = True) -> str:
    """Return the text with a full stop and, by default, an initial capital."""
    own = text[1:2].isupper()  # eDim keeps its small e
    start = text[:1].upper() if capital and not own else text[:1]
    return start + text[1:] + ("" if text.endswith(".") else ".")


def tied(text: str) -> str:
    """Return the text with no-break spaces between numbers and units, and around `=` and `~`."""
    return _TIED.sub("\u00a0", text)


def render(template: str, **content: Any) -> Markup:
    """Render a template of this package; a variable that is missing raises UndefinedError."""
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
