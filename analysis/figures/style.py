"""The look of every figure: colours, axes, labels next to their lines, and the files.

Only matplotlib's object interface is used: no pyplot, no global state, no display. Colours come
from the palette of Okabe and Ito, which colour-blind readers can distinguish. Widths have an order
and take colours of rising lightness.
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

#: Text, grid lines and axes. The report replaces these colours with those of its page.
INK = "#222629"
RULE = "#dcdfe3"
FAINT = "#68717a"

SOFT, HARD, EDIM, LOSS = "#0072b2", "#d55e00", "#009e73", "#0072b2"
#: Results that are not established, and runs that collapsed, diverged or were left out.
UNSURE = "#9a5b00"
BROKEN = "#c23b22"
DASHES = (0, (4, 3))

#: Shades for ordered values, from the smallest: each in a version for white and one for black.
SHADES = tuple(
    (to_hex(mpl.colormaps["viridis"](on_white)), to_hex(mpl.colormaps["viridis"](on_black)))
    for on_white, on_black in zip(
        np.linspace(0.02, 0.66, 24), np.linspace(0.38, 0.96, 24), strict=True
    )
)
#: Width of a letter of a tick label, and the space between labels, as shares of the axis.
_LETTER, _BETWEEN = 0.029, 0.012

#: Inches of a panel: the text is 11 pixels high on a phone, where a figure fills the page.
SIZE = (4.4, 3.1)

#: Settings for reproducible files (`hashsalt`) with selectable text (`fonttype`).
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
    """Return a figure and its empty panels, row by row, each `size` inches (width, height)."""
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
    """Return the bytes of the figure as "svg" and "png".

    Figures of the same numbers have the same bytes of SVG.
    """
    with _drawing():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is done, for both files
        figure.set_dpi(160)
        figure.set_facecolor("white")
        # Faster than savefig, which draws every figure twice. SVG last: it changes the resolution.
        bitmap: Any = FigureCanvasAgg(figure)
        bitmap.print_png(png := io.BytesIO())
        drawing: Any = FigureCanvasSVG(figure)
        drawing.print_svg(svg := io.BytesIO(), metadata={"Date": None})
    return {"svg": svg.getvalue(), "png": png.getvalue()}


def pixels(figure: Figure, dpi: float) -> NDArray[np.uint8]:
    """Return the figure on white as RGB, [height, width, 3], at `dpi` dots per inch."""
    with _drawing():
        figure.set_dpi(dpi)
        figure.set_facecolor("white")
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
    image: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return image


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Apply our settings, and silence warnings about labels that are too long or lack a glyph."""
    with mpl.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def title(axes: Axes, text: str) -> None:
    """Set a title at the left edge. A dollar sign stays a dollar sign (no mathtext)."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color=INK, parse_math=False)


def widths_axis(axes: Axes, values: Sequence[float], label: str, suffix: str = "") -> None:
    """Make x logarithmic with ticks at the widths, and drop labels that would overlap."""
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
    """Indices of the labels to show: the first, the last, and all between that fit."""
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
    """Make y logarithmic with at least three round ticks. Call it after the data are drawn."""
    axes.set_yscale("log")
    log_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel(label, parse_math=False)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Set at least three round ticks on a logarithmic axis from `low` to `high`."""
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
    """Return `steps` times every power of ten from 1e-9 to 1e9, in ascending order."""
    return [step * 10.0**exponent for exponent in range(-9, 10) for step in steps]


def tokens_axis(axes: Axes) -> None:
    """Make x a logarithmic axis of training tokens (`100k`, `2M`). Call it after the data are
    drawn."""
    axes.set_xscale("log")
    log_ticks(axes.xaxis, *axes.get_xlim())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: large(value)))
    axes.set_xlabel("training tokens")


def crosses(axes: Axes, x: Sequence[float], y: Sequence[float], text: str, **how: Any) -> None:
    """Draw red crosses for failed or left-out runs, with `text` next to the rightmost.

    `how` goes to `Axes.plot`.
    """
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
    """Set one y tick per decade, or per few decades if there are many."""
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_major_formatter(LogFormatterSciNotation())


def width_colours(count: int) -> list[str]:
    """Return `count` colours for widths in ascending order, from `SHADES` on white."""
    places = np.linspace(0, len(SHADES) - 1, max(count, 2))[:count]
    return [SHADES[round(place)][0] for place in places]


def end_labels(axes: Axes, labels: Sequence[tuple[float, str, Any]], *, gap: float = 0.06) -> None:
    """Write each (y, text, colour) at the right edge, and move labels apart that would overlap.

    `gap` is the smallest distance, as a share of the axis. Call it after the limits are final.
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
    """Return the heights moved apart to at least `gap`, with least squared movement.

    Neighbours keep their order.
    """
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
