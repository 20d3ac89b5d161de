"""Claims about a whole analysis: report, JSON, tables and terminal say the same."""

import io
import json
import re
from collections.abc import Callable
from html import unescape

import pandas as pd
import pytest
import yaml

from analysis.pipeline import analyse
from trialstore.errors import InputError
from trialstore.records import encode_json
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]


def text_of(sweep: LocalStorage) -> str:
    """The words of the report."""
    html = re.sub(
        r"<(style|svg)\b.*?</\1>", " ", sweep.get("report/report.html").decode(), flags=re.S
    )
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.long
def test_report_json_tables_and_summary_agree(build_sweep: Build) -> None:
    states = {(1.5, "params"): "failed", (8.0, "none"): "diverged", (5.33, "none"): "waiting"}
    sweep = build_sweep(outcomes=lambda c: states.get((c.multiplier, c.holds[0]), "completed"))

    found = analyse(sweep)
    stored = json.loads(sweep.get("report/recommendation.json"))
    assert stored == json.loads(encode_json(found.recommendation))
    (group,) = stored["groups"]
    assert group["verdict"] == "recommended"

    assert found.report_url == f"{sweep.url}/report/report.html"
    law = group["evidence"]["laws"]["soft_rank"]
    exponent = f"{law['beta']:.2f} [{law['beta_interval'][0]:.2f}, {law['beta_interval'][1]:.2f}]"
    for said in (text_of(sweep), re.sub(r"\s+", " ", found.summary)):
        assert group["sentence"][4:] in said
        assert exponent in said
        assert all(caveat in said for caveat in group["caveats"])
        assert all(cells["why"] in said for cells in group["run_next"])

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


@pytest.mark.long
@pytest.mark.slow
def test_every_figure_and_table_comes_in_two_kinds(build_sweep: Build) -> None:
    sweep = build_sweep(seeds=[0, 1])
    analyse(sweep)
    keys = sweep.list("report")
    stems = {kind: {k[: -len(kind)] for k in keys if k.endswith(kind)} for kind in (".svg", ".png")}
    assert stems[".svg"] == stems[".png"]
    names = {stem.rpartition("depth-2-")[2] for stem in stems[".svg"] if "layer-ranks/" not in stem}
    assert names == {
        *("loss-optimum", "rank-laws", "effective-dimension", "final-spectra", "width-law"),
        *("layer-growth", "layer-ranks", "training-curves", "report/figures/exponents"),
    }
    assert sum("figures/layer-ranks/" in stem for stem in stems[".svg"]) == 6  # of 7 widths
    assert all(sweep.get(key)[1:4] == b"PNG" for key in keys if key.endswith(".png"))
    tables = {key.rpartition("/")[2] for key in keys if "/tables/" in key}
    named = ("trials", "laws", "widths", "layers", "spectra", "curves")
    assert tables == {f"{name}.{kind}" for name in named for kind in ("csv", "parquet")}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.long
def test_the_summary_fits_a_terminal(build_sweep: Build) -> None:
    sweep = build_sweep(outcomes=lambda c: "failed" if c.multiplier == 8 else "completed")
    summary = analyse(sweep).summary
    assert max(map(len, summary.splitlines())) <= 96
    assert summary.startswith("made-up: 13 trials, 11 completed, 2 failed")


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"multipliers": [4.0], "holds": ("none",)}, "add `params` or `flops` to `match`"),
        ({"multipliers": [1.0, 4.0]}, "there are 2 widths"),
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
    assert "no recommendation" in text_of(sweep)


@pytest.mark.long
def test_trials_without_a_snapshot_still_make_a_report(build_sweep: Build) -> None:
    sweep = build_sweep()
    for key in sweep.list():
        if key.endswith("result.json"):
            result = json.loads(sweep.get(key))
            sweep.put(key, encode_json({**result, "records": {}}))
    (group,) = analyse(sweep).recommendation["groups"]
    assert group["verdict"] == "recommended"
    assert group["evidence"]["laws_left_out"] == {"no spectra": 7}


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_without_any_result_is_refused(build_sweep: Build) -> None:
    sweep = build_sweep(outcomes=lambda c: "failed" if c.multiplier == 1 else "waiting")
    with pytest.raises(InputError, match=r"13 trials.* 2 failed"):
        analyse(sweep)
    assert not sweep.list("report")


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
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
