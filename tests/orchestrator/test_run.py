"""What a driver does around its trials: begun, given up, left to another. Nothing is trained."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from storages import ScriptedStorage

from orchestrator import run as run_module
from orchestrator.grid.expand import Grid, expand
from orchestrator.grid.plan_records import resolved_yaml
from orchestrator.ledger.ledger import trial_status
from orchestrator.sweep.load import parse_sweep
from orchestrator.tune import execute
from orchestrator.tune.stopping import request_stop
from orchestrator.tune.sweep_run import SweepRun
from trainers.data.sources import DataSpec
from trialstore.driver_lease import Driving
from trialstore.records import FAILURE, encode_json
from trialstore.retries import RETRIES
from trialstore.storage import LocalStorage
from trialstore.sweep_file import SWEEP_FILE, trial_storage

DATA = DataSpec(corpus_fingerprint="0" * 16, tokenizer_hash="f" * 16)
SWEEP = """\
name: mini
model: {architecture: gpt2, norm: pre, depth: 2, d_model: 64, head_dim: 16, context: 64}
grid: {width_multiplier: [1, 4]}
training: {steps: 4, batch_tokens: 2048, learning_rate: 1e-3}
evaluation: {every: 4}
spectra: {every: 4}
"""
CONFIG = parse_sweep(SWEEP, "mini.yaml")


@pytest.fixture
def grid() -> Grid:
    return expand(CONFIG, DATA, 512)


@pytest.fixture
def sweep(tmp_path: Path, grid: Grid) -> ScriptedStorage:
    sweep = ScriptedStorage(tmp_path)
    sweep.put(SWEEP_FILE, resolved_yaml(CONFIG, grid, DATA, 512, {}).encode())
    return sweep


def train(sweep: LocalStorage, grid: Grid, held: Driving, retry_failed: bool = False) -> None:
    run = SweepRun(CONFIG, sweep, grid, grid.trials, 2, held, retry_failed)
    run_module._train(run, Console(file=io.StringIO()))


def ends(monkeypatch: pytest.MonkeyPatch, grid: Grid, then=lambda: None) -> None:
    """Every trial ends with an error of which its directory knows nothing."""

    def run_trials(*_: object) -> dict[str, str]:
        then()
        return {trial.id: "the actor died" for trial in grid.trials}

    monkeypatch.setattr(execute, "run_trials", run_trials)


def states(sweep: LocalStorage, grid: Grid) -> set[str]:
    return {
        trial_status(trial_storage(sweep, trial.id), trial.id, {}, 4).state for trial in grid.trials
    }


def test_what_ended_without_a_word_is_given_up(sweep, grid, monkeypatch) -> None:
    ends(monkeypatch, grid)
    train(sweep, grid, Driving("a"))
    assert states(sweep, grid) == {"failed"}


def test_not_where_it_was_asked_to_stop(sweep, grid, monkeypatch) -> None:
    ends(monkeypatch, grid, then=lambda: request_stop(sweep))
    train(sweep, grid, Driving("a"))
    assert states(sweep, grid) == {"waiting"}


def test_nor_where_another_drives_by_now(sweep, grid, monkeypatch) -> None:
    """It trains these very trials: to give them up would end them for it."""
    held = Driving("a")
    ends(monkeypatch, grid, then=held.give_way)
    train(sweep, grid, held)
    assert states(sweep, grid) == {"waiting"}


def test_a_driver_that_is_killed_while_it_begins_failed_trials_anew_has_lost_none(
    sweep, grid
) -> None:
    """A trial without its failure is none that failed, and would be refused for its count."""
    counts = {"failures": 3, "preemptions": 0, "out_of_memory": 0, "in_a_row": 0, "open": None}
    for trial in grid.trials:
        directory = trial_storage(sweep, trial.id)
        directory.put(FAILURE, encode_json({"message": "no", "attempt": 1, "gave_up": True}))
        directory.put(RETRIES, encode_json(counts))
    sweep.after("delete", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(sweep, grid, Driving("a"), retry_failed=True)
    assert states(sweep, grid) == {"failed"}
