"""Claims that text, figures, tables and JSON of one analysis say the same numbers.

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

from analysis.figures import rank_figures
from analysis.figures import verdict_figures as figures
from analysis.pipeline import analyse
from analysis.storage import LocalStorage
from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.layer_verdict import judge_layers
from analysis.verdict.recommend import recommend
from analysis.wording import bracketed, interval, multiple

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
def sweep(
    request: pytest.FixtureRequest, build_sweep_in: Build, tmp_path_factory: pytest.TempPathFactory
) -> LocalStorage:
    built = build_sweep_in(tmp_path_factory.mktemp("sweep"), **cases()[request.param])
    analyse(built)
    return built


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
    chosen = multiple(group["width_multiplier"])
    assert f"use {chosen} (D = " in group["sentence"]
    assert interval(group["interval"]) in group["sentence"]
    assert group["sentence"][1:] in page
    assert f"{chosen} chosen" in drawn
    (row,) = [
        w for w in group["alternatives"] if w["width_multiplier"] == group["width_multiplier"]
    ]
    assert re.search(
        rf"{re.escape(chosen)} {row['D']} {row['d_model']} {row['val_loss']:.4f}", page
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
        if name in ("soft_rank", "hard_rank"):
            assert f"{name.replace('_', ' ')} ~ D^{law['beta']:.2f}" in drawn
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


@pytest.mark.parametrize("sweep", ["broken cells"], indirect=True)
def test_a_cell_that_broke_is_marked_counted_and_told(sweep: LocalStorage) -> None:
    page, group, figure = read(sweep)
    assert group["evidence"]["cells"]["collapsed"] == 4
    assert group["evidence"]["loss"]["params"]["inadmissible"] == [pytest.approx(8, rel=0.1)]
    assert "collapsed or diverged" in figure("loss-optimum")
    assert "left out" in figure("rank-laws")
    assert f"left out {group['evidence']['laws_left_out']['collapsed']} collapsed" in page
    trials = pd.read_csv(io.BytesIO(sweep.get("report/tables/trials.csv")))
    assert (trials["state"] == "collapsed").sum() == 4


def test_layer_advice_is_one_in_text_figure_table_and_json(sweep: LocalStorage) -> None:
    page, group, _ = read(sweep)
    layers = group["layers"]
    assert layers["sentence"][1:] in page
    tables = load_sweep(sweep)
    (verdict,) = recommend(tables).groups
    figure = rank_figures.layer_growth(judge_layers(verdict, tables).advice)
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
    for found in group["at_equal"].values():
        assert found["sentence"][1:] in page
