"""Claims about the report as a file: whole in itself, legible whatever the sweep held."""

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml

from analysis.figures import style
from analysis.pipeline import analyse
from analysis.report import tables as report_tables
from analysis.report.tables import written
from trialstore.records import encode_json
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]
REPORT = "report/report.html"
VOID = {"meta", "br", "hr", "img", "link", "path", "use", "rect", "image"}


class Page(HTMLParser):
    """Checks that tags close in order; collects ids, references and the words of the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value:
                self.references.append(value)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "text"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def outward(self) -> list[str]:
        """References to anything that is not in the page itself."""
        return [ref for ref in self.references if not ref.startswith(("#", "data:image/png;"))]


def page_of(sweep: LocalStorage) -> Page:
    return Page(sweep.get(REPORT).decode())


@pytest.mark.long
def test_the_report_is_whole_in_itself(build_sweep: Build) -> None:
    sweep = build_sweep(seeds=[0, 1])
    analyse(sweep)
    html, page = sweep.get(REPORT).decode(), page_of(sweep)
    assert not page.outward
    assert len(page.ids) == len(set(page.ids))
    inner = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert inner <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(page.ids)
    assert "<script" not in html
    assert "@import" not in html


@pytest.mark.usefixtures("undrawn")
@pytest.mark.long
def test_the_verdict_comes_first_and_names_its_interval(build_sweep: Build) -> None:
    sweep = build_sweep(seeds=[0, 1])
    (group,) = analyse(sweep).recommendation["groups"]
    text = page_of(sweep).text
    low, high = group["interval"]
    verdict = text.index(f"90 % interval {low:.2f} to {high:.2f}")
    order = ["Why:", "Rank laws", "Other choices", "What the layers use", "Layer by layer"]
    order += ["Training", "Trials", "How to reproduce it", "Beside this file"]
    places = [verdict, *(text.index(f" {title} ", verdict) for title in order)]
    assert places == sorted(places)


@pytest.mark.usefixtures("undrawn")
def test_trials_lead_to_their_runs_where_there_is_a_server(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0], holds=("none",))
    links = {"gpt2-pre-64-64-0": 'https://mlflow.example/#/experiments/1/runs/a?b="c"&d'}
    analyse(sweep, links=links)
    page = page_of(sweep)
    assert page.outward == [*links.values()]
    assert "MLflow run" in page.text
    analyse(sweep)
    assert "MLflow run" not in page_of(sweep).text


@pytest.mark.usefixtures("undrawn")
def test_how_to_reproduce_it_is_told(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0])
    content = yaml.safe_load(sweep.get("sweep.yaml"))
    content["resolved"]["git"] = {"commit": "c0ffee" * 6 + "beef", "dirty": True}
    sweep.put("sweep.yaml", yaml.safe_dump(content, sort_keys=False).encode())
    analyse(sweep)
    text = page_of(sweep).text
    for said in (
        "widthlab run SWEEP.yaml",
        "c0ffee" * 6 + "beef, with changes",
        "0123456789abcdef",  # corpus
        "fedcba9876543210",  # tokenizer
        "torch 2.13.0",
        "batch_tokens: 2048",
    ):
        assert said in text


@pytest.mark.long
def test_one_trial_makes_a_report(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[4.0], holds=("none",))
    analyse(sweep)
    page = page_of(sweep)
    assert "1 trial, 1 completed" in page.text
    assert "no recommendation" in page.text
    assert "layer by layer" in page.text


@pytest.mark.long
def test_a_group_with_nothing_to_show_stands_beside_one_that_has(build_sweep: Build) -> None:
    shown = build_sweep(multipliers=[1.0, 2.0, 4.0], name="shown")
    content = yaml.safe_load(shown.get("sweep.yaml"))
    for cell in list(content["resolved"]["trials"]):
        waits = {**cell, "id": f"waiting-{cell['id']}", "axes": {**cell["axes"], "norm": "post"}}
        content["resolved"]["trials"].append(waits)
    shown.put("sweep.yaml", yaml.safe_dump(content).encode())  # which sorts the axes
    analyse(shown)
    page = page_of(shown)
    (nothing,) = re.findall("gpt2, depth 2, post: no recommendation.*", page.text)
    assert "No law for some of them: a law needs at least 3 widths and there are 0" in nothing
    assert not [key for key in shown.list("report/figures") if "post" in key]


@pytest.mark.usefixtures("undrawn")
def test_groups_refused_for_the_same_reason_share_a_verdict(build_sweep: Build) -> None:
    sweep = build_sweep(
        {("gpt2", "pre"): {}, ("llama", "pre"): {}}, multipliers=[1.0], seeds=[0, 1]
    )
    groups = analyse(sweep).recommendation["groups"]
    (card,) = re.findall(r'<div class="verdict refused">.*', sweep.get(REPORT).decode())
    for group in groups:
        assert f">{group['label']}</a>" in card
    asked = sum(cells["trials"] for group in groups for cells in group["run_next"])
    assert f"({asked} trials, " in card


@pytest.mark.long
@pytest.mark.slow
def test_figures_take_the_colours_of_the_page(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0, 4.0])
    analyse(sweep)
    html = sweep.get(REPORT).decode()
    used = set(re.findall(r"var\((--[a-z]+[0-9-]*)\)", html))
    by_day, by_night = html.split("prefers-color-scheme: dark")[:2]
    for name in used:
        assert f"{name}:" in by_day
        assert f"{name}:" in by_night
    inline = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    own = (style.INK, style.FAINT, style.SOFT, style.EDIM, *(white for white, _ in style.SHADES))
    assert not [colour for colour in own if colour in inline]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.long
def test_a_learning_rate_that_is_an_axis_has_its_place_beside_that_of_a_step(
    build_sweep: Build,
) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0], rates=[0.002, 0.004])
    analyse(sweep)
    curves = pd.read_parquet(io.BytesIO(sweep.get("report/tables/curves.parquet")))
    assert set(curves["axis_learning_rate"]) == {0.002, 0.004}
    assert "learning_rate" in curves


@pytest.mark.usefixtures("undrawn")
def test_what_all_trials_have_in_common_is_said_once(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0], holds=("none",))
    analyse(sweep)
    assert "All: equal none, outcome completed, d_model 64, seed 0, tokens 512k." in (
        page_of(sweep).text
    )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.long
def test_large_tables_are_parquet_only_and_the_report_says_so(
    build_sweep: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_tables, "MOST_CSV_ROWS", 50)
    sweep = build_sweep(multipliers=[1.0, 2.0, 4.0])
    analyse(sweep)
    keys = sweep.list("report/tables")
    assert "report/tables/spectra.parquet" in keys
    assert "report/tables/spectra.csv" not in keys
    assert "report/tables/trials.csv" in keys
    assert "Parquet only" in page_of(sweep).text


def test_an_axis_of_numbers_and_words_can_be_stored() -> None:
    frame = pd.DataFrame({"learning_rate": ["tuned per width", 0.001, None], "beta": [1.0, 2, 3]})
    tidy = report_tables.one_type(frame)
    assert tidy["learning_rate"].tolist()[:2] == ["tuned per width", "0.001"]
    assert tidy["learning_rate"].isna().tolist() == [False, False, True]
    assert dict(written({"laws": tidy}))["tables/laws.parquet"][:4] == b"PAR1"


@pytest.mark.long
def test_what_a_sweep_says_is_text_and_never_markup(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0], outcomes=lambda c: "collapsed", name="<i>&amp;")
    result = "trials/gpt2-pre-64-64-0/result.json"
    content = json.loads(sweep.get(result))
    sweep.put(result, encode_json({**content, "reason": "a <b>reason</b> & more"}))
    analyse(sweep)
    text = page_of(sweep).text
    assert "a <b>reason</b> & more" in text
    assert "<i>&amp;: how wide" in text
