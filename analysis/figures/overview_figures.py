"""The figures of a whole sweep, with one row per group.

A function returns None if it has nothing to draw.
"""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.figures.comparison_figures import differences
from analysis.figures.style import (
    DASHES,
    EDIM,
    FAINT,
    HARD,
    INK,
    SIZE,
    SOFT,
    UNSURE,
    log_ticks,
    panels,
    title,
)
from analysis.laws.layer_kinds import LayerSpread
from analysis.laws.power_law import PowerLaw
from analysis.laws.spectral import RANK_NAMES
from analysis.replicates import CONFIDENCE
from analysis.verdict.group_verdict import Recommendation
from analysis.verdict.loss_over_width import LossCurve
from analysis.wording import multiple

#: Share of resamples with the optimum at an edge of the grid, above which an arrow is drawn there.
EDGE = (1 - CONFIDENCE) / 2


def overviews(recommendation: Recommendation) -> Iterator[tuple[str, Figure]]:
    """Yield the name and the figure of every overview that can be drawn."""
    for name, figure in (
        ("optima", optima(recommendation)),
        ("exponents", exponents(recommendation)),
        ("comparisons", differences(recommendation.comparisons)),
    ):
        if figure is not None:
            yield name, figure


def optima(recommendation: Recommendation) -> Figure | None:
    """Draw the interval of the optimum and the recommended width of every group.

    None for a single group: its own figure shows more.
    """
    if len(recommendation.groups) < 2:
        return None
    rows = [
        (verdict.label, verdict.deciding.optimum, verdict.width_multiplier)
        for verdict in recommendation.groups
        if verdict.deciding is not None and isinstance(verdict.deciding.optimum, LossCurve)
    ]
    if not rows:
        return None
    figure, axes = _rows([label for label, _, _ in rows])
    for place, (_, curve, width) in enumerate(rows):
        axes.plot(curve.multiplier, [place] * len(curve.multiplier), "|", color=FAINT, markersize=9)
        if width is None:
            _undecided(axes, curve, place)
            continue
        axes.plot(curve.interval, [place] * 2, color=EDIM, linewidth=3, solid_capstyle="butt")
        axes.plot(curve.optimum, place, "o", color=EDIM, markersize=6)
        axes.plot(width, place, "o", color=INK, markersize=11, markerfacecolor="none")
        _beside(axes, place, multiple(width), INK)
    axes.set_xscale("log")
    axes.margins(x=0.06)
    log_ticks(axes.xaxis, *axes.get_xlim())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_xlabel("D / d_model at the lowest loss, 90 % interval")
    title(axes, "Best width")
    return figure


def _undecided(axes: Axes, curve: LossCurve, place: int) -> None:
    """The interval of an optimum that is not established, with arrows beyond the grid."""
    axes.plot(curve.interval, [place] * 2, color=UNSURE, linewidth=1.5, linestyle=DASHES)
    ends = zip(("<", ">"), curve.interval, (curve.below, curve.above), strict=True)
    for marker, at, share in ends:
        if share >= EDGE:
            axes.plot(at, place, marker, color=UNSURE, markersize=7)
    _beside(axes, place, "undecided", UNSURE)


def _beside(axes: Axes, place: int, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (1, place),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontweight="bold",
    )


def _rows(labels: list[str]) -> tuple[Figure, Axes]:
    """A panel with one row per group, the first at the top."""
    figure, (axes,) = panels(size=(1.15 * SIZE[0], 1.1 + 0.42 * len(labels)))
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.75)
    axes.grid(False, axis="y")
    return figure, axes


#: Ranks whose exponents are drawn, and their colours.
COLOURS = {"soft_rank": SOFT, "hard_rank_debiased": HARD}


def exponents(recommendation: Recommendation) -> Figure | None:
    """Draw the exponents of soft and hard rank of every group with their 90 % intervals.

    Thin: the range of the exponents of single layers.
    """
    rows = [
        (verdict, {name: verdict.spectral.laws[name] for name in COLOURS})
        for verdict in recommendation.groups
    ]
    rows = [row for row in rows if any(isinstance(law, PowerLaw) for law in row[1].values())]
    if not rows:
        return None
    figure, axes = _rows([verdict.label for verdict, _ in rows])
    named: set[str] = set()
    for place, (verdict, laws) in enumerate(rows):
        for (name, law), shift in zip(laws.items(), (-0.13, 0.13), strict=True):
            if not isinstance(law, PowerLaw):
                continue
            colour, layers = COLOURS[name], verdict.layers.spread.get(name)
            if isinstance(layers, LayerSpread):
                axes.hlines(place + shift, *layers.range, colors=colour, linewidth=0.8, alpha=0.6)
            axes.plot(law.beta_interval, [place + shift] * 2, color=colour, linewidth=2)
            axes.plot(law.beta, place + shift, "o", color=colour, markersize=5)
            if name not in named:
                named.add(name)
                axes.annotate(
                    RANK_NAMES[name],
                    (law.beta, place + shift),
                    xytext=(0, 7 if shift < 0 else -14),
                    textcoords="offset points",
                    ha="center",
                    color=colour,
                    fontsize=9,
                )
    axes.set_xlabel("exponent of rank ~ D^exponent, 90 % interval")
    title(axes, "Growth of the ranks with D")
    return figure
