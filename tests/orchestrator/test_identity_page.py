"""The example of docs/identity.md is what the code makes of it."""

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.grid.expand import Grid, PlannedTrial, expand
from orchestrator.sweep.load import parse_sweep
from trainers.data.sources import DataSpec
from trainers.spec import canonical_json

PAGE = (Path(__file__).parents[2] / "docs" / "identity.md").read_text()
SWEEP = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0]
CELL, TOKENS, IDENTITY = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
(ID,) = re.findall(r"`([0-9a-f]{12})`", PAGE)


@pytest.fixture(scope="module")
def grid() -> Grid:
    tokens = DataSpec.model_validate(json.loads(TOKENS))
    return expand(parse_sweep(SWEEP, "example.yaml"), tokens, vocab_size=512)


@pytest.fixture(scope="module")
def trial(grid: Grid) -> PlannedTrial:
    """The trial of the page's cell under `params`."""
    (found,) = (
        trial
        for trial in grid.trials
        if trial.cell.typed == json.loads(CELL) and "params" in trial.matchings
    )
    return found


def test_the_cell_has_the_canonical_json_of_the_page(trial: PlannedTrial) -> None:
    assert canonical_json(trial.spec) == IDENTITY


def test_the_id_of_the_page_is_the_trials_and_the_hash_of_its_json(trial: PlannedTrial) -> None:
    assert trial.id == ID == sha256(IDENTITY.encode()).hexdigest()[:12]


def test_the_normalised_values_are_those_of_the_page(trial: PlannedTrial, grid: Grid) -> None:
    assert {change.key: change.after for change in trial.changes} == {
        "norm": "ngpt",
        "weight_decay": 0.0,
    }
    twins = [cell.into for cell in grid.merged if cell.axes["norm"] == "post"]
    assert ID in twins


def test_the_widths_are_those_of_the_page(trial: PlannedTrial, grid: Grid) -> None:
    assert f"d_model {trial.axes['d_model']} and D {trial.axes['D']}" in PAGE
    (fixed,) = (
        other.axes
        for other in grid.trials
        if other.cell.typed == trial.cell.typed and other.matchings == ("none",)
    )
    assert (fixed["d_model"], fixed["D"]) == (64, 128)
    reference = json.loads(CELL) | {"width_multiplier": 4.0}
    (both,) = (other.matchings for other in grid.trials if other.cell.typed == reference)
    assert both == ("none", "params")


@pytest.mark.parametrize(
    "setting",
    ["workers=1", "device=cuda", "zero_stage=2", "memory_mb=4096", "name=other", "retries=0"],
)
def test_what_the_page_leaves_out_of_the_id_changes_no_id(grid: Grid, setting: str) -> None:
    tokens = DataSpec.model_validate(json.loads(TOKENS))
    other = expand(parse_sweep(SWEEP, "example.yaml", [setting]), tokens, vocab_size=512)
    assert {trial.id for trial in other.trials} == {trial.id for trial in grid.trials}
