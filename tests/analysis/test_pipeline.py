"""Claims about a whole analysis: report, JSON, tables and terminal say the same."""

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml

from analysis.errors import InputError
from analysis.pipeline import analyse
from analysis.records import encode_json
from analysis.storage import LocalStorage

Build = Callable[..., LocalStorage]
VOID = {"meta", "br", "hr", "img", "link", "path", "use", "rect"}


class Page(HTMLParser):
    """Checks that tags close in order; collects ids, references and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

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


def test_report_json_tables_and_summary_agree(build_sweep: Build) -> None:
    states = {(1.5, "params"): "failed", (8.0, "none"): "diverged", (5.33, "none"): "waiting"}
    sweep = build_sweep(outcomes=lambda c: states.get((c.multiplier, c.holds[0]), "completed"))
    result = "trials/gpt2-pre-64-96-0/result.json"
    content = json.loads(sweep.get(result))
    sweep.put(result, encode_json({**content, "reason": "a <b>reason</b> & more"}))

    found = analyse(sweep)
    stored = json.loads(sweep.get("report/recommendation.json"))
    assert stored == json.loads(encode_json(found.recommendation))
    (group,) = stored["groups"]
    assert group["verdict"] == "recommended"

    page = Page(sweep.get("report/report.html").decode())
    assert not page.open
    assert found.report_url == f"{sweep.url}/report/report.html"
    law = group["evidence"]["laws"]["soft_rank"]
    exponent = f"{law['beta']:.2f} [{law['beta_interval'][0]:.2f}, {law['beta_interval'][1]:.2f}]"
    for said in (page.text, re.sub(r"\s+", " ", found.summary)):
        assert group["sentence"][4:] in said
        assert exponent in said
        assert all(caveat in said for caveat in group["caveats"])
        assert all(cells["why"] in said for cells in group["run_next"])
    assert "a <b>reason</b> & more" in page.text  # escaped, not markup

    laws = pd.read_csv(io.BytesIO(sweep.get("report/tables/laws.csv"))).set_index("quantity")
    assert laws.loc["soft_rank", "beta"] == pytest.approx(law["beta"])
    trials = pd.read_parquet(io.BytesIO(sweep.get("report/tables/trials.parquet")))
    assert dict(trials["state"].value_counts()) == {
        "completed": 10,
        "failed": 1,
        "diverged": 1,
        "waiting": 1,
    }
    widths = pd.read_csv(io.BytesIO(sweep.get("report/tables/widths.csv")))
    assert widths["width_multiplier"].tolist() == [
        a["width_multiplier"] for a in group["alternatives"]
    ]


def test_the_report_is_whole_in_itself(build_sweep: Build) -> None:
    sweep = build_sweep(seeds=[0, 1])
    analyse(sweep)
    html = sweep.get("report/report.html").decode()
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(page.ids)
    assert "<script" not in html
    figures = sweep.list("report/figures")
    assert len(figures) == 12  # five of the group and one of all, as SVG and PNG
    assert all(sweep.get(key)[1:4] == b"PNG" for key in figures if key.endswith(".png"))


def test_the_summary_fits_a_terminal(build_sweep: Build) -> None:
    sweep = build_sweep(outcomes=lambda c: "failed" if c.multiplier == 8 else "completed")
    summary = analyse(sweep).summary
    assert max(map(len, summary.splitlines())) <= 96
    assert summary.startswith("made-up: 13 trials, 11 completed, 2 failed")


def test_an_analysis_replaces_the_one_before(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 4.0])
    sweep.put("report/figures/of-an-earlier-group.svg", b"old")
    sweep.put("report/notes.txt", b"someone's own")
    analyse(sweep)
    first = sweep.get("report/recommendation.json"), sweep.get("report/report.html")
    assert "report/figures/of-an-earlier-group.svg" not in sweep.list()
    assert "report/notes.txt" in sweep.list()
    analyse(sweep)
    assert (sweep.get("report/recommendation.json"), sweep.get("report/report.html")) == first


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"multipliers": [4.0], "holds": ("none",)}, "no cells of equal budget"),
        ({"multipliers": [1.0, 4.0]}, "2 widths at an equal budget"),
        ({"outcomes": lambda cell: "diverged"}, "no run at an equal budget has a final loss"),
        ({"outcomes": lambda cell: "collapsed"}, "no run at an equal budget has a final loss"),
    ],
    ids=["one width", "two widths", "all diverged", "all collapsed"],
)
def test_too_little_for_a_verdict_still_makes_a_report(
    build_sweep: Build, options: dict[str, object], reason: str
) -> None:
    sweep = build_sweep(**options)
    found = analyse(sweep)
    (group,) = found.recommendation["groups"]
    assert group["verdict"] == "refused"
    assert reason in group["rule"]
    assert not Page(sweep.get("report/report.html").decode()).open


def test_trials_without_a_snapshot_still_make_a_report(build_sweep: Build) -> None:
    sweep = build_sweep()
    for key in sweep.list():
        if key.endswith("result.json"):
            result = json.loads(sweep.get(key))
            sweep.put(key, encode_json({**result, "records": {}}))
    (group,) = analyse(sweep).recommendation["groups"]
    assert group["verdict"] == "recommended"
    assert group["evidence"]["laws_left_out"] == {"no spectra": 7}


def test_a_sweep_without_any_result_is_refused(build_sweep: Build) -> None:
    sweep = build_sweep(outcomes=lambda c: "failed" if c.multiplier == 1 else "waiting")
    with pytest.raises(InputError, match=r"none of 13 trials has a result yet .*2 failed"):
        analyse(sweep)
    assert not sweep.list("report")


def test_axes_are_called_as_the_sweep_file_calls_them(build_sweep: Build) -> None:
    """The frames have `axis_steps`, for `steps` is measured too; what is to be pasted into a
    sweep file, and what people read, say steps. An axis that means nothing is not named."""
    sweep = build_sweep(multipliers=[1, 2], holds=("none",))
    content = yaml.safe_load(sweep.get("sweep.yaml"))
    for cell in content["resolved"]["trials"]:
        cell["axes"] |= {"steps": 250, "block": None}
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    done = analyse(sweep)
    (group,) = done.recommendation["groups"]
    assert group["run_next"][0]["grid"]["steps"] == [250]
    for text in (done.summary, sweep.get("report/report.html").decode()):
        assert "steps 250" in text
        assert "axis" + "_steps" not in text
        assert "block None" not in text


def test_a_group_is_named_in_full_where_its_name_is_long(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2], holds=("none",))
    content = yaml.safe_load(sweep.get("sweep.yaml"))
    block = "my_package.my_blocks:ParallelAttentionBlock"
    for cell in content["resolved"]["trials"]:
        cell["axes"]["block"] = block
    sweep.put("sweep.yaml", yaml.safe_dump(content, sort_keys=False).encode())
    laws = analyse(sweep).summary.partition("Exponents")[2].split("\n\n")[0]
    assert f"  gpt2, pre, depth 2, {block}\n" in laws
    assert all(len(line) <= 96 for line in laws.splitlines())
