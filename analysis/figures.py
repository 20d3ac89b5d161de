"""The figures of a report: each shows one claim of the verdict, with its doubt.

A figure that has nothing to show is None. `figures_of` names and orders them.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.equal_budget import BUDGETS
from analysis.figure_style import (
    DASHES,
    EDIM,
    FAINT,
    HARD,
    INK,
    LOSS,
    SOFT,
    crosses,
    decades,
    end_labels,
    log_ranks,
    panels,
    title,
    tokens_axis,
    width_colours,
    widths_axis,
)
from analysis.laws import PowerLaw, Refusal
from analysis.loss_optimum import LossCurve
from analysis.recommend import GroupVerdict, Recommendation
from analysis.spectral import PLATEAU
from analysis.table import SweepTables
from analysis.wording import interval, multiple


def figures_of(verdict: GroupVerdict, tables: SweepTables) -> dict[str, Figure]:
    """The figures of one group by name, in the order in which they argue."""
    drawn = {
        "loss-optimum": loss_optimum(verdict),
        "rank-laws": rank_laws(verdict),
        "training-curves": training_curves(verdict, tables),
        "final-spectra": final_spectra(verdict, tables),
        "effective-dimension": effective_dimension(verdict),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def exponents(recommendation: Recommendation) -> Figure | None:
    """Soft and hard exponents of every group with their 90 % intervals, side by side."""
    rows = [
        (verdict.label, {name: verdict.spectral.laws[name] for name in ("soft_rank", "hard_rank")})
        for verdict in recommendation.groups
    ]
    rows = [row for row in rows if any(isinstance(law, PowerLaw) for law in row[1].values())]
    if not rows:
        return None
    figure, (axes,) = panels(size=(5.8, 1.1 + 0.42 * len(rows)))
    for place, (_, laws) in enumerate(rows):
        for (name, law), colour, shift in zip(
            laws.items(), (SOFT, HARD), (-0.13, 0.13), strict=True
        ):
            if not isinstance(law, PowerLaw):
                continue
            axes.plot(law.beta_interval, [place + shift] * 2, color=colour, linewidth=2)
            axes.plot(law.beta, place + shift, "o", color=colour, markersize=5)
            if place == 0:
                axes.annotate(
                    name.replace("_", " "),
                    (law.beta, place + shift),
                    xytext=(0, 7 if shift < 0 else -14),
                    textcoords="offset points",
                    ha="center",
                    color=colour,
                    fontsize=9,
                )
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.75)
    axes.grid(False, axis="y")
    axes.set_xlabel("exponent of the rank against D, 90 % interval")
    return figure


def loss_optimum(verdict: GroupVerdict) -> Figure | None:
    """Final loss against the width at every equal budget."""
    judged = [evidence for evidence in verdict.losses if len(evidence.used)]
    if not judged:
        return None
    figure, grid = panels(rows=len(judged))
    for axes, evidence in zip(grid, judged, strict=True):
        used, curve = evidence.used, evidence.optimum
        multipliers = evidence.planned["width_multiplier"]
        axes.plot(used["width_multiplier"], used["val_loss"], "o", color=LOSS, markersize=4.5)
        if isinstance(curve, LossCurve):
            _draw_curve(axes, curve)
        if evidence.inadmissible:
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.12 * (high - low))
            crosses(
                axes,
                evidence.inadmissible,
                [0.96] * len(evidence.inadmissible),
                "collapsed or diverged",
                transform=axes.get_xaxis_transform(),
            )
        if isinstance(curve, LossCurve) and curve.recommended:
            floor = float(curve.curve(curve.optimum)) + curve.tolerance
            axes.axhline(floor, color=FAINT, linewidth=0.9, linestyle=DASHES)
            end_labels(axes, [(floor, f"optimum\n+ {curve.tolerance:g} nats", FAINT)])
        title(axes, f"Loss at equal {BUDGETS[evidence.hold][1]}")
        widths_axis(axes, list(multipliers), "D / d_model", "x")
        axes.set_ylabel("held-out loss (nats per token)")
    return figure


def _draw_curve(axes: Axes, curve: LossCurve) -> None:
    fine = np.geomspace(curve.multiplier[0], curve.multiplier[-1], 200)
    axes.plot(fine, curve.curve(fine), color=LOSS, linewidth=1.4)
    if not curve.recommended:
        return
    axes.axvspan(*curve.interval, color=LOSS, alpha=0.13, linewidth=0)
    if curve.headline is None:
        return
    chosen = float(curve.multiplier[curve.headline])
    at = float(curve.curve(chosen))
    axes.plot(chosen, at, "o", markersize=11, markerfacecolor="none", color=INK)
    side = 0.0 if curve.headline == 0 else 0.5  # of the label, on the line down to it
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.16 * (high - low), high)  # room for the label
    axes.annotate(
        f"{multiple(chosen)} chosen",
        (chosen, at),
        xytext=(chosen, 0.03),
        textcoords=axes.get_xaxis_transform(),
        arrowprops={
            "arrowstyle": "-",
            "color": INK,
            "linewidth": 0.8,
            "shrinkB": 6,
            "relpos": (side, 1),
        },
        ha="left" if side == 0 else "center",
        color=INK,
        fontsize=9,
        fontweight="bold",
    )


def rank_laws(verdict: GroupVerdict) -> Figure | None:
    """Soft and hard rank against D with their laws, bands, and what was left out."""
    used, left_out = verdict.spectral.used, verdict.spectral.left_out
    if used.empty:
        return None
    figure, (axes,) = panels()
    labels: list[tuple[float, str, Any]] = []
    for name, colour in (("soft_rank", SOFT), ("hard_rank", HARD)):
        axes.plot(used["D"], used[name], "o", color=colour, markersize=4.5)
        law = verdict.spectral.laws[name]
        text = name.replace("_", " ")
        end = float(used.loc[used["D"] == used["D"].max(), name].median())
        if isinstance(law, PowerLaw):
            fine = np.geomspace(*law.x_range, 100)
            axes.plot(fine, law.predict(fine), color=colour, linewidth=1.4)
            axes.fill_between(fine, *law.band(fine), color=colour, alpha=0.14, linewidth=0)
            text += f" ~ D^{law.beta:.2f}\n{interval(law.beta_interval)}"
            end = float(law.predict(law.x_range[1]))
        labels.append((end, text, colour))
    measured = left_out[np.isfinite(left_out["soft_rank"])]
    if len(measured):
        ranks = [*measured["hard_rank"], *measured["soft_rank"]]
        crosses(axes, [*measured["D"]] * 2, ranks, "left out")
    log_ranks(axes, "rank (directions)")
    widths_axis(axes, [*used["D"], *left_out["D"]], "FFN width D")
    end_labels(axes, labels, gap=0.15)
    title(axes, "Rank laws, 90 % interval")
    return figure


def effective_dimension(verdict: GroupVerdict) -> Figure | None:
    """eDim against D, and how fast it still grows between neighbouring widths."""
    used, growth = verdict.spectral.used, verdict.spectral.elasticity["edim"]
    if used.empty or isinstance(growth, Refusal):
        return None
    figure, (above, below) = panels(rows=2, size=(5.2, 2.7))
    means = used.groupby("D")["edim"].median()
    above.plot(used["D"], used["edim"], "o", color=EDIM, markersize=4.5)
    above.plot(means.index, means, color=EDIM, linewidth=1.2)
    log_ranks(above, "eDim (directions)")
    widths_axis(above, list(used["D"]), "FFN width D")
    title(above, "Effective dimension")

    for step in growth.steps:
        middle = np.sqrt(step.low * step.high)
        below.plot([step.low, step.high], [step.value] * 2, color=EDIM, linewidth=2)
        if step.interval is not None:
            below.plot([middle] * 2, step.interval, color=EDIM, linewidth=1, alpha=0.8)
    below.axhline(0, color=FAINT, linewidth=0.8)
    below.axhline(PLATEAU, color=FAINT, linewidth=0.9, linestyle=DASHES)
    widths_axis(below, list(used["D"]), "FFN width D")
    below.set_ylabel("d ln eDim / d ln D")
    end_labels(below, [(PLATEAU, f"plateau\nbelow {PLATEAU:g}", FAINT)])
    title(below, "Local elasticity, 90 % interval")
    return figure


def training_curves(verdict: GroupVerdict, tables: SweepTables) -> Figure | None:
    """Held-out loss against tokens, a line a run, coloured by width."""
    deciding = verdict.deciding
    cells = verdict.trials if deciding is None else deciding.planned
    rows = tables.of(tables.curves, cells)
    rows = rows[(rows["kind"] == "evaluation") & (rows["tokens"] > 0)]
    rows = rows[np.isfinite(rows["val_loss"].astype(float))]
    if rows.empty:
        return None
    figure, (axes,) = panels()
    widths = sorted({float(m) for m in cells["width_multiplier"].dropna()})
    colours = dict(zip(widths, width_colours(len(widths)), strict=True))
    ends: dict[float, float] = {}
    for _, cell in cells.iterrows():
        own = rows[rows["id"] == cell["id"]]
        if own.empty:
            continue
        multiplier = float(cell["width_multiplier"])
        axes.plot(
            own["tokens"],
            own["val_loss"],
            color=colours[multiplier],
            linewidth=1.3,
            linestyle="-" if cell["state"] == "completed" else (0, (2, 2)),
        )
        ends[multiplier] = float(own["val_loss"].iloc[-1])
    tokens_axis(axes)
    axes.set_ylabel("held-out loss (nats per token)")
    end_labels(axes, [(ends[m], multiple(m), colours[m]) for m in ends])
    budget = "all cells" if deciding is None else f"equal {BUDGETS[deciding.hold][1]}"
    title(axes, f"Training, {budget}")
    return figure


def final_spectra(verdict: GroupVerdict, tables: SweepTables) -> Figure | None:
    """Share of the variance by direction in the last snapshot, the layers' geometric mean."""
    used = verdict.spectral.used
    if used.empty:
        return None
    first = used[used["replicate"] == used["replicate"].min()]
    rows = tables.of(tables.eigenvalues, first)
    rows = rows[rows["eigenvalues"].notna()]
    if rows.empty:
        return None
    figure, (axes,) = panels()
    cells = first[first["id"].isin(rows["id"])].sort_values("D")
    labels: list[tuple[float, str, Any]] = []
    for (_, cell), colour in zip(cells.iterrows(), width_colours(len(cells)), strict=True):
        share = _mean_shares(rows.loc[rows["id"] == cell["id"], "eigenvalues"])
        axes.plot(np.arange(1, len(share) + 1), share, color=colour, linewidth=1.3)
        labels.append((float(share[-1]), f"D = {cell['D']:.0f}", colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-8))
    axes.set_ylabel("share of the variance")
    decades(axes)
    axes.set_xlabel("direction, by variance")
    floor = axes.get_ylim()[0]
    end_labels(axes, [(max(end, floor), text, colour) for end, text, colour in labels])
    title(axes, "Spectra after training")
    return figure


def _mean_shares(spectra: pd.Series) -> NDArray[np.float64]:
    """Geometric mean over layers of the normalised spectra, cut where a layer has no variance."""
    logs = []
    for values in spectra:
        eigenvalues = np.asarray(values, float)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs.append(np.log(eigenvalues / eigenvalues.sum()))
    mean = np.mean(logs, axis=0)
    return np.asarray(np.exp(mean[np.isfinite(mean)]))
