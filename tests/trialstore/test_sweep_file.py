"""A sweep's resolved file is read in one place, which checks all that its readers rely on."""

from pathlib import Path
from typing import Any

import pytest

from trialstore.errors import InputError
from trialstore.records import encode_json
from trialstore.storage import LocalStorage
from trialstore.sweep_file import SWEEP_FILE, read_sweep_file, trial_storage

AXES = {"D": 256, "d_model": 64, "seed": 0}


def written(folder: Path, *cells: Any, **changed: Any) -> LocalStorage:
    sweep = LocalStorage(folder)
    content = {"name": "s", "training": {"steps": 20}, "resolved": {"trials": list(cells)}}
    sweep.put(SWEEP_FILE, encode_json({**content, **changed}))  # JSON is YAML
    return sweep


def cell(**changed: Any) -> dict[str, Any]:
    return {"id": "a", "axes": AXES, **changed}


def test_a_cell_has_its_own_values_and_those_of_the_sweep(tmp_path: Path) -> None:
    own = cell(id="b", steps=30, holds=["params"], parameters={"total": 9}, flops=8)
    sweep = read_sweep_file(written(tmp_path, cell(), own))
    assert (sweep.name, sweep.ids) == ("s", ("a", "b"))
    first, second = sweep.cells
    assert (first.steps, first.holds, first.parameters, first.flops) == (20, ("none",), {}, None)
    assert (second.steps, second.holds, second.flops) == (30, ("params",), 8)
    assert second.parameters == {"total": 9}
    assert second.axes == AXES


def test_a_trial_that_is_listed_twice_is_one_cell_of_both_budgets(tmp_path: Path) -> None:
    sweep = read_sweep_file(written(tmp_path, cell(holds=["flops"]), cell(holds=["params"])))
    (only,) = sweep.cells
    assert only.holds == ("flops", "params")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"id": "../../elsewhere"}, "elsewhere"),
        ({"id": 3}, "3"),
        ({"axes": [1]}, "axes"),
        ({"axes": {**AXES, "seed": "x"}}, "seed 'x'"),
        ({"axes": {**AXES, "D": 0}}, "D 0"),
        ({"axes": {"D": 256}}, "d_model None"),
        ({"holds": "params"}, "holds 'params'"),
        ({"steps": -1}, "steps -1"),
        ({"steps": "many"}, "steps 'many'"),
    ],
)
def test_a_cell_that_no_run_writes_is_refused_by_name_and_value(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named) as refused:
        read_sweep_file(written(tmp_path, cell(**changed)))
    assert SWEEP_FILE in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"name": None}, "name"),
        ({"training": []}, "training"),
        ({"resolved": {}}, r"resolved\.trials"),
        ({"resolved": {"trials": []}}, r"resolved\.trials"),
    ],
)
def test_a_file_that_no_run_writes_is_refused(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        read_sweep_file(written(tmp_path, cell(), **changed))


@pytest.mark.parametrize("below", [".", "a file"])
def test_a_place_without_the_file_is_not_a_sweeps_directory(tmp_path: Path, below: str) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(InputError, match=SWEEP_FILE):
        read_sweep_file(LocalStorage(tmp_path / below))


@pytest.mark.parametrize("trial_id", ["..", "a/b", "", "a\0b"])
def test_an_id_cannot_lead_out_of_the_folder_of_trials(tmp_path: Path, trial_id: str) -> None:
    with pytest.raises(InputError):
        trial_storage(LocalStorage(tmp_path), trial_id)
