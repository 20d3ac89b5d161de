"""Claims about `fit_table`: every row enters a fit or is counted, and a bad request is named."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis.fit.fit_table import fit_table
from analysis.fit.request import Request
from trialstore import records
from trialstore.errors import InputError

CONTRACT = {
    "group", "n", "excluded", "parameters", "intervals", "interval_method", "objective",
    "r_squared", "warnings",
}  # fmt: skip


def ranks(**more: object) -> pd.DataFrame:
    """Two norms, six widths, two seeds."""
    rows = [
        {"norm": norm, "D": width, "seed": seed, "rank": 3 * width**beta * (1 + 0.01 * seed)}
        for norm, beta in (("pre", 0.9), ("post", 0.4))
        for width in (64, 96, 128, 192, 256, 384)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows).assign(**more)


def losses(rows: int = 48) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    params, tokens = np.exp(rng.uniform(np.log([[1e6], [1e8]]), np.log([[1e9], [1e11]]), (2, rows)))
    loss = ((8.8e13 / params) ** 0.8 + 5.4e13 / tokens) ** 0.095
    return pd.DataFrame(
        {
            "params": params,
            "tokens": tokens,
            "loss": loss * np.exp(0.01 * rng.standard_normal(rows)),
        }
    )


def power(**more: object) -> Request:
    return Request("power", {"x": "D", "y": "rank"}, **more)


def kaplan(**more: object) -> Request:
    columns = {"params": "params", "tokens": "tokens", "loss": "loss"}
    return Request("kaplan", columns, **{"resamples": 100, **more})


def test_groups_are_fitted_apart() -> None:
    fitted = fit_table(ranks(), power(group=["norm"], replicate="seed")).to_json()
    assert fitted["law"] == "power"
    found = {one["group"]["norm"]: one["parameters"]["beta"] for one in fitted["groups"]}
    assert found == pytest.approx({"pre": 0.9, "post": 0.4})


@pytest.mark.parametrize("law", ["power", "saturating", "kaplan"])
@pytest.mark.long
def test_the_contract_of_the_json_holds_for_every_law(law: str) -> None:
    if law == "kaplan":
        fitted = fit_table(losses(), kaplan())
    else:
        fitted = fit_table(ranks(), Request(law, {"x": "D", "y": "rank"}, group=["norm"]))
    for group in json.loads(records.encode_json(fitted.to_json()))["groups"]:
        assert set(group) >= CONTRACT
        assert group["parameters"]
        assert set(group["parameters"]) <= set(group["intervals"])
        assert group["interval_method"]


def test_every_row_enters_or_is_counted() -> None:
    frame = ranks()
    frame.loc[0, "rank"] = np.nan
    frame.loc[1, "rank"] = -1
    frame.loc[2, "D"] = 0
    (group,) = fit_table(frame, power(where=[("norm", "pre")])).to_json()["groups"]
    assert group["n"] == 9
    assert group["excluded"] == 3
    assert group["excluded_because"] == {"not finite": 1, "not positive": 2}


def test_a_group_without_a_law_is_reported_beside_the_others() -> None:
    frame = ranks()
    frame = frame[(frame["norm"] == "pre") | (frame["D"] == 64)]
    groups = fit_table(frame, power(group=["norm"])).to_json()["groups"]
    by_norm = {group["group"]["norm"]: group for group in groups}
    assert by_norm["pre"]["refused"] is None
    assert "at least 3" in by_norm["post"]["refused"]
    assert by_norm["post"]["n"] == 2
    assert by_norm["post"]["warnings"]


def test_rows_without_a_group_are_a_group() -> None:
    frame = ranks()
    frame.loc[frame["norm"] == "post", "norm"] = None
    groups = fit_table(frame, power(group=["norm"])).to_json()["groups"]
    assert [group["group"]["norm"] for group in groups] == ["pre", None]


def test_a_number_is_chosen_by_value_and_a_text_by_its_letters() -> None:
    by_number = fit_table(ranks(), power(where=[("norm", "pre"), ("seed", "1.0")]))
    assert by_number.groups[0].n == 6


def test_numbers_written_as_text_are_numbers_and_nan_is_empty() -> None:
    frame = ranks()
    frame["rank"] = frame["rank"].astype(str)
    frame.loc[0, "rank"] = "NaN"
    (group,) = fit_table(frame, power()).groups
    assert (group.n, dict(group.excluded)) == (23, {"not finite": 1})


@pytest.mark.parametrize(
    ("request_", "frame", "expected"),
    [
        (power(where=[("norm", "mid")]), ranks(), ["norm=mid", "pre", "post"]),
        (power(where=[("seed", "one")]), ranks(), ["seed", "'one'"]),
        (power(group=["layer"]), ranks(), ["'layer'", "norm, D, seed, rank"]),
        (power(replicate="run"), ranks(), ["'run'"]),
        (power(replicate=""), ranks(), ["no column ''"]),
        (power(group=[""]), ranks(), ["no column ''"]),
        (power(), ranks(rank="high"), ["rank", "--y", "'high'", "row 1"]),
        (power(), ranks(rank=True), ["rank", "bool"]),
        (power(), ranks(rank=np.nan), ["rank", "empty in every row"]),
        (power(), ranks(rank=-1.0), ["no power law", "24 not positive"]),
        (power(), ranks(D=64), ["at least 3"]),
        (power(), ranks().iloc[:0], ["no rows"]),
        (kaplan(), losses(5), ["6 distinct combinations of params and tokens", "there are 5"]),
        (kaplan(), losses().assign(tokens=lambda f: 20 * f["params"]), ["params and tokens"]),
        (kaplan(), losses().assign(params=1e6), ["params has 1 distinct value"]),
    ],
)
def test_what_cannot_be_fitted_is_named(
    request_: Request, frame: pd.DataFrame, expected: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        fit_table(frame, request_)
    for part in expected:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"law": "power", "columns": {"x": "D"}}, "--y"),
        ({"law": "chinchilla", "columns": {"params": "N", "loss": "L"}}, "--tokens"),
        ({"law": "kaplan", "columns": {"loss": "L"}}, "--params, --tokens or both"),
        (
            {"law": "power", "columns": {"x": "D", "y": "r", "loss": "L"}},
            "--loss; it takes --x, --y",
        ),
        (
            {"law": "kaplan", "columns": {"params": "N", "loss": "L"}, "replicate": "seed"},
            "--replicate",
        ),
        ({"law": "power", "columns": {"x": "D", "y": "r"}, "resamples": 3}, "--bootstrap 3"),
        ({"law": "power", "columns": {"x": "D", "y": "r"}, "seed": -1}, "0 or more"),
    ],
)
def test_a_request_that_means_nothing_is_refused(arguments: dict, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Request(**arguments)


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_fitted() -> None:
    rows = 100_000
    frame = losses(rows)
    frame.loc[frame.index[:7], "loss"] = np.nan
    (group,) = fit_table(frame, kaplan()).to_json()["groups"]
    assert (group["n"], group["excluded"]) == (rows - 7, 7)
    assert "sandwich" in group["interval_method"]
    for name, truth in (("alpha_N", 0.076), ("alpha_D", 0.095)):
        low, high = group["intervals"][name]
        assert low < group["parameters"][name] < high
        assert group["parameters"][name] == pytest.approx(truth, rel=0.02)
    few = pd.DataFrame({"D": np.tile([64.0, 128, 256, 512], rows // 4)})
    few["rank"] = 3 * few["D"] ** 0.7
    assert fit_table(few, power()).to_json()["groups"][0]["parameters"]["beta"] == pytest.approx(
        0.7
    )


@pytest.mark.parametrize("law", ["power", "saturating"])
def test_fifty_thousand_widths_with_repeats_are_too_many(law: str) -> None:
    frame = pd.DataFrame({"D": np.repeat(np.arange(1.0, 50_001), 2), "rank": 1.0})
    with pytest.raises(InputError, match=r"100000.* 50000"):
        fit_table(frame, Request(law, {"x": "D", "y": "rank"}))


def test_a_row_without_a_replicate_label_is_left_out_and_counted() -> None:
    table = ranks()
    table["seed"] = table["seed"].astype(object)
    table.loc[0, "seed"] = None
    for law in ("power", "saturating"):
        (group,) = fit_table(
            table, Request(law, {"x": "D", "y": "rank"}, [("norm", "pre")], replicate="seed")
        ).groups
        assert group.excluded == {"no replicate label": 1}
        assert group.n == 11


@pytest.mark.parametrize("options", [{"group": ["odd"]}, {"replicate": "odd"}])
@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, np.ones(2)])
def test_lists_cannot_label_rows(options: dict[str, object], value: object) -> None:
    table = ranks(odd=[value] * 24)
    with pytest.raises(InputError, match="column odd holds"):
        fit_table(table, power(**options))


def test_a_group_whose_column_is_empty_is_named_so() -> None:
    table = ranks()
    table["norm"] = table["norm"].where(table["norm"] == "pre")
    labels = [group.label for group in fit_table(table, power(group=["norm"])).groups]
    assert labels == ["pre", "no norm"]


def test_a_span_of_time_is_no_number() -> None:
    table = ranks(D=pd.Timedelta(1, "s"))
    with pytest.raises(InputError, match=r"column D .*numbers"):
        fit_table(table, power())


def test_one_loss_in_every_row_carries_no_loss_law() -> None:
    with pytest.raises(InputError, match=r"loss .*every row"):
        fit_table(losses().assign(loss=3.0), kaplan())


def test_a_hundred_thousand_widths_of_one_run_each_are_fitted() -> None:
    width = np.geomspace(64, 1e6, 100_000)
    (group,) = fit_table(pd.DataFrame({"D": width, "rank": 3 * width**0.7}), power()).groups
    assert group.to_json()["parameters"]["beta"] == pytest.approx(0.7)
