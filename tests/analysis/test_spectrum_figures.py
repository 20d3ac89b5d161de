"""The pictures of a trial say what its spectra say, and leave nothing behind in the process."""

import gc
import weakref
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import _pylab_helpers
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from analysis.figures.spectrum_figures import (
    COLUMNS,
    CURVE_POINTS,
    LEAST_SHARE,
    MOST_CURVES,
    MOST_LAYERS,
    curve_directions,
    evenly,
    layer_snapshots,
    rank_heat_map,
    shown_layers,
    spectrum_over_training,
)
from analysis.figures.style import pixels
from analysis.spectrum import measure
from trialstore.records import SPECTRA_SCHEMA

D = 64


def row(step: int, layer: int, **changes: Any) -> dict[str, Any]:
    """A power-law spectrum that steepens with step and layer."""
    eigenvalues = np.arange(1, D + 1) ** -(0.5 + step / 1000 + layer / 10)
    found = measure(eigenvalues)
    return {
        "step": step, "tokens": step, "time_ms": step, "site": "post", "layer": layer,
        "bucket": "all", "D": D, "N": 10 * D, "method": "exact", "status": "well sampled",
        "eigenvalues": eigenvalues.tolist(),
        "hard_rank": float(found.hard_rank), "soft_rank": float(found.soft_rank),
        **changes,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SPECTRA_SCHEMA).select(COLUMNS)


def grid(steps: list[int], depth: int = 3, **changes: Any) -> pa.Table:
    return table([row(step, layer, **changes) for step in steps for layer in range(depth)])


def meshes(figure: Figure) -> list[QuadMesh]:
    """The maps of hard and soft rank; a colour bar is another mesh, of no title."""
    return [
        child
        for axes in figure.axes
        if axes.get_title(loc="left")
        for child in axes.get_children()
        if isinstance(child, QuadMesh)
    ]


def curves(figure: Figure) -> dict[str, list[Any]]:
    return {axes.get_title(loc="left"): list(axes.lines) for axes in figure.axes if axes.lines}


def captions(figure: Figure) -> str:
    return figure.get_suptitle()


# --- snapshots -----------------------------------------------------------------------------


def test_shares_are_those_of_the_eigenvalues_at_the_drawn_directions() -> None:
    (snapshot,) = layer_snapshots(table([row(10, 0)]))
    eigenvalues = np.asarray(row(10, 0)["eigenvalues"])
    expected = eigenvalues[curve_directions(D) - 1] / eigenvalues.sum()
    np.testing.assert_allclose(snapshot.shares, expected, rtol=1e-6)


def test_nodes_with_whole_weights_give_the_curve_of_their_eigenvalues() -> None:
    nodes, weights = [8.0, 2.0, 0.5], [1.0, 15.0, 48.0]
    estimated = {"method": "lanczos", "eigenvalues": None, "nodes": nodes, "weights": weights}
    (of_nodes,) = layer_snapshots(table([row(0, 0, **estimated)]))
    spread = np.repeat(nodes, [1, 15, 48]).tolist()
    (of_values,) = layer_snapshots(table([row(0, 0, eigenvalues=spread)]))
    np.testing.assert_allclose(of_nodes.shares, of_values.shares, rtol=1e-6)


def test_buckets_are_left_out() -> None:
    rows = [row(0, 0), row(0, 0, bucket="tail")]
    assert len(layer_snapshots(table(rows))) == 1


def test_of_layers_that_are_not_shown_no_curve_is_kept() -> None:
    snapshots = layer_snapshots(grid([0], depth=24))
    assert [s.layer for s in snapshots if s.shares is not None] == shown_layers(range(24))
    assert shown_layers(range(24)) == [0, 8, 15, 23]


def test_a_row_without_any_spectrum_has_ranks_and_no_curve() -> None:
    (snapshot,) = layer_snapshots(table([row(0, 0, eigenvalues=None)]))
    assert snapshot.shares is None
    assert snapshot.hard_rank > 1


@given(st.integers(1, 100_000))
def test_a_curve_runs_from_the_first_direction_to_the_last_in_few_points(width: int) -> None:
    directions = curve_directions(width)
    assert (directions[0], directions[-1]) == (1, width)
    assert (np.diff(directions) > 0).all()
    assert len(directions) <= CURVE_POINTS


@given(st.lists(st.integers(), unique=True, max_size=50), st.integers(2, 20))
def test_what_is_chosen_evenly_keeps_order_and_both_ends(items: list[int], most: int) -> None:
    chosen = evenly(items, most)
    assert len(chosen) == min(len(items), most)
    assert [item for item in items if item in set(chosen)] == chosen
    assert chosen[:1] + chosen[-1:] == items[:1] + items[-1:]


# --- the heat map --------------------------------------------------------------------------


def test_a_cell_holds_the_rank_of_its_layer_and_step() -> None:
    figure = rank_heat_map(layer_snapshots(grid([0, 50, 100])))
    assert figure is not None
    for mesh, name in zip(meshes(figure), ("hard_rank", "soft_rank"), strict=True):
        expected = [[row(step, layer)[name] for step in (0, 50, 100)] for layer in range(3)]
        np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(3, 3), expected)


def test_steps_lie_where_they_are_and_layer_zero_at_the_bottom() -> None:
    figure = rank_heat_map(layer_snapshots(grid([0, 10, 100])))
    assert figure is not None
    corners = np.asarray(meshes(figure)[0].get_coordinates())
    np.testing.assert_allclose(corners[0, :, 0], [-5, 5, 55, 145])
    np.testing.assert_allclose(corners[:, 0, 1], [-0.5, 0.5, 1.5, 2.5])
    low, high = figure.axes[0].get_ylim()
    assert low < high


def test_a_layer_that_was_not_measured_is_empty() -> None:
    rows = [row(0, 0), row(0, 1), row(10, 0)]
    figure = rank_heat_map(layer_snapshots(table(rows)))
    assert figure is not None
    ranks = np.ma.filled(np.ma.asarray(meshes(figure)[0].get_array()), np.nan).reshape(2, 2)
    assert np.isnan(ranks).tolist() == [[False, False], [False, True]]


def test_colours_do_not_move_as_long_as_ranks_stay_between_round_numbers() -> None:
    limits = set()
    for ranks in ((11, 40), (12, 45), (19, 21)):
        rows = [row(step, 0, hard_rank=float(rank)) for step, rank in enumerate(ranks)]
        figure = rank_heat_map(layer_snapshots(table(rows)))
        assert figure is not None
        limits.add(meshes(figure)[0].get_clim())
    assert limits == {(10, 50)}


def test_undersampled_snapshots_are_hatched_and_said() -> None:
    rows = [row(0, 0), row(10, 0, status="undersampled")]
    figure = rank_heat_map(layer_snapshots(table(rows)))
    assert figure is not None
    hatched = [c for c in figure.axes[0].collections if getattr(c, "get_hatch", lambda: None)()]
    assert len(hatched) == 1
    assert "partly undersampled" in captions(figure)
    whole = rank_heat_map(layer_snapshots(table(rows[1:])))
    assert whole is not None
    assert ", undersampled" in captions(whole)
    healthy = rank_heat_map(layer_snapshots(table(rows[:1])))
    assert healthy is not None
    assert "undersampled" not in captions(healthy)


def test_a_picture_says_site_width_and_newest_step() -> None:
    for draw in (rank_heat_map, spectrum_over_training):
        figure = draw(layer_snapshots(grid([0, 1234], site="pre")))
        assert figure is not None
        assert captions(figure) == "pre, D = 64, step 1234"


# --- the curves ----------------------------------------------------------------------------


def test_a_curve_is_drawn_for_every_step_up_to_a_dozen_and_always_the_last() -> None:
    figure = spectrum_over_training(layer_snapshots(grid(list(range(0, 500, 10)), depth=6)))
    assert figure is not None
    drawn = curves(figure)
    assert len(drawn) == MOST_LAYERS
    assert {len(lines) for lines in drawn.values()} == {MOST_CURVES}
    (last,) = [s for s in layer_snapshots(grid([490], depth=6)) if s.layer == 5]
    np.testing.assert_allclose(drawn["Layer 5"][-1].get_ydata(), last.shares)


def test_every_layer_has_the_same_axes() -> None:
    figure = spectrum_over_training(layer_snapshots(grid([0, 10], depth=6)))
    assert figure is not None
    panels = [axes for axes in figure.axes if axes.lines]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1
    assert {(axes.get_xscale(), axes.get_yscale()) for axes in panels} == {("log", "log")}


def test_undersampled_curves_are_dashed() -> None:
    rows = [row(0, 0), row(10, 0, status="undersampled")]
    figure = spectrum_over_training(layer_snapshots(table(rows)))
    assert figure is not None
    assert [line.get_linestyle() for line in curves(figure)["Layer 0"]] == ["-", "--"]


def test_directions_without_variance_are_not_drawn() -> None:
    half = [1.0] * (D // 2) + [0.0] * (D // 2)
    figure = spectrum_over_training(layer_snapshots(table([row(0, 0, eigenvalues=half)])))
    assert figure is not None
    shares = np.asarray(curves(figure)["Layer 0"][0].get_ydata())
    drawn = curve_directions(D)[np.isfinite(shares)]
    assert drawn.max() <= D // 2
    assert figure.axes[0].get_ylim()[0] >= LEAST_SHARE


# --- edges ---------------------------------------------------------------------------------


def test_where_there_is_nothing_there_is_no_picture() -> None:
    assert rank_heat_map([]) is None
    assert spectrum_over_training([]) is None
    assert spectrum_over_training(layer_snapshots(grid([0], eigenvalues=None))) is None


@pytest.mark.parametrize(
    ("steps", "depth", "changes"),
    [
        ([0], 1, {}),
        ([7], 2, {}),
        (list(range(100)), 3, {}),
        ([0, 1], 48, {}),
        ([0, 10], 2, {"hard_rank": None, "soft_rank": None}),
        ([0, 10], 2, {"hard_rank": float("nan")}),
        ([0, 10], 2, {"eigenvalues": [0.0] * D, "hard_rank": 1.0, "soft_rank": 1.0}),
        ([0, 10], 2, {"eigenvalues": [1.0] * D, "hard_rank": 64.0, "soft_rank": 64.0}),
        ([0, 10], 1, {"eigenvalues": [1.0], "D": 1, "hard_rank": 1.0, "soft_rank": 1.0}),
        ([0, 10], 2, {"status": "undersampled"}),
    ],
    ids=[
        "one snapshot", "two layers", "many steps", "deep", "no ranks", "not a number",
        "no variance", "flat", "width one", "undersampled",
    ],
)  # fmt: skip
@pytest.mark.long
def test_whatever_was_measured_can_be_drawn_on_a_square(
    steps: list[int], depth: int, changes: dict[str, Any]
) -> None:
    snapshots = layer_snapshots(grid(steps, depth, **changes))
    for draw in (rank_heat_map, spectrum_over_training):
        figure = draw(snapshots)
        assert figure is not None
        image = pixels(figure, 100)
        assert image.shape == (370, 370, 3)
        assert image.min() < 100  # there is something on it


@pytest.mark.long
def test_a_picture_leaves_nothing_behind() -> None:
    figure = rank_heat_map(layer_snapshots(grid([0, 10])))
    assert figure is not None
    pixels(figure, 50)
    kept = weakref.ref(figure)
    del figure
    gc.collect()
    assert kept() is None
    assert not _pylab_helpers.Gcf.figs
