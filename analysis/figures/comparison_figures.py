"""The figure of the comparisons between groups: one row each, with interval and widths.

A function returns None if it has nothing to draw.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import (
    DASHES,
    EDIM,
    FAINT,
    INK,
    SIZE,
    UNSURE,
    panels,
    title,
    width_colours,
)
from analysis.verdict.comparison_lines import main_pairs
from analysis.verdict.comparisons import Comparison, Comparisons
from analysis.wording import multiple

#: Rows of the figure; the tables have all comparisons.
MOST_ROWS = 16
#: Letters of a row's label before it is cut: the panel keeps its width.
_LETTERS = 30
#: Distance of the widths' points from the row's interval, in rows.
_BELOW = 0.24


def differences(found: Comparisons) -> Figure | None:
    """Draw the mean difference of every comparison with its interval, and those of its widths."""
    rows = main_pairs(found, MOST_ROWS)
    if not rows:
        return None
    shades = _shades(rows)
    figure, (axes,) = panels(size=(1.15 * SIZE[0], 1.35 + 0.5 * len(rows)))
    axes.axvline(0, color=INK, linewidth=0.9)
    for place, pair in enumerate(rows):
        _row(axes, place, pair, shades)
    axes.set_yticks(range(len(rows)), [_label(pair) for pair in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("difference in held-out loss (nats per token)")
    title(axes, "Left of 0: the first-named is lower")
    return figure


def _row(axes: Axes, place: int, pair: Comparison, shades: dict[str, str]) -> None:
    assert pair.difference is not None
    told = pair.outcome == "told"
    colour = EDIM if told else UNSURE if pair.interval else FAINT
    if pair.interval is not None:
        style = {"linewidth": 3.0} if told else {"linewidth": 1.5, "linestyle": DASHES}
        axes.plot(pair.interval, [place] * 2, color=colour, solid_capstyle="butt", **style)
    axes.plot(pair.difference.mean, place, "o", color=colour, markersize=6)
    for width, apart in zip(pair.difference.widths, pair.difference.by_width, strict=True):
        axes.plot(apart, place + _BELOW, ".", color=shades[multiple(width)], markersize=5.5)
    ahead, pairs = pair.ahead
    axes.annotate(
        f"{ahead} of {pairs}",
        (1, place),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=8.5,
        fontweight="bold" if told else "normal",
    )


def _shades(rows: list[Comparison]) -> dict[str, str]:
    """A colour for every width multiplier, as it is written."""
    widths = sorted(
        {float(width) for pair in rows if pair.difference for width in pair.difference.widths}
    )
    names = list(dict.fromkeys(map(multiple, widths)))
    return dict(zip(names, width_colours(len(names)), strict=True))


def _label(pair: Comparison) -> str:
    lines = [pair.label, pair.place] if pair.place else [pair.label]
    return "\n".join(
        text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…" for text in lines
    )
