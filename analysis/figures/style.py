"""How every figure looks: colours, axes, labels beside their lines, and bytes out.

Matplotlib's object interface only: no pyplot, no global state, no display. Colours are from the
palette of Okabe and Ito, which colour-blind readers can tell apart; widths, which have an order,
take a sequence of rising lightness.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from numpy.typing import NDArray

from analysis.wording import large

#: Text and axes, and the lines behind the data. The report turns both to its own colours.
INK = "#222629"
RULE = "#dcdfe3"
FAINT = "#68717a"

SOFT, HARD, EDIM, LOSS = "#0072b2", "#d55e00", "#009e73", "#0072b2"
#: What is not established, and what broke.
UNSURE = "#9a5b00"
BROKEN = "#c23b22"
DASHES = (0, (4, 3))

#: Shades of what has an order, from the least: each as it stands out on white, and on black.
SHADES = tuple(
    (to_hex(mpl.colormaps["viridis"](on_white)), to_hex(mpl.colormaps["viridis"](on_black)))
    for on_white, on_black in zip(
        np.linspace(0.02, 0.66, 24), np.linspace(0.38, 0.96, 24), strict=True
    )
)
#: Share of an axis that a letter of its tick labels takes, and the room between two of them.
_LETTER, _BETWEEN = 0.029, 0.012

#: Inches of a panel: on a phone, where a figure is as wide as the page, its text is 11 pixels.
SIZE = (4.4, 3.1)

#: What makes the files the same for the same numbers, and their text selectable.
_RC: Any = {
    "svg.hashsalt": "widthlab",
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.unicode_minus": False,
}


def panels(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = SIZE
) -> tuple[Figure, list[Axes]]:
    """A figure of empty panels, `size` inches each, without boxes around them."""
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(True, color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, list(grid)


def render(figure: Figure) -> dict[str, bytes]:
    """The figure as "svg" and as "png". The same numbers give the same bytes of SVG."""
    with _drawing():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out: once is enough for both
        figure.set_dpi(160)
        figure.set_facecolor("white")
        # Not by savefig, which draws every figure twice. SVG last: it changes the resolution.
        bitmap: Any = FigureCanvasAgg(figure)
        bitmap.print_png(png := io.BytesIO())
        drawing: Any = FigureCanvasSVG(figure)
        drawing.print_svg(svg := io.BytesIO(), metadata={"Date": None})
    return {"svg": svg.getvalue(), "png": png.getvalue()}


def pixels(figure: Figure, dpi: float) -> NDArray[np.uint8]:
    """The figure on white, as [height, width, 3]: red, green, blue."""
    with _drawing():
        figure.set_dpi(dpi)
        figure.set_facecolor("white")
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
    image: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return image


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Our settings; and a label of a sweep that is too long for its panel, or of letters that no
    font here has, is the figure's business and not the terminal's."""
    with mpl.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def title(axes: Axes, text: str) -> None:
    """A title over the left edge, where a reader starts. A dollar sign in it is one."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color=INK, parse_math=False)


def widths_axis(axes: Axes, values: Sequence[float], label: str, suffix: str = "") -> None:
    """A logarithmic x axis that ticks at the widths; labels thin out where they crowd."""
    values = sorted({float(value) for value in values})
    texts = [f"{value:.3g}{suffix}" for value in values]
    shown = _with_room(np.log(values), texts)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FixedFormatter([text if i in shown else "" for i, text in enumerate(texts)])
    )
    axes.margins(x=0.08)
    axes.set_xlabel(label)


def _with_room(places: NDArray[np.float64], texts: Sequence[str]) -> set[int]:
    """Which texts can stand at their places: the first, the last, and those between that fit."""
    span = float(places[-1] - places[0]) or 1.0

    def fits(one: int, other: int) -> bool:
        wide = _LETTER * (len(texts[one]) + len(texts[other])) / 2 + _BETWEEN
        return bool((places[other] - places[one]) / span > wide)

    last = len(texts) - 1
    shown = [0]
    for i in range(1, last):
        if fits(shown[-1], i) and fits(i, last):
            shown.append(i)
    return {*shown, last}


def log_ranks(axes: Axes, label: str) -> None:
    """A logarithmic y axis with round ticks, at least three. Call it when the data are drawn."""
    axes.set_yscale("log")
    log_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel(label, parse_math=False)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Round ticks, at least three, on a logarithmic axis from `low` to `high`."""
    shown = [tick for tick in round_ticks((1, 2, 5)) if low <= tick <= high]
    if len(shown) < 3:
        shown = [tick for tick in round_ticks((1, 1.5, 2, 3, 5, 7)) if low <= tick <= high]
    if len(shown) < 3:
        shown = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    axis.set_major_locator(FixedLocator(shown))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def round_ticks(steps: tuple[float, ...]) -> list[float]:
    """The round numbers from 1e-9 to 1e9 in ascending order: `steps` of every decade."""
    return [step * 10.0**exponent for exponent in range(-9, 10) for step in steps]


def tokens_axis(axes: Axes) -> None:
    """A logarithmic x axis of training tokens: `100k`, `2M`. Call it when the data are drawn."""
    axes.set_xscale("log")
    log_ticks(axes.xaxis, *axes.get_xlim())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: large(value)))
    axes.set_xlabel("training tokens")


def crosses(axes: Axes, x: Sequence[float], y: Sequence[float], text: str, **how: Any) -> None:
    """Red crosses for what broke or was left out, the last of them explained beside it."""
    axes.plot(x, y, "x", color=BROKEN, markersize=6.5, markeredgewidth=1.6, **how)
    last = int(np.argmax(x))
    axes.annotate(
        text,
        (x[last], y[last]),
        xycoords=how.get("transform", "data"),
        xytext=(-8, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=BROKEN,
        fontsize=8.5,
    )


def decades(axes: Axes) -> None:
    """One y tick a decade, or one in several where there are many."""
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(LogFormatterSciNotation())


def width_colours(count: int) -> list[str]:
    """Colours for widths in ascending order, from `SHADES` on white."""
    places = np.linspace(0, len(SHADES) - 1, max(count, 2))[:count]
    return [SHADES[round(place)][0] for place in places]


def end_labels(axes: Axes, labels: Sequence[tuple[float, str, Any]], *, gap: float = 0.06) -> None:
    """Write each (y, text, colour) at the right edge, moved apart where they would overlap.

    `gap` is the least distance, as a share of the axis. Call it when the limits are final.
    """
    axes.get_ylim()  # settles limits that matplotlib has put off
    to_axes = axes.transData + axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    heights = [to_axes.transform((right, y))[1] for y, _, _ in labels]
    for (_, text, colour), height in zip(labels, spread_apart(heights, gap), strict=True):
        axes.annotate(
            text,
            (1, height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
            annotation_clip=False,
        )


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved as little as needed for `gap` between neighbours, in the same order."""
    order = np.argsort(heights, kind="stable")
    # Least squares under "each at least gap above the last" is isotonic regression of the
    # heights less the gaps below them (pool adjacent violators).
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([heights[index] - gap * rank, 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            value, weight = blocks.pop()
            total = blocks[-1][1] + weight
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + value * weight) / total, total]
    flat = [value for value, weight in blocks for _ in range(int(weight))]
    placed = [0.0] * len(heights)
    for rank, index in enumerate(order):
        placed[index] = flat[rank] + gap * rank
    return placed
