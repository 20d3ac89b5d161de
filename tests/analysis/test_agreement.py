"""Claims that text, figures, tables, JSON and terminal of one analysis say the same numbers.

The SVG files hold their text as text, so what a reader sees in a figure can be read back; what
is drawn as lines and points is compared with the figures' own data.
"""

import io
import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.figures import overview_figures, rank_figures
from analysis.figures import verdict_figures as figures
from analysis.figures.rank_figures import DRAWN
from analysis.laws.spectral import RANK_NAMES
from analysis.pipeline import Analysis, analyse
from analysis.tables.sweep_tables import SweepTables, load_sweep
from analysis.verdict.budgets import CURRENCIES
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.recommend import recommend
from analysis.wording import bracketed, flops, interval, multiple, plural
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.long

Build = Callable[..., LocalStorage]


def flat(html: str) -> str:
    """The words of an HTML or SVG text, without markup, in one line."""
    body = re.sub(r"<(style|metadata)\b.*?</\1>", " ", html, flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


def cases() -> dict[str, dict[str, Any]]:
    return {
        "a recommendation": {"seeds": [0, 1, 2]},
        "one replicate": {},
        "a refusal": {"seeds": [0, 1], "multipliers": [1.0, 2.0, 4.0]},
        "broken cells": {
            "seeds": [0, 1],
            "outcomes": lambda c: "collapsed" if c.multiplier == 8 else "completed",
        },
    }


@pytest.fixture(scope="module", params=list(cases()))
def analysed(
    request: pytest.FixtureRequest, build_sweep_in: Build, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LocalStorage, Analysis]:
    built = build_sweep_in(tmp_path_factory.mktemp("sweep"), **cases()[request.param])
    return built, analysed_without_heat_maps(built)


def analysed_without_heat_maps(sweep: LocalStorage) -> Analysis:
    """The maps that lie beside a report take half the drawing, and none is looked at here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("analysis.pipeline.MOST_HEAT_MAPS", 0)
        return analyse(sweep)


@pytest.fixture
def sweep(analysed: tuple[LocalStorage, Analysis]) -> LocalStorage:
    return analysed[0]


@pytest.fixture(scope="module")
def judged(analysed: tuple[LocalStorage, Analysis]) -> tuple[GroupVerdict, SweepTables]:
    """The verdict that the figures are drawn from."""
    tables = load_sweep(analysed[0])
    (verdict,) = recommend(tables).groups
    return verdict, tables


def csv(sweep: LocalStorage, name: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(sweep.get(f"report/tables/{name}.csv")))


def lines(figure: Figure | None, place: int = 0) -> list[Any]:
    assert figure is not None
    return list(figure.axes[place].get_lines())


def read(sweep: LocalStorage) -> tuple[str, dict[str, Any], Callable[[str], str]]:
    """The report's words, the group of recommendation.json, and a figure's words by name."""
    page = flat(sweep.get("report/report.html").decode())
    (group,) = json.loads(sweep.get("report/recommendation.json"))["groups"]

    def figure(name: str) -> str:
        keys = sweep.list("report/figures")
        (key,) = [key for key in keys if key.endswith(f"{name}.svg")]
        return flat(sweep.get(key).decode())

    return page, group, figure


def test_the_verdict_is_one_in_text_figure_and_json(sweep: LocalStorage) -> None:
    page, group, figure = read(sweep)
    assert (group["verdict"] == "recommended") == (group["width_multiplier"] is not None)
    drawn = figure("loss-optimum")
    if group["verdict"] == "refused":
        assert "no recommendation" in page
        assert group["rule"].rstrip(".")[1:] in page
        assert " chosen" not in drawn
        assert group["choices"] == {}
        return
    if group["verdict"] == "plateau":
        low, high = map(multiple, group["plateau"])
        assert f"{low} to {high}" in page
        assert f"from {low} to {high} is within" in page
        assert " chosen" not in drawn
        return
    chosen = multiple(group["width_multiplier"])
    assert f"use {chosen} (D = " in group["sentence"]
    assert interval(group["interval"]) in group["sentence"]
    assert group["sentence"][1:] in page
    assert f"{chosen} chosen" in drawn
    (row,) = [
        w for w in group["alternatives"] if w["width_multiplier"] == group["width_multiplier"]
    ]
    assert re.search(
        rf"{re.escape(chosen)} {row['D']} {row['d_model']} {row['val_loss']:.3f} "
        rf"{row['val_loss_at_budget']:.3f} {row['excess_nats']:.3f} "
        rf"{row['excess_upper_nats']:.3f} chosen",
        page,
    )
    for choice in group["choices"].values():
        assert choice["sentence"][1:] in page
        if choice["width_multiplier"] is not None:
            assert multiple(choice["width_multiplier"]) in choice["sentence"]


def test_laws_are_one_in_text_figure_table_and_json(sweep: LocalStorage) -> None:
    page, group, figure = read(sweep)
    drawn = figure("rank-laws")
    csv = pd.read_csv(io.BytesIO(sweep.get("report/tables/laws.csv"))).set_index("quantity")
    for name, law in group["evidence"]["laws"].items():
        assert law["fitted"]
        assert f"{law['beta']:.2f} {bracketed(law['beta_interval'])}" in page
        assert csv.loc[name, "beta"] == pytest.approx(law["beta"])
        assert csv.loc[name, "beta_low"] == pytest.approx(law["beta_interval"][0])
        if name in DRAWN:
            assert f"{RANK_NAMES[name]} ~ D^{law['beta']:.2f}" in drawn
            assert interval(law["beta_interval"]) in drawn


def test_losses_are_one_in_figure_table_and_json(sweep: LocalStorage) -> None:
    _, group, _ = read(sweep)
    tables = load_sweep(sweep)
    (verdict,) = recommend(tables).groups
    figure = figures.loss_optimum(verdict)
    assert figure is not None
    points, *lines = figure.axes[0].get_lines()
    drawn = pd.Series(points.get_ydata(), index=points.get_xdata())
    for width in group["alternatives"]:
        own = drawn[np.isclose(drawn.index.astype(float), width["width_multiplier"])]
        assert len(own) == width["runs"]
        assert own.mean() == pytest.approx(width["val_loss"])
    loss = group["evidence"]["loss"]["params"]
    if loss["fitted"]:
        curve = lines[0]
        lowest = curve.get_xdata()[np.argmin(curve.get_ydata())]
        assert lowest == pytest.approx(loss["optimum"], rel=0.02)
    csv = sweep.get("report/tables/widths.csv") if group["alternatives"] else b""
    if csv:
        widths = pd.read_csv(io.BytesIO(csv))
        assert widths["val_loss"].tolist() == pytest.approx(
            [width["val_loss"] for width in group["alternatives"]]
        )


@pytest.mark.parametrize("analysed", ["broken cells"], indirect=True)
def test_a_cell_that_broke_is_marked_counted_and_told(sweep: LocalStorage) -> None:
    page, group, figure = read(sweep)
    assert group["evidence"]["cells"]["collapsed"] == 4
    assert group["evidence"]["loss"]["params"]["inadmissible"] == [pytest.approx(8, rel=0.1)]
    assert "collapsed or diverged" in figure("loss-optimum")
    assert "left out" in figure("rank-laws")
    assert f"left out: {group['evidence']['laws_left_out']['collapsed']} collapsed" in page
    trials = pd.read_csv(io.BytesIO(sweep.get("report/tables/trials.csv")))
    assert (trials["state"] == "collapsed").sum() == 4


def test_layer_advice_is_one_in_text_figure_table_and_json(sweep: LocalStorage) -> None:
    page, group, _ = read(sweep)
    layers = group["layers"]
    assert layers["sentence"][1:] in page
    tables = load_sweep(sweep)
    (verdict,) = recommend(tables).groups
    figure = rank_figures.layer_growth(verdict.layers.advice)
    assert (figure is not None) == layers["judged"]
    if figure is None:
        return
    csv = pd.read_csv(io.BytesIO(sweep.get("report/tables/layers.csv")))
    drawn = [
        line.get_xdata()[0] for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 1
    ]
    assert drawn == pytest.approx([layer["relative"] for layer in layers["layers"]])
    assert csv["relative"].tolist() == pytest.approx(drawn)
    assert csv["advice"].tolist() == [layer["advice"] for layer in layers["layers"]]


def test_other_budgets_are_one_in_text_and_json(sweep: LocalStorage) -> None:
    page, group, _ = read(sweep)
    assert set(group["at_equal"]) == {"params", "flops", "seconds", "inference"}
    names = {currency: name for currency, (_, name) in CURRENCIES.items()}
    for currency, found in group["at_equal"].items():
        start, _, said = found["sentence"].partition(": ")
        assert start == f"at equal {names[currency]}"
        if currency != "params":  # which decides, and is the verdict itself
            assert re.search(rf"At equal [^:]*{names[currency]}[^:]*: {re.escape(said)}", page)


@pytest.mark.usefixtures("undrawn")
def test_several_budgets_are_one_in_figure_and_json(build_sweep: Build) -> None:
    sweep = build_sweep(seeds=[0, 1], holds=("params", "flops"))
    (group,) = analyse(sweep).recommendation["groups"]
    (verdict,) = recommend(load_sweep(sweep)).groups
    drawn = [line for line in lines(figures.loss_at_budgets(verdict)) if line.get_marker() == "o"]
    told = [found for found in group["at_equal"].values() if found["widths"]]
    for line, found in zip(drawn, told, strict=True):
        losses = np.array([width["loss"] for width in found["widths"]])
        multipliers = [width["width_multiplier"] for width in found["widths"]]
        assert line.get_xdata() == pytest.approx(multipliers)
        assert np.diff(line.get_ydata()) == pytest.approx(np.diff(losses))


def test_the_terminal_says_what_the_report_and_json_say(
    analysed: tuple[LocalStorage, Analysis],
) -> None:
    sweep, done = analysed
    page, group, _ = read(sweep)
    assert done.recommendation["groups"][0]["sentence"] == group["sentence"]
    terminal = re.sub(r"\s+", " ", done.summary)
    first, *_ = done.summary.splitlines()
    assert first.partition(": ")[2] in page
    said = [group["sentence"], group["evidence"]["spectral_stop"]["sentence"], *group["caveats"]]
    said += [choice["sentence"] for choice in group["choices"].values()]
    said += [] if group["width_multiplier"] is None else [group["rule"]]
    for text in said:
        assert text in terminal
        assert text.removeprefix("no recommendation: ")[1:] in page
    for name in ("soft_rank", "hard_rank", "hard_rank_debiased", "asymmetry"):
        law = group["evidence"]["laws"][name]
        assert f"{law['beta']:.2f} {bracketed(law['beta_interval'])}" in terminal
    for cells in group["run_next"]:
        cost = f"{plural(cells['trials'], 'trial')}, {flops(cells['flops'])}"
        for text in (terminal, page):
            assert cost in text
            assert f"width_multiplier: {cells['grid']['width_multiplier']}" in text
            assert f"seed: {cells['grid']['seed']}" in text


@pytest.mark.usefixtures("undrawn")
def test_only_cells_that_the_file_does_not_have_are_to_be_added_to_it(build_sweep: Build) -> None:
    sweep = build_sweep(
        seeds=[0, 1],
        multipliers=[1.0, 2.0, 4.0],
        outcomes=lambda c: "waiting" if c.seed and c.multiplier == 4 else "completed",
    )
    terminal = re.sub(r"\s+", " ", analyse(sweep).summary)
    _, group, _ = read(sweep)
    for cells in group["run_next"]:
        told = re.search(re.escape(cells["why"]) + r" \([^)]+\)(; add to the file:)?", terminal)
        assert told
        assert (told[1] is None) == cells["planned"]
    planned = [cells["planned"] for cells in group["run_next"]]
    assert set(planned) == {True, False}
    assert sweep.get("report/report.html").decode().count("<pre>match:") == planned.count(False)


def test_rank_laws_are_drawn_as_they_are_told(
    sweep: LocalStorage, judged: tuple[GroupVerdict, SweepTables]
) -> None:
    _, group, _ = read(sweep)
    used = judged[0].spectral.used
    runs = csv(sweep, "trials").set_index("id").loc[used["id"]]
    drawn = [line for line in lines(rank_figures.rank_laws(judged[0])) if len(line.get_xdata()) > 2]
    points, laws = drawn[0::2], drawn[1::2]
    for name, dots, line in zip(DRAWN, points, laws, strict=False):
        law = group["evidence"]["laws"][name]
        assert dots.get_ydata() == pytest.approx(runs[name].to_numpy())
        slope, level = np.polyfit(np.log(line.get_xdata()), np.log(line.get_ydata()), 1)
        assert (slope, level) == pytest.approx((law["beta"], law["intercept"]))


def test_the_growth_of_edim_is_drawn_as_it_is_told(
    sweep: LocalStorage, judged: tuple[GroupVerdict, SweepTables]
) -> None:
    _, group, _ = read(sweep)
    told = group["evidence"]["elasticity"]["edim"]["steps"]
    drawn = lines(rank_figures.effective_dimension(judged[0]), 1)
    levels = [line for line in drawn if line.get_linewidth() == 2]
    assert [line.get_ydata()[0] for line in levels] == pytest.approx([s["value"] for s in told])
    assert [tuple(line.get_xdata()) for line in levels] == [(s["low"], s["high"]) for s in told]
    errors = [tuple(line.get_ydata()) for line in drawn if line.get_linewidth() == 1]
    assert errors == [tuple(s["interval"]) for s in told if s["interval"] is not None]


def test_the_width_law_is_drawn_as_it_is_told(
    sweep: LocalStorage, judged: tuple[GroupVerdict, SweepTables]
) -> None:
    _, group, figure = read(sweep)
    law = group["evidence"]["width_law"]
    runs = csv(sweep, "trials").set_index("id").loc[judged[0].spectral.used["id"]]
    dots, line, *_ = lines(figures.width_law(judged[0]))
    assert dots.get_ydata() == pytest.approx(runs["val_loss"].to_numpy())
    slope, level = np.polyfit(np.log(line.get_xdata()), np.log(line.get_ydata()), 1)
    assert (slope, level) == pytest.approx((law["beta"], law["intercept"]))
    assert f"loss ~ D^{law['beta']:.3f}" in figure("width-law")


def test_spectra_and_heat_maps_are_those_of_the_table(
    sweep: LocalStorage, judged: tuple[GroupVerdict, SweepTables]
) -> None:
    spectra = csv(sweep, "spectra")
    trial = judged[0].representative
    assert trial is not None
    own = spectra[spectra["id"] == trial["id"]]
    maps = rank_figures.layer_ranks(*judged)
    assert maps is not None
    for axes, name in zip(maps.axes, ("hard_rank", "soft_rank"), strict=False):
        (mesh,) = (drawn for drawn in axes.collections if drawn.get_array() is not None)
        ranks = own.pivot(index="layer", columns="step", values=name).to_numpy(float)
        assert np.asarray(mesh.get_array()).reshape(ranks.shape) == pytest.approx(ranks)

    last = spectra[spectra["step"] == spectra["step"].max()]
    used = judged[0].spectral.used
    first = used[used["replicate"] == used["replicate"].min()].sort_values("D")
    for line, trial_id in zip(lines(rank_figures.final_spectra(*judged)), first["id"], strict=True):
        shares = last[last["id"] == trial_id]["top1_share"]
        assert line.get_ydata()[0] == pytest.approx(np.exp(np.log(shares).mean()))


def test_training_ends_where_the_table_of_trials_says(
    sweep: LocalStorage, judged: tuple[GroupVerdict, SweepTables]
) -> None:
    trials = csv(sweep, "trials")
    ran = trials[trials["holds"].str.contains("params") & (trials["state"] == "completed")]
    drawn = [
        line for line in lines(figures.training_curves(*judged)) if line.get_linestyle() == "-"
    ]
    ends = sorted(line.get_ydata()[-1] for line in drawn)
    assert ends == pytest.approx(sorted(ran["val_loss"]))


@pytest.mark.slow
def test_groups_beside_each_other_are_one_in_figures_and_json(build_sweep: Build) -> None:
    steep = {"best": 30.0, "curvature": 0.05}
    sweep = build_sweep({("gpt2", "pre"): {}, ("llama", "pre"): steep}, seeds=[0, 1, 2])
    groups = analysed_without_heat_maps(sweep).recommendation["groups"]
    assert [group["verdict"] for group in groups] == ["recommended", "refused"]
    recommendation = recommend(load_sweep(sweep))

    drawn = lines(overview_figures.optima(recommendation))
    bars = [line for line in drawn if len(line.get_xdata()) == 2]
    for place, (bar, group) in enumerate(zip(bars, groups, strict=True)):
        loss = group["evidence"]["loss"]["params"]
        assert bar.get_xdata() == pytest.approx(loss["interval"])
        assert set(bar.get_ydata()) == {place}
    dot, ring = (line for line in drawn if line.get_marker() == "o")
    assert dot.get_xdata()[0] == pytest.approx(groups[0]["evidence"]["loss"]["params"]["optimum"])
    assert ring.get_xdata()[0] == groups[0]["width_multiplier"]
    words = flat(sweep.get("report/figures/optima.svg").decode())
    assert f"{multiple(groups[0]['width_multiplier'])} undecided" in words

    exponents = lines(overview_figures.exponents(recommendation))
    told = [group["evidence"]["laws"][name] for group in groups for name in DRAWN]
    assert [line.get_xdata()[0] for line in exponents[1::2]] == [law["beta"] for law in told]
    intervals = [list(line.get_xdata()) for line in exponents[0::2]]
    assert intervals == [list(law["beta_interval"]) for law in told]
