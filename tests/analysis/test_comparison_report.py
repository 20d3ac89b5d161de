"""Claims about comparisons in the summary, the report, the tables, the figure and Python."""

import io
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from compared_tables import LNS_AHEAD, PLACEMENTS, WIDTHS, tables

from analysis.figures.comparison_figures import differences
from analysis.pipeline import analyse
from analysis.verdict.compare import compare
from trialstore.storage import LocalStorage
from widthlab.verdict import Verdict

Build = Callable[..., LocalStorage]


@pytest.fixture(scope="module")
def analysed(build_sweep_in: Build, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Analysis and storage of a sweep in which LNS is ahead of Pre-LN, and Post-LN collapses."""
    sweep = build_sweep_in(
        tmp_path_factory.mktemp("compared"),
        {("llama", "pre"): {}, ("llama", "lns"): {"floor": 3.35}, ("llama", "post"): {}},
        multipliers=[1.0, 4.0],
        seeds=[0, 1, 2],
        holds=("none",),
        outcomes=lambda cell: (
            "collapsed" if cell.norm == "post" and cell.multiplier == 4 else "completed"
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        blank = {"svg": b"<svg></svg>", "png": b""}
        patch.setattr("analysis.pipeline.render", lambda figure: dict(blank))
        return analyse(sweep), sweep


@pytest.mark.long
def test_summary_report_file_and_table_agree(analysed: tuple[Any, LocalStorage]) -> None:
    done, sweep = analysed
    pairs = done.recommendation["comparisons"]["pairs"]
    (lns,) = [own for own in pairs if {own["other"], own["baseline"]} == {"lns", "pre"}]
    assert (lns["outcome"], lns["pairs"]) == ("told", 6)
    assert lns["ahead"] in (0, 6)
    page = sweep.get("report/report.html").decode()
    for text in (done.summary, page):
        assert f"{lns['difference']:+.4f}" in text
        assert "post in 3 of 6 cells" in " ".join(text.split())
    table = pd.read_csv(io.BytesIO(sweep.get("report/tables/comparisons.csv")))
    assert table["difference"].tolist() == [own["difference"] for own in pairs]
    widths = pd.read_csv(io.BytesIO(sweep.get("report/tables/differences.csv")))
    assert len(widths) == sum(len(own["widths"]) for own in pairs)
    assert "report/figures/comparisons.svg" in sweep.list("report/figures")


@pytest.mark.long
def test_python_has_them_as_a_table(analysed: tuple[Any, LocalStorage]) -> None:
    done, _ = analysed
    verdict = Verdict(done.summary, done.recommendation, done.report_url)
    found = verdict.comparisons
    assert len(found) == len(done.recommendation["comparisons"]["pairs"]) == 3
    told = found[found["outcome"] == "told"]
    assert ((told["low"] > 0) | (told["high"] < 0)).all()
    assert "Comparisons between groups" in verdict._repr_html_()


def test_the_figure_has_a_row_for_each_and_the_widths_beside_the_mean() -> None:
    found = compare(tables(LNS_AHEAD, {**PLACEMENTS, "depth": [2, 4]}))
    figure = differences(found)
    assert figure is not None
    (axes,) = figure.axes
    assert len(axes.get_yticks()) == len(found.pairs) == 4
    means = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    assert means == pytest.approx([own.difference.mean for own in found.pairs if own.difference])
    dots = [line for line in axes.get_lines() if line.get_marker() == "."]
    assert len(dots) == 4 * len(WIDTHS)
    assert differences(compare(tables(LNS_AHEAD, {"norm": ["pre"]}))) is None
