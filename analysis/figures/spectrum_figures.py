"""The figures of one trial: ranks by layer and step, and the spectrum over training.

A process that lives for days draws them many times while a trial runs. So each drawing is a new
`Figure` without global state, and each spectrum is cut to the points that a figure can show. The
figures are square with large text, because MLflow shrinks images to 256 pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from analysis.figures.style import (
    BROKEN,
    DASHES,
    FAINT,
    INK,
    RULE,
    decades,
    log_ticks,
    panels,
    round_ticks,
    title,
)
from analysis.settings import SAMPLES_PER_DIMENSION
from analysis.spectrum import expand, normalised
from trialstore.records import ALL_TOKENS

Floats = NDArray[np.float64]

#: Columns that `layer_snapshots` needs in a table of spectra.
COLUMNS = [
    "step", "site", "layer", "bucket", "D", "status", "hard_rank", "soft_rank",
    "eigenvalues", "nodes", "weights",
]  # fmt: skip

SIDE = 3.7  # inches
MOST_CURVES = 12
MOST_LAYERS = 4
CURVE_POINTS = 96  # of one spectrum: a panel is a few hundred pixels wide
#: A smaller share of the variance is a rounding error and is not drawn.
LEAST_SHARE = 1e-9
#: Late steps are dark, because readers look for them. The lightest shade would vanish on white.
_STEPS = ListedColormap(colormaps["viridis"](np.linspace(0.88, 0.0, 256)))


@dataclass(frozen=True)
class LayerSnapshot:
    """Ranks and spectrum of one layer at one step.

    `shares` [k] are the shares of the variance at the directions `curve_directions(D)`. They are
    None for a layer whose spectrum is not drawn.
    """

    step: int
    site: str
    layer: int
    D: int
    hard_rank: float
    soft_rank: float
    undersampled: bool
    shares: Floats | None


def layer_snapshots(rows: pa.Table) -> list[LayerSnapshot]:
    """Return the snapshots in a table of spectra that has at least `COLUMNS`.

    Spectra of token buckets are skipped. Only `shown_layers` get their shares.
    """
    rows = rows.filter(pc.equal(rows.column("bucket"), ALL_TOKENS))
    layers = rows.column("layer").to_pylist()
    shown = set(shown_layers(layers))
    plain = rows.drop_columns(["eigenvalues", "nodes", "weights"]).to_pylist()
    return [
        LayerSnapshot(
            row["step"],
            row["site"],
            row["layer"],
            row["D"],
            _number(row["hard_rank"]),
            _number(row["soft_rank"]),
            row["status"] == "undersampled",
            _shares(rows, place, row["D"]) if row["layer"] in shown else None,
        )
        for place, row in enumerate(plain)
    ]


def snapshots_of(rows: pd.DataFrame) -> list[LayerSnapshot]:
    """Return the snapshots in rows of `SweepTables.spectra`, which hold ranks but no spectra."""
    return [
        LayerSnapshot(
            step, site, layer, D, float(hard), float(soft), status == "undersampled", None
        )
        for step, site, layer, D, hard, soft, status in zip(
            *(rows[name] for name in ("step", "site", "layer", "D", "hard_rank", "soft_rank")),
            rows["status"],
            strict=True,
        )
    ]


def shown_layers(layers: Iterable[int]) -> list[int]:
    """Return the layers whose spectra are drawn: the first, the last, and two between them."""
    return evenly(sorted(set(layers)), MOST_LAYERS)


def curve_directions(D: int) -> NDArray[np.int64]:
    """Return the directions [k] at which a curve over D directions is drawn, counted from 1.

    They are spaced evenly in the logarithm, at most `CURVE_POINTS`, from 1 to D.
    """
    spaced = np.geomspace(1, D, CURVE_POINTS)
    return np.unique(np.round(spaced).astype(np.int64))


def evenly(items: Sequence[int], most: int) -> list[int]:
    """Return at most `most` items at even distances, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, most)]


def rank_heat_map(snapshots: Sequence[LayerSnapshot]) -> Figure | None:
    """Draw hard and soft rank of every layer (y, from 0 at the bottom) at every step (x).

    Steps may be unevenly spaced. Cells without a measurement are grey, undersampled ones hatched.
    None without snapshots.
    """
    if not snapshots:
        return None
    steps = sorted({snapshot.step for snapshot in snapshots})
    depth = 1 + max(snapshot.layer for snapshot in snapshots)
    hard, soft, undersampled = (np.full((depth, len(steps)), np.nan) for _ in range(3))
    place = {step: index for index, step in enumerate(steps)}
    for snapshot in snapshots:
        cell = snapshot.layer, place[snapshot.step]
        hard[cell], soft[cell] = snapshot.hard_rank, snapshot.soft_rank
        undersampled[cell] = snapshot.undersampled
    figure, (above, below) = panels(rows=2, size=(SIDE, SIDE / 2))
    for axes, ranks, name in ((above, hard, "Hard rank"), (below, soft, "Soft rank")):
        _draw_map(figure, axes, steps, ranks)
        _hatch(axes, steps, undersampled)
        title(axes, f"{name} (directions)")
    above.tick_params(labelbottom=False)
    below.set_xlabel("step")
    _caption(figure, snapshots)
    return figure


def spectrum_over_training(snapshots: Sequence[LayerSnapshot]) -> Figure | None:
    """Draw the share of the variance per direction, log-log: a panel per layer, a curve per step.

    Shows up to `MOST_LAYERS` layers and `MOST_CURVES` steps. Curves of undersampled snapshots are
    dashed. None without a snapshot that has shares.
    """
    drawn = [snapshot for snapshot in snapshots if snapshot.shares is not None]
    if not drawn:
        return None
    layers = shown_layers(snapshot.layer for snapshot in drawn)
    chosen = evenly(sorted({snapshot.step for snapshot in drawn}), MOST_CURVES)
    columns = 1 if len(layers) < 3 else 2
    rows = -(-len(layers) // columns)
    figure, grid = panels(rows, columns, size=(SIDE / columns, SIDE / rows))
    colour = ScalarMappable(Normalize(chosen[0], max(chosen[-1], chosen[0] + 1)), _STEPS)
    for axes, layer in zip(grid, layers, strict=False):
        of_layer = [s for s in drawn if s.layer == layer and s.step in set(chosen)]
        for snapshot in sorted(of_layer, key=lambda s: s.step):
            _draw_curve(axes, snapshot, colour.to_rgba(np.asarray(snapshot.step)))
        axes.set_xscale("log")
        axes.set_yscale("log")
        title(axes, f"Layer {layer}")
    for axes in grid[len(layers) :]:
        axes.set_visible(False)
    _share_limits(grid[: len(layers)], columns)
    figure.supylabel("share of the variance", fontsize=9.5)
    figure.supxlabel("direction, sorted by variance", fontsize=9.5)
    bar = figure.colorbar(colour, ax=grid, label="step", fraction=0.05, pad=0.02)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _plain(bar)
    _caption(figure, drawn)
    return figure


# --- the snapshots -------------------------------------------------------------------------


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _shares(rows: pa.Table, place: int, D: int) -> Floats | None:
    """The shares at `curve_directions`, from eigenvalues or from nodes with weights."""
    eigenvalues = _list(rows, "eigenvalues", place)
    if eigenvalues is None:
        nodes, weights = _list(rows, "nodes", place), _list(rows, "weights", place)
        if nodes is None or weights is None:
            return None
        eigenvalues = expand(nodes, weights)
    shares: Floats = normalised(eigenvalues)[curve_directions(D) - 1]
    return shares


def _list(rows: pa.Table, column: str, place: int) -> Floats | None:
    values = rows.column(column)[place].values
    return None if values is None else np.asarray(values, np.float64)


# --- the heat map --------------------------------------------------------------------------


def _draw_map(figure: Figure, axes: Axes, steps: Sequence[int], ranks: Floats) -> None:
    axes.grid(False)
    axes.set_facecolor(RULE)
    low, high = _round_outward(ranks)
    norm = LogNorm(low, high)
    mesh = axes.pcolormesh(
        _edges(steps), _layer_edges(ranks), ranks, norm=norm, cmap="viridis", rasterized=True
    )
    axes.set_ylabel("layer")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(_step_text))
    bar = figure.colorbar(mesh, ax=axes, fraction=0.06, pad=0.02)
    log_ticks(bar.ax.yaxis, low, high)
    _plain(bar)


def _round_outward(ranks: Floats) -> tuple[float, float]:
    """Round bounds around all ranks, so that colours stay the same while training goes on."""
    known = ranks[np.isfinite(ranks) & (ranks > 0)]
    if not known.size:
        return 1.0, 10.0
    rounds = round_ticks((1, 2, 5))
    low = max(tick for tick in rounds if tick <= known.min())
    high = min(tick for tick in rounds if tick >= known.max() and tick > low)
    return low, high


def _edges(steps: Sequence[int]) -> Floats:
    """Cell edges [n + 1] half-way between neighbouring steps."""
    at = np.asarray(steps, float)
    if len(at) == 1:
        return np.asarray([at[0] - 0.5, at[0] + 0.5])
    middles = (at[1:] + at[:-1]) / 2
    return np.concatenate([[2 * at[0] - middles[0]], middles, [2 * at[-1] - middles[-1]]])


def _layer_edges(ranks: Floats) -> Floats:
    return np.arange(len(ranks) + 1, dtype=float) - 0.5


def _hatch(axes: Axes, steps: Sequence[int], undersampled: Floats) -> None:
    marked = np.ma.masked_where(undersampled != 1, undersampled)
    if marked.count():
        with_hatch = axes.pcolor(_edges(steps), _layer_edges(undersampled), marked, alpha=0.0)
        with_hatch.set_hatch("////")


# --- the curves ----------------------------------------------------------------------------


def _draw_curve(axes: Axes, snapshot: LayerSnapshot, colour: Any) -> None:
    assert snapshot.shares is not None
    shares = np.where(snapshot.shares >= LEAST_SHARE, snapshot.shares, np.nan)
    axes.plot(
        curve_directions(snapshot.D),
        shares,
        color=colour,
        linewidth=1.2,
        linestyle=DASHES if snapshot.undersampled else "-",
        # One direction holds all the variance of a collapsed layer: a point, no line.
        marker="." if np.count_nonzero(np.isfinite(shares)) == 1 else None,
    )


def _share_limits(grid: Sequence[Axes], columns: int) -> None:
    """Give every layer the same limits, and label only the outer ticks."""
    lows, highs = zip(*(axes.get_ylim() for axes in grid), strict=True)
    right = max(axes.get_xlim()[1] for axes in grid)
    for place, axes in enumerate(grid):
        axes.set_ylim(max(min(lows), LEAST_SHARE), min(max(highs), 1.5))
        axes.set_xlim(0.85, right)
        decades(axes)
        axes.tick_params(
            labelleft=place % columns == 0, labelbottom=place + columns >= len(grid), which="both"
        )


# --- shared by both ------------------------------------------------------------------------


def _caption(figure: Figure, snapshots: Sequence[LayerSnapshot]) -> None:
    """Name the site, width and newest step, and warn if the spectra are undersampled."""
    widths = sorted({snapshot.D for snapshot in snapshots})
    width = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    newest = max(snapshot.step for snapshot in snapshots)
    site = "/".join(sorted({snapshot.site for snapshot in snapshots}))
    text, colour = f"{site}, D = {width}, step {newest}", FAINT
    doubtful = sum(snapshot.undersampled for snapshot in snapshots)
    if doubtful:
        extent = "" if doubtful == len(snapshots) else "partly "
        text += f", {extent}undersampled (N < {SAMPLES_PER_DIMENSION} D)"
        colour = BROKEN
    figure.suptitle(text, x=0.02, ha="left", fontsize=9, color=colour)


def _step_text(step: float, _: int) -> str:
    return f"{step / 1000:g}k" if abs(step) >= 10_000 else f"{step:g}"


def _plain(bar: Any) -> None:
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", length=2, color=FAINT, labelcolor=INK)
