"""Claims about sweeps that cannot be read: bad input is named, one bad trial costs itself alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from messages import mentions
from resolved_sweep import resolved

from analysis.tables.sweep_tables import load_sweep
from trialstore.errors import InputError
from trialstore.records import encode_json
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]


def test_a_directory_that_is_no_sweep_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing .* no sweep\.yaml.*trials/"):
        load_sweep(LocalStorage(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: small\n", r"resolved\.trials"),
        ("just words\n", r"resolved\.trials"),
        ("resolved: {trials: []}\n", r"resolved\.trials"),
        ("resolved: {trials: [{axes: {}}]}\n", "name is None"),
        ("{", "YAML"),
    ],
)
def test_a_sweep_file_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, text: str, message: str
) -> None:
    sweep = LocalStorage(tmp_path)
    sweep.put("sweep.yaml", text.encode())
    with pytest.raises(InputError, match=message) as caught:
        load_sweep(sweep)
    assert "sweep.yaml" in str(caught.value)


def test_a_trial_that_cannot_be_read_is_left_out_and_named(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",))
    sweep.put("trials/gpt2-pre-64-128-0/result.json", b"{")
    sweep.put("trials/gpt2-pre-64-64-0/spectra/part-1-0-250.parquet", b"not parquet")
    trials = load_sweep(sweep).trials.set_index("id")
    assert trials["state"].to_dict() == {
        "gpt2-pre-64-64-0": "failed",
        "gpt2-pre-64-128-0": "failed",
        "gpt2-pre-64-256-0": "completed",
    }
    assert mentions(trials.loc["gpt2-pre-64-128-0", "reason"], "result.json ... JSON")
    assert "spectra" in trials.loc["gpt2-pre-64-64-0", "reason"]


@pytest.mark.parametrize(("name", "width"), [("D", 0), ("D", []), ("d_model", -8), ("D", "wide")])
def test_a_width_that_is_none_is_refused_by_trial_and_value(
    build_sweep: Build, name: str, width: object
) -> None:
    sweep = build_sweep(multipliers=[1, 2], holds=("none",))
    content = resolved(sweep)
    content["resolved"]["trials"][1]["axes"][name] = width
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    with pytest.raises(InputError, match=f"gpt2-pre-64-128-0 has {name} .* above 0"):
        load_sweep(sweep)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"final": {"val_loss": "NaN"}}, 'final val_loss "NaN"'),
        ({"final": {"val_loss": 1.25}}, "val_loss of 1.25"),
        ({"step": 50}, "one of them was changed"),
        ({"step": "200"}, 'step "200"'),
        ({"trial_id": "gpt2-pre-64-128-0"}, "is of trial 'gpt2-pre-64-128-0', not"),
    ],
)
def test_a_result_that_was_changed_is_not_believed(
    build_sweep: Build, change: dict[str, Any], reason: str
) -> None:
    sweep = build_sweep(multipliers=[1, 2], holds=("none",))
    key = "trials/gpt2-pre-64-64-0/result.json"
    sweep.put(key, encode_json({**json.loads(sweep.get(key)), **change}))
    trials = load_sweep(sweep).trials.set_index("id")
    assert trials["state"].tolist() == ["failed", "completed"]
    assert reason in trials.loc["gpt2-pre-64-64-0", "reason"]


def test_a_result_that_names_no_parts_is_a_failed_trial(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1, 2], holds=("none",))
    key = "trials/gpt2-pre-64-64-0/result.json"
    content = json.loads(sweep.get(key))
    content["records"] = {"spectra": 5}
    sweep.put(key, encode_json(content))
    trial = load_sweep(sweep).trials.iloc[0]
    assert trial["state"] == "failed"
    assert "names 5 for its spectra" in trial["reason"]


@pytest.mark.parametrize("seed", ["a", None, [0], 0.5, True, 2**63])
def test_a_replicate_that_is_no_whole_number_is_refused_by_name(
    build_sweep: Build, seed: object
) -> None:
    sweep = build_sweep(multipliers=[1, 2])
    content = resolved(sweep)
    content["resolved"]["trials"][1]["axes"]["seed"] = seed
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    with pytest.raises(InputError, match=r"gpt2-pre-64-128-0 .*seed"):
        load_sweep(sweep)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"holds": [None]}, r"has holds \[None\]"),
        ({"holds": True}, "has holds True"),
        ({"holds": "params"}, "has holds 'params'"),
        ({"axes": {"width_multiplier": 0}}, "has width_multiplier 0;"),
        ({"axes": {"width_multiplier": "wide"}}, "has width_multiplier 'wide'"),
    ],
)
def test_a_cell_that_means_nothing_is_bad_input(build_sweep, change, message) -> None:
    sweep = build_sweep(multipliers=[1, 2, 4], holds=("none",))
    content = yaml.safe_load(sweep.get("sweep.yaml"))
    cell = content["resolved"]["trials"][0]
    cell |= {**change, "axes": {**cell["axes"], **change.get("axes", {})}}
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    with pytest.raises(InputError, match=message):
        load_sweep(sweep)
