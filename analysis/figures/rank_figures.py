"""The figures of the ranks and spectra: rank laws, elasticity of eDim, spectra, layers.

A function returns None if it has nothing to draw.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.figures.spectrum_figures import curve_directions, rank_heat_map, snapshots_of
from analysis.figures.style import (
    BROKEN,
    DASHES,
    EDIM,
    FAINT,
    HARD,
    SIZE,
    SOFT,
    crosses,
    decades,
    end_labels,
    log_ranks,
    panels,
    title,
    width_colours,
    widths_axis,
)
from analysis.laws.layers import LayerAdvice, LayerGrowth
from analysis.laws.power_law import PowerLaw
from analysis.laws.saturation import Saturation
from analysis.laws.spectral import PLATEAU, RANK_NAMES
from analysis.refusal import Refusal
from analysis.tables.sweep_tables import LAW_SITE, SweepTables
from analysis.verdict.group_verdict import GroupVerdict
from analysis.wording import interval

#: Ranks whose laws are drawn, and their colours.
DRAWN = {"soft_rank": SOFT, "hard_rank_debiased": HARD}


def rank_laws(verdict: GroupVerdict) -> Figure | None:
    """Draw soft and hard rank against D with their laws, 90 % bands, and left-out runs."""
    used, left_out = verdict.spectral.used, verdict.spectral.left_out
    if used.empty:
        return None
    figure, (axes,) = panels()
    labels: list[tuple[float, str, Any]] = []
    for name, colour in DRAWN.items():
        axes.plot(used["D"], used[name], "o", color=colour, markersize=4.5)
        law = verdict.spectral.laws[name]
        text = RANK_NAMES[name]
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
        ranks = [*measured["hard_rank_debiased"], *measured["soft_rank"]]
        crosses(axes, [*measured["D"]] * 2, ranks, "left out")
    log_ranks(axes, "rank (directions)")
    for name, colour in DRAWN.items():
        found = verdict.spectral.saturation[name]
        if isinstance(found, Saturation) and found.saturates:
            axes.axvline(found.onset, color=colour, linewidth=0.9, linestyle=DASHES)
    widths_axis(axes, [*used["D"], *left_out["D"]], "FFN width D")
    end_labels(axes, labels, gap=0.15)
    title(axes, "Rank laws, 90 % interval")
    return figure


def effective_dimension(verdict: GroupVerdict) -> Figure | None:
    """Draw eDim against D, and its elasticity d ln eDim / d ln D between neighbouring widths."""
    used, growth = verdict.spectral.used, verdict.spectral.elasticity["edim"]
    if used.empty or isinstance(growth, Refusal):
        return None
    figure, (above, below) = panels(rows=2, size=(SIZE[0], 0.62 * SIZE[1]))
    means = used.groupby("D")["edim"].median()
    above.plot(used["D"], used["edim"], "o", color=EDIM, markersize=4.5)
    above.plot(means.index, means, color=EDIM, linewidth=1.2)
    log_ranks(above, "eDim (directions)")
    widths_axis(above, list(used["D"]), "")  # the panel below has the label
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
    title(below, "Elasticity of eDim, 90 % interval")
    return figure


def final_spectra(verdict: GroupVerdict, tables: SweepTables) -> Figure | None:
    """Draw the share of the variance per direction at the last snapshot, one curve per width.

    Each curve is the geometric mean over the layers of the first replicate.
    """
    used = verdict.spectral.used
    if used.empty:
        return None
    first = used[used["replicate"] == used["replicate"].min()]
    rows = tables.of(tables.eigenvalues, first)
    rows = rows[rows["eigenvalues"].notna()]
    if rows.empty:
        return None
    figure, (axes,) = panels()
    cells = first[first["id"].isin(rows["id"])].drop_duplicates("D").sort_values("D")
    spectra = dict(iter(rows.groupby("id")["eigenvalues"]))
    labels: list[tuple[float, str, Any]] = []
    for (_, cell), colour in zip(cells.iterrows(), width_colours(len(cells)), strict=True):
        share = _mean_shares(spectra[cell["id"]])
        if not len(share):
            continue
        drawn = curve_directions(len(share))
        axes.plot(drawn, share[drawn - 1], color=colour, linewidth=1.3)
        labels.append((float(share[-1]), f"D = {cell['D']:.0f}", colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-8))
    axes.set_ylabel("share of the variance")
    decades(axes)
    axes.set_xlabel("direction, sorted by variance")
    floor = axes.get_ylim()[0]
    end_labels(axes, [(max(end, floor), text, colour) for end, text, colour in labels])
    title(axes, "Spectra after training")
    return figure


def _mean_shares(spectra: pd.Series) -> NDArray[np.float64]:
    """Geometric mean over layers of the normalised spectra, without directions that have no
    variance in some layer."""
    logs = []
    for values in spectra:
        eigenvalues = np.asarray(values, float)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs.append(np.log(eigenvalues / eigenvalues.sum()))
    mean = np.mean(logs, axis=0)
    return np.asarray(np.exp(mean[np.isfinite(mean)]))


def layer_growth(layers: LayerAdvice | Refusal) -> Figure | None:
    """Draw the elasticity of eDim of each layer minus that of all layers."""
    if isinstance(layers, Refusal):
        return None
    figure, (axes,) = panels(size=(SIZE[0], 1.3 + 0.22 * len(layers.layers)))
    for grown in layers.layers:
        colour = {"widen": EDIM, "narrow": BROKEN, "keep": FAINT}[grown.advice]
        axes.plot(_excess(grown), [grown.layer] * 2, color=colour, linewidth=2)
        axes.plot(grown.relative.beta, grown.layer, "o", color=colour, markersize=5)
        if grown.advice != "keep":
            end_labels(axes, [(grown.layer, grown.advice, colour)])
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.set_ylim(-0.6, len(layers.layers) - 0.4)  # layer 0 at the bottom, as in the heat maps
    axes.grid(False, axis="y")
    axes.set_ylabel("layer")
    axes.set_xlabel("d ln eDim / d ln D, layer minus all layers")
    title(axes, "eDim growth, joint 90 % intervals")
    return figure


def _excess(grown: LayerGrowth) -> tuple[float, float]:
    """The hull of the joint and the single interval: advice needs both on one side of zero."""
    pairs = (grown.relative_interval, grown.relative.beta_interval)
    return min(low for low, _ in pairs), max(high for _, high in pairs)


def layer_ranks(verdict: GroupVerdict, tables: SweepTables) -> Figure | None:
    """Draw hard and soft rank by layer and step for the representative trial of a group."""
    trial = verdict.representative
    return None if trial is None else heat_map(str(trial["id"]), tables)


def heat_map(trial_id: str, tables: SweepTables) -> Figure | None:
    """Draw hard and soft rank of one trial by layer and step."""
    rows = tables.spectra
    return rank_heat_map(snapshots_of(rows[(rows["id"] == trial_id) & (rows["site"] == LAW_SITE)]))
