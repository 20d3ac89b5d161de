"""Claims about what the figures of a report draw."""

from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

import numpy as np
import pytest

from analysis.figures import overview_figures, rank_figures
from analysis.figures import verdict_figures as figures
from analysis.figures.style import render
from analysis.laws.power_law import PowerLaw
from analysis.tables.sweep_tables import SweepTables, load_sweep
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.loss_over_width import LossCurve
from analysis.verdict.recommend import recommend
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]


def judged(sweep: LocalStorage) -> tuple[GroupVerdict, SweepTables]:
    tables = load_sweep(sweep)
    (verdict,) = recommend(tables).groups
    return verdict, tables


def words(figure: Any) -> str:
    """Everything that is written in a figure."""
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.long
def test_the_band_of_the_loss_is_narrowest_at_the_chosen_width(build_sweep: Build) -> None:
    verdict, _ = judged(build_sweep(seeds=[0, 1, 2]))
    assert verdict.deciding is not None
    curve = verdict.deciding.optimum
    assert isinstance(curve, LossCurve)
    figure = figures.loss_optimum(verdict)
    assert figure is not None
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices
    for i, multiplier in enumerate(curve.multiplier):
        here = corners[np.isclose(corners[:, 0], multiplier), 1]
        assert np.ptp(here) == pytest.approx(np.ptp(curve.over_headline[i]), abs=1e-9)
    assert np.ptp(curve.over_headline[curve.headline]) == 0


def test_the_width_law_is_drawn_over_the_widths_that_were_measured(build_sweep: Build) -> None:
    verdict, _ = judged(build_sweep(seeds=[0, 1]))
    law = verdict.spectral.width_law
    assert isinstance(law, PowerLaw)
    figure = figures.width_law(verdict)
    assert figure is not None
    points, line = figure.axes[0].get_lines()
    assert len(points.get_xdata()) == len(verdict.spectral.used)
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == pytest.approx(law.x_range)
    assert f"loss ~ D^{law.beta:.3f}" in words(figure)


@pytest.mark.long
def test_budgets_are_compared_from_two_on(build_sweep: Build) -> None:
    verdict, _ = judged(build_sweep())
    assert figures.loss_at_budgets(verdict) is None
    both, _ = judged(build_sweep(holds=("params", "flops"), name="both"))
    figure = figures.loss_at_budgets(both)
    assert figure is not None
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 200]
    assert len(lines) == sum(isinstance(found.found, LossCurve) for found in both.at_budgets) == 2
    assert all(min(line.get_ydata()) == 0 for line in lines)


@pytest.mark.long
def test_the_heat_map_is_of_the_recommended_width(build_sweep: Build) -> None:
    verdict, tables = judged(build_sweep(seeds=[1, 2]))
    trial = verdict.representative
    assert trial is not None
    assert verdict.width_multiplier is not None
    assert trial["width_multiplier"] == pytest.approx(verdict.width_multiplier, rel=0.05)
    assert trial["replicate"] == 1
    figure = rank_figures.layer_ranks(verdict, tables)
    assert figure is not None
    above = figure.axes[0]
    (mesh,) = [drawn for drawn in above.collections if drawn.get_array() is not None]
    own = tables.spectra[tables.spectra["id"] == trial["id"]]
    ranks = own.pivot(index="layer", columns="step", values="hard_rank").to_numpy(float)
    assert np.asarray(mesh.get_array()).reshape(ranks.shape) == pytest.approx(ranks)


def test_without_a_recommendation_the_middle_width_stands_for_the_group(build_sweep: Build) -> None:
    verdict, _ = judged(build_sweep(multipliers=[1.0, 2.0, 8.0], holds=("none",)))
    trial = verdict.representative
    assert trial is not None
    assert trial["width_multiplier"] == 2


@pytest.mark.long
def test_layers_are_drawn_with_what_is_advised(build_sweep: Build) -> None:
    verdict, _ = judged(build_sweep(seeds=[0, 1, 2]))
    advice = verdict.layers.advice
    assert hasattr(advice, "layers")
    first, *others = advice.layers
    kept = (replace(grown, advice="keep") for grown in others)
    layers = (replace(first, advice="widen"), *kept)
    figure = rank_figures.layer_growth(replace(advice, layers=layers))
    assert figure is not None
    assert words(figure) == "widen"


def test_a_spectrum_is_drawn_with_few_points_and_both_ends(build_sweep: Build) -> None:
    verdict, tables = judged(build_sweep(multipliers=[2.0, 8.0], holds=("none",)))
    figure = rank_figures.final_spectra(verdict, tables)
    assert figure is not None
    for line, width in zip(figure.axes[0].get_lines(), (128, 512), strict=True):
        x = line.get_xdata()
        assert (x[0], x[-1]) == (1, width)
        assert len(x) < 100


def test_labels_thin_out_where_there_are_many_widths(build_sweep: Build) -> None:
    many = [1 + 0.25 * i for i in range(20)]
    verdict, tables = judged(build_sweep(multipliers=many, holds=("none",)))
    figure = figures.training_curves(verdict, tables)
    assert figure is not None
    assert len(figure.axes[0].get_lines()) == 20
    assert len(figure.axes[0].texts) == figures.MOST_LABELS


def test_nothing_to_show_is_no_figure(build_sweep: Build) -> None:
    verdict, tables = judged(build_sweep(outcomes=lambda cell: "waiting"))
    advice = verdict.layers.advice
    assert list(figures.figures_of(verdict, tables, advice)) == []


@pytest.mark.long
def test_the_same_numbers_give_the_same_bytes(build_sweep: Build) -> None:
    verdict, tables = judged(build_sweep(multipliers=[1.0, 2.0, 4.0]))

    def drawn() -> bytes:
        figure = rank_figures.layer_ranks(verdict, tables)
        assert figure is not None
        return render(figure)["svg"]

    assert drawn() == drawn()


def test_a_dollar_sign_in_a_label_is_one_and_nothing_reaches_the_terminal(
    build_sweep: Build, recwarn: pytest.WarningsRecorder
) -> None:
    odd = "$x_{$ 宽 " + 150 * "w"
    sweep = build_sweep({("gpt2", odd): {}, ("gpt2", "pre"): {}}, multipliers=[1.0, 2.0, 4.0])
    recommendation = recommend(load_sweep(sweep))
    overview = overview_figures.exponents(recommendation)
    assert overview is not None
    drawn = unescape(render(overview)["svg"].decode())
    assert odd[:8] in drawn
    assert not recwarn.list
