"""The figures of one group: each shows one claim of the verdict with its uncertainty.

A function returns None if it has nothing to draw. `figures_of` names and orders the figures.
`rank_figures` draws those of the ranks, `overview_figures` those of the whole sweep.
"""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import rank_figures
from analysis.figures.spectrum_figures import evenly
from analysis.figures.style import (
    DASHES,
    EDIM,
    FAINT,
    HARD,
    INK,
    LOSS,
    crosses,
    end_labels,
    panels,
    title,
    tokens_axis,
    width_colours,
    widths_axis,
)
from analysis.laws.layers import LayerAdvice
from analysis.laws.power_law import PowerLaw
from analysis.refusal import Refusal
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.budgets import CURRENCIES
from analysis.verdict.equal_budget import BUDGETS
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.loss_over_width import LossCurve
from analysis.wording import interval, multiple

#: Colour of each budget's line.
BUDGET_COLOURS = dict(zip(CURRENCIES, (LOSS, HARD, EDIM, "#cc79a7"), strict=True))
#: Space above the data for the crosses of failed runs, as a share of the axis.
HEADROOM = 0.12
#: Most labels at the right edge of a figure.
MOST_LABELS = 14


def figures_of(
    verdict: GroupVerdict, tables: SweepTables, layers: LayerAdvice | Refusal
) -> Iterator[tuple[str, Figure]]:
    """Yield the name and the figure of everything that can be drawn for one group."""
    for name, figure in (
        ("loss-optimum", loss_optimum(verdict)),
        ("loss-at-budgets", loss_at_budgets(verdict)),
        ("rank-laws", rank_figures.rank_laws(verdict)),
        ("effective-dimension", rank_figures.effective_dimension(verdict)),
        ("final-spectra", rank_figures.final_spectra(verdict, tables)),
        ("width-law", width_law(verdict)),
        ("layer-growth", rank_figures.layer_growth(layers)),
        ("layer-ranks", rank_figures.layer_ranks(verdict, tables)),
        ("training-curves", training_curves(verdict, tables)),
    ):
        if figure is not None:
            yield name, figure


def loss_optimum(verdict: GroupVerdict) -> Figure | None:
    """Draw final loss against width multiplier, one panel per budget held equal."""
    judged = [evidence for evidence in verdict.losses if len(evidence.used)]
    if not judged:
        return None
    figure, grid = panels(rows=len(judged))
    for axes, evidence in zip(grid, judged, strict=True):
        used, curve = evidence.used, evidence.optimum
        multipliers = evidence.planned["width_multiplier"]
        axes.plot(used["width_multiplier"], used["val_loss"], "o", color=LOSS, markersize=4.5)
        if isinstance(curve, LossCurve):
            _draw_curve(axes, curve, chosen=evidence is verdict.deciding)
        if evidence.inadmissible:
            _broken(axes, evidence.inadmissible)
        if isinstance(curve, LossCurve) and curve.recommended:
            floor = float(curve.curve(curve.optimum)) + curve.tolerance
            axes.axhline(floor, color=FAINT, linewidth=0.9, linestyle=DASHES)
            end_labels(axes, [(floor, f"optimum\n+ {curve.tolerance:g} nats", FAINT)])
        title(axes, f"Loss at equal {BUDGETS[evidence.matching][1]}")
        widths_axis(axes, list(multipliers), "D / d_model", "x")
        axes.set_ylabel("held-out loss (nats per token)")
    return figure


def _draw_curve(axes: Axes, curve: LossCurve, *, chosen: bool) -> None:
    """The fit and its band; for an established optimum, its interval and the chosen width."""
    fine = np.geomspace(curve.multiplier[0], curve.multiplier[-1], 200)
    axes.plot(fine, curve.curve(fine), color=LOSS, linewidth=1.4)
    if curve.headline is None:
        return
    at = float(curve.curve(curve.multiplier[curve.headline]))
    low, high = curve.over_headline.T
    axes.fill_between(curve.multiplier, at + low, at + high, color=LOSS, alpha=0.13, linewidth=0)
    if not curve.recommended:
        return
    axes.axvspan(*curve.interval, color=EDIM, alpha=0.13, linewidth=0)
    if chosen:
        _mark(axes, float(curve.multiplier[curve.headline]), at, left=curve.headline == 0)


def _mark(axes: Axes, multiplier: float, loss: float, *, left: bool) -> None:
    """A ring around the chosen width, and its name below."""
    axes.plot(multiplier, loss, "o", markersize=11, markerfacecolor="none", color=INK)
    side = 0.0 if left else 0.5  # of the label, on the line down to it
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.16 * (high - low), high)  # room for the label
    axes.annotate(
        f"{multiple(multiplier)} chosen",
        (multiplier, loss),
        xytext=(multiplier, 0.03),
        textcoords=axes.get_xaxis_transform(),
        arrowprops={
            "arrowstyle": "-",
            "color": INK,
            "linewidth": 0.8,
            "shrinkB": 6,
            "relpos": (side, 1),
        },
        ha="left" if left else "center",
        color=INK,
        fontsize=9,
        fontweight="bold",
    )


def _broken(axes: Axes, at: tuple[float, ...]) -> None:
    """Crosses at the top for widths with a collapsed or diverged replicate."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + HEADROOM * (high - low))
    crosses(
        axes,
        at,
        [0.96] * len(at),
        "collapsed or diverged",
        transform=axes.get_xaxis_transform(),
    )


def loss_at_budgets(verdict: GroupVerdict) -> Figure | None:
    """Draw the loss above the minimum of the curve, one line per budget held equal."""
    curves = {
        found.currency: found.found
        for found in verdict.at_budgets
        if isinstance(found.found, LossCurve)
    }
    if len(curves) < 2:
        return None  # one curve is that of `loss_optimum`
    figure, (axes,) = panels()
    labels = []
    for place, (currency, curve) in enumerate(curves.items()):
        colour = BUDGET_COLOURS[currency]
        wider = len(curves) - 1 - place  # curves that coincide must all be seen
        fine = np.geomspace(curve.multiplier[0], curve.multiplier[-1], 200)
        floor = float(curve.curve(fine).min())
        axes.plot(fine, curve.curve(fine) - floor, color=colour, linewidth=1.4 + 1.6 * wider)
        axes.plot(curve.multiplier, curve.loss - floor, "o", color=colour, markersize=4 + 2 * wider)
        if curve.recommended:
            axes.plot(*_point(curve, floor), "D", color=colour, markersize=6 + 2 * wider)
        labels.append((float(curve.curve(fine[-1])) - floor, CURRENCIES[currency][1], colour))
    widths_axis(
        axes, [m for curve in curves.values() for m in curve.multiplier], "D / d_model", "x"
    )
    axes.set_ylabel("loss above minimum (nats per token)")
    end_labels(
        axes, [(y, text.replace(" ", "\n", 1), colour) for y, text, colour in labels], gap=0.14
    )
    title(axes, "Loss by the budget held equal")
    return figure


def _point(curve: LossCurve, floor: float) -> tuple[float, float]:
    return curve.optimum, float(curve.curve(curve.optimum)) - floor


def width_law(verdict: GroupVerdict) -> Figure | None:
    """Draw final loss against D at fixed d_model, with no budget held equal, and its power law."""
    used, left_out = verdict.spectral.used, verdict.spectral.left_out
    used = used[np.isfinite(used["val_loss"]) & (used["val_loss"] > 0)]
    if used.empty:
        return None
    figure, (axes,) = panels()
    axes.plot(used["D"], used["val_loss"], "o", color=LOSS, markersize=4.5)
    law = verdict.spectral.width_law
    if isinstance(law, PowerLaw):
        fine = np.geomspace(*law.x_range, 100)
        axes.plot(fine, law.predict(fine), color=LOSS, linewidth=1.4)
        axes.fill_between(fine, *law.band(fine), color=LOSS, alpha=0.14, linewidth=0)
        text = f"loss ~ D^{law.beta:.3f}\n{interval(law.beta_interval, 3)}"
        end_labels(axes, [(float(law.predict(law.x_range[1])), text, LOSS)])
    broken = left_out[left_out["why"].isin(["collapsed", "diverged"])]["D"].dropna()
    if len(broken):
        _broken(axes, tuple(sorted(set(broken))))
    axes.set_ylabel("held-out loss (nats per token)")
    widths_axis(axes, [*used["D"], *broken], "FFN width D, at a fixed d_model")
    title(axes, "Width law, 90 % interval")
    return figure


def training_curves(verdict: GroupVerdict, tables: SweepTables) -> Figure | None:
    """Draw held-out loss against training tokens, one line per run, coloured by width."""
    deciding = verdict.deciding
    cells = verdict.trials if deciding is None else deciding.planned
    rows = tables.of(tables.curves, cells)
    rows = rows[(rows["kind"] == "evaluation") & (rows["tokens"] > 0)]
    rows = rows[np.isfinite(rows["val_loss"].astype(float))]
    if rows.empty:
        return None
    figure, (axes,) = panels()
    curves = dict(iter(rows.groupby("id")))
    cells = cells.drop_duplicates("id")
    widths = sorted({float(m) for m in cells["width_multiplier"].dropna()})
    colours = dict(zip(widths, width_colours(len(widths)), strict=True))
    ends: dict[float, list[float]] = {}
    for _, cell in cells.iterrows():
        own = curves.get(cell["id"])
        if own is None:
            continue
        multiplier = float(cell["width_multiplier"])
        axes.plot(
            own["tokens"],
            own["val_loss"],
            color=colours[multiplier],
            linewidth=1.0,
            linestyle="-" if cell["state"] == "completed" else (0, (2, 2)),
        )
        ends.setdefault(multiplier, []).append(float(own["val_loss"].iloc[-1]))
    tokens_axis(axes)
    axes.set_ylabel("held-out loss (nats per token)")
    labels = [(float(np.median(ends[m])), multiple(m), colours[m]) for m in sorted(ends)]
    end_labels(axes, [labels[i] for i in evenly(range(len(labels)), MOST_LABELS)])
    budget = "all cells" if deciding is None else f"equal {BUDGETS[deciding.matching][1]}"
    title(axes, f"Training, {budget}")
    return figure
