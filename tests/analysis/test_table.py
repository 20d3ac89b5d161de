"""Claims about reading a sweep's directory: every cell is a row, and nothing missing crashes."""

import datetime
import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import yaml
from messages import mentions
from resolved_sweep import resolved

from analysis.tables.aggregate import aggregate
from analysis.tables.aggregation import Aggregation
from analysis.tables.sweep_tables import load_sweep
from trialstore import records
from trialstore.records import SPECTRUM_COLUMNS, encode_json
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]


def test_a_finished_trial_is_a_row_with_its_axes_numbers_and_spectral_summary(
    build_sweep: Build,
) -> None:
    sweep = build_sweep(multipliers=[1, 2.67, 4])
    tables = load_sweep(sweep)
    assert tables.name == "made-up"
    assert tables.group_axes == ("architecture", "norm", "depth")
    trial = tables.trials.set_index("id").loc["gpt2-pre-64-168-0"]
    assert trial["state"] == "completed"
    assert trial["holds"] == ("none",)
    assert trial["typed_multiplier"] == 2.67
    assert trial["width_multiplier"] == 168 / 64  # achieved, not typed
    assert trial["tokens"] == 250 * 2048
    assert trial["parameters_non_embedding"] == 2 * (4 * 64**2 + 2 * 64 * 168)
    assert trial["n_over_d"] == pytest.approx(8192 / 168)
    assert not trial["undersampled"]
    stored = records.read_records(sweep.child("trials/gpt2-pre-64-168-0"), "spectra").to_pandas()
    last_five = stored[stored["step"] >= 50]
    by_layer = last_five.groupby("layer")["soft_rank"].median()
    assert trial["soft_rank"] == pytest.approx(by_layer.median())
    assert trial["snapshots"] == 5


def test_cells_that_coincide_are_one_row_of_both_matchings(build_sweep: Build) -> None:
    trials = load_sweep(build_sweep(multipliers=[1, 4])).trials
    assert trials.set_index("id").loc["gpt2-pre-64-256-0", "holds"] == ("none", "params")
    assert len(trials) == 3


def test_the_snapshot_of_untrained_weights_never_enters_the_summary(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",), analysis={"aggregate_last": 50})
    trials = load_sweep(sweep).trials
    assert set(trials["snapshots"]) == {5}  # of six: steps 0, 50, ..., 250


@pytest.mark.parametrize(
    ("left", "state", "reason"),
    [
        ("failed", "failed", "no disk"),
        ("retried", "waiting", "no disk"),
        ("stale", "stale", None),
        ("waiting", "waiting", None),
        ("diverged", "diverged", "made up to be diverged"),
    ],
)
def test_a_trial_without_final_numbers_is_a_row_with_the_ledgers_state_and_reason(
    build_sweep: Build, left: str, state: str, reason: str | None
) -> None:
    sweep = build_sweep(
        multipliers=[1, 2, 4],
        holds=("none",),
        outcomes=lambda cell: left if cell.multiplier == 2 else "completed",
    )
    trial = load_sweep(sweep).trials.set_index("D").loc[128.0]
    assert trial["state"] == state
    assert np.isnan(trial["val_loss"])
    assert trial["flops"] > 0  # planned, whatever became of it
    assert trial["parameters_total"] > 0
    assert trial["reason"] == reason


def test_undersampled_spectra_are_marked(build_sweep: Build) -> None:
    trials = load_sweep(build_sweep(multipliers=[1, 2, 4], holds=("none",), samples=2000)).trials
    assert dict(zip(trials["D"], trials["undersampled"], strict=True)) == {
        64.0: False,
        128.0: False,
        256.0: True,
    }


def test_a_result_with_nothing_but_its_outcome_does_not_crash(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",))
    key = "trials/gpt2-pre-64-128-0/result.json"
    bare = {"outcome": "completed", "step": 250, "steps": 250, "final": {}, "records": {}}
    sweep.put(key, encode_json({**bare, "seconds": None}))
    tables = load_sweep(sweep)
    trial = tables.trials.set_index("id").loc["gpt2-pre-64-128-0"]
    assert trial["state"] == "completed"
    assert trial["snapshots"] == 0
    assert np.isnan(trial["soft_rank"])
    assert "gpt2-pre-64-128-0" not in set(tables.spectra["id"])


def test_an_axis_named_like_a_measured_number_does_not_overwrite_it(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",))
    content = resolved(sweep)
    for cell in content["resolved"]["trials"]:
        cell["axes"]["tokens"] = 4096
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    tables = load_sweep(sweep)
    assert "axis_tokens" in tables.group_axes
    assert set(tables.trials["axis_tokens"]) == {4096}
    assert set(tables.trials["tokens"]) == {250.0 * 2048}


def test_layers_of_different_width_are_known_as_such(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",))
    content = resolved(sweep)
    content["resolved"]["trials"][0]["axes"]["D"] = [64, 128]
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    trial = load_sweep(sweep).trials.iloc[0]
    assert not trial["uniform_width"]
    assert trial["D"] == 96


def test_equal_budgets_of_two_model_sizes_go_to_the_size_they_belong_to(
    build_sweep: Build,
) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4])
    content = resolved(sweep)
    cells = content["resolved"]["trials"]
    larger = []
    for cell in cells:
        axes = {**cell["axes"], "d_model": 2 * cell["axes"]["d_model"], "D": 2 * cell["axes"]["D"]}
        parameters = {name: 4 * count for name, count in cell["parameters"].items()}
        larger.append({**cell, "id": f"{cell['id']}-x2", "axes": axes, "parameters": parameters})
    content["resolved"]["trials"] = cells + larger
    content["grid"]["d_model"] = [64, 128]
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    tables = load_sweep(sweep)
    assert tables.group_axes[-1] == "base_d_model"
    expected = [128.0 if trial.endswith("x2") else 64.0 for trial in tables.trials["id"]]
    assert tables.trials["base_d_model"].tolist() == expected
    assert set(tables.trials["d_model"]) > {64.0, 128.0}  # the budget moved it


def test_a_trial_that_is_a_cell_of_two_sizes_is_judged_in_both(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4])
    content = resolved(sweep)
    cells = {cell["id"]: cell for cell in content["resolved"]["trials"]}
    # At 1x the budget of the 64-wide model buys d_model 88: a cell of a size on the axis too.
    cells["gpt2-pre-88-88-0"]["holds"] = ["none", "params"]
    content["grid"]["d_model"] = [64, 88]
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    trials = load_sweep(sweep).trials
    shared = trials[trials["id"] == "gpt2-pre-88-88-0"]
    assert dict(zip(shared["base_d_model"], shared["holds"], strict=True)) == {
        64.0: ("params",),
        88.0: ("none",),
    }


def test_the_aggregation_is_the_files_unless_another_is_chosen_and_is_named(
    build_sweep: Build,
) -> None:
    sweep = build_sweep(
        multipliers=[1, 2], holds=("none",), analysis={"aggregate_layers": "deepest"}
    )
    tables = load_sweep(sweep)
    assert tables.aggregation.text.endswith("then the deepest layer alone")
    deepest = tables.spectra[(tables.spectra["layer"] == 1) & (tables.spectra["step"] > 0)]
    expected = deepest.groupby("id")["soft_rank"].median()
    assert tables.trials.set_index("id")["soft_rank"].to_dict() == expected.to_dict()
    chosen = load_sweep(sweep, aggregate_last=1, aggregate_layers="mean")
    last = tables.spectra[tables.spectra["step"] == 250]
    assert chosen.trials.set_index("id")["soft_rank"].to_dict() == pytest.approx(
        last.groupby("id")["soft_rank"].mean().to_dict()
    )


def test_a_trial_that_is_listed_twice_is_one_trial_of_both_matchings(
    build_sweep: Build, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",))
    content = resolved(sweep)
    cells = content["resolved"]["trials"]
    content["resolved"]["trials"] = [*cells, {**cells[0], "holds": ["params"]}]
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    trials = load_sweep(sweep).trials
    assert len(trials) == 3
    assert trials["holds"].tolist()[0] == ("none", "params")
    assert mentions(caplog.text, "gpt2-pre-64-64-0 twice")


@pytest.mark.parametrize("broken", [False, True])
def test_of_two_trials_of_one_cell_a_completed_one_counts_and_the_other_says_so(
    build_sweep: Build, broken: bool
) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",))
    content = resolved(sweep)
    cells = content["resolved"]["trials"]
    content["resolved"]["trials"] = [*cells, {**cells[0], "id": "again"}]
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    first = cells[0]["id"]
    for key in sweep.child(f"trials/{first}").list():
        sweep.put(f"trials/again/{key}", sweep.get(f"trials/{first}/{key}"))
    result = json.loads(sweep.get("trials/again/result.json"))
    sweep.put("trials/again/result.json", encode_json({**result, "trial_id": "again"}))
    if broken:
        sweep.delete(f"trials/{first}/result.json")
    trials = load_sweep(sweep).trials.set_index("id")
    counts, beside = ("again", first) if broken else (first, "again")
    assert trials["state"].value_counts().to_dict() == {"completed": 3, "duplicate": 1}
    assert trials.loc[beside, "state"] == "duplicate"
    assert f"trial {counts}" in trials.loc[beside, "reason"]


def test_lists_of_widths_with_the_same_mean_are_different_cells(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2], holds=("none",))
    content = resolved(sweep)
    for cell, widths in zip(content["resolved"]["trials"], ([64, 128], [128, 64]), strict=True):
        cell["axes"] |= {"D": widths, "width_multiplier": 1.5}
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    assert load_sweep(sweep).trials["state"].tolist() == ["completed", "completed"]


def test_ranks_that_no_spectrum_has_are_left_out_counted_and_said(
    build_sweep: Build, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",))
    trial = sweep.child("trials/gpt2-pre-64-128-0")
    rows = records.read_records(trial, "spectra").to_pylist()
    for row in rows:
        if row["step"] == 150:
            row |= {"soft_rank": -1.0} if row["layer"] == 0 else {"hard_rank": float("nan")}
    records.put_part(trial, "spectra", 1, rows)
    trials = load_sweep(sweep).trials.set_index("id")
    assert trials["invalid_spectra"].tolist() == [0, 2, 0]
    assert 1 < trials.loc["gpt2-pre-64-128-0", "soft_rank"] < 128
    assert "2 spectra " in caplog.text


def test_a_completed_trial_without_a_final_loss_is_a_row_with_none(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2], holds=("none",))
    key = "trials/gpt2-pre-64-64-0/result.json"
    content = json.loads(sweep.get(key))
    content["final"]["val_loss"] = None
    sweep.put(key, encode_json(content))
    trials = load_sweep(sweep).trials.set_index("id")
    assert trials["state"].tolist() == ["completed", "completed"]
    assert np.isnan(trials.loc["gpt2-pre-64-64-0", "val_loss"])


def test_mixed_layouts_are_told_apart_whatever_the_order_of_their_keys(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",))
    layouts = [{"workers": 1, "device": "cpu"}, {"device": "cpu", "workers": 1}, {"workers": 2}]
    for width, layout in zip((64, 128, 256), layouts, strict=True):
        key = f"trials/gpt2-pre-64-{width}-0/result.json"
        content = json.loads(sweep.get(key))
        sweep.put(key, encode_json({**content, "layout": layout}))
    assert load_sweep(sweep).trials["layout"].nunique() == 2


def test_a_row_of_a_snapshot_can_say_what_its_trial_is(build_sweep: Build) -> None:
    tables = load_sweep(build_sweep(multipliers=[1, 4]))
    rows = tables.with_axes(tables.spectra)
    assert len(rows) == len(tables.spectra)
    assert not any(isinstance(value, tuple | list) for value in rows.iloc[0])
    at = rows[rows["D"] == 256].iloc[0]
    assert at[["architecture", "norm", "depth", "replicate"]].tolist() == ["gpt2", "pre", 2, 0]
    assert at["holds"] == "none+params"
    assert at["width_multiplier"] == 4.0


def test_an_axis_called_like_a_recorded_column_keeps_both(build_sweep: Build) -> None:
    tables = load_sweep(build_sweep(multipliers=[1], rates=[1e-3, 2e-3]))
    rows = tables.with_axes(tables.curves)
    assert set(rows["axis_learning_rate"]) == {1e-3, 2e-3}  # of the cell
    assert set(rows["learning_rate"].dropna()) == {6e-3}  # of the step


def test_a_hundred_thousand_snapshots_of_layers_are_summed_up_exactly() -> None:
    steps, layers, trials = 100, 20, 50
    rng = np.random.default_rng(0)
    ranks = rng.uniform(1, 500, (trials, layers, steps))
    trial, layer, step = np.indices(ranks.shape)
    rows = pd.DataFrame(
        {
            "id": trial.ravel().astype(str),
            "layer": layer.ravel(),
            "step": 10 * (1 + step.ravel()),
            "site": "post",
            "status": "well sampled",
            "n_over_d": 20.0,
            **{name: ranks.ravel() for name in (*SPECTRUM_COLUMNS, "hard_rank_debiased")},
        }
    )
    assert len(rows) == 100_000
    found = aggregate(rows, Aggregation()).loc[[str(i) for i in range(trials)], "soft_rank"]
    expected = np.median(np.median(ranks[:, :, -5:], axis=2), axis=1)
    np.testing.assert_array_equal(found, expected)


def test_an_axis_that_the_records_have_as_a_column_stands_beside_it(build_sweep: Build) -> None:
    tables = load_sweep(build_sweep(multipliers=[1, 2], rates=[0.001, 0.01]))
    curves = tables.with_axes(tables.curves)
    assert set(curves["axis_learning_rate"]) == {0.001, 0.01}
    assert set(curves["learning_rate"].dropna()) == {6e-3}  # as it was recorded
    assert set(tables.with_axes(tables.spectra)["learning_rate"]) == {0.001, 0.01}


def test_a_number_too_large_for_a_float_is_no_loss_and_a_date_is_text(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2])
    result = sweep.child("trials/gpt2-pre-64-64-0")
    content = json.loads(result.get("result.json"))
    content["final"]["val_loss"] = 10**400
    result.put("result.json", json.dumps(content).encode())
    file = resolved(sweep)
    for cell in file["resolved"]["trials"]:
        cell["axes"]["day"] = datetime.date(2026, 1, 2)
    sweep.put("sweep.yaml", yaml.safe_dump(file).encode())
    trials = load_sweep(sweep).trials.set_index("id")
    broken = trials.loc["gpt2-pre-64-64-0"]
    assert broken["state"] == "failed"
    assert "result.json" in broken["reason"]
    assert np.isnan(broken["val_loss"])
    assert set(trials["day"]) == {"2026-01-02"}
