"""A trial that has a checkpoint goes on with as many workers as it was begun with."""

import json

import pytest
from messages import mentions
from repository import TINY
from small_spec import trial_laid_out as make_trial

from orchestrator.grid.begun import begun_trials
from orchestrator.grid.plan import Plan
from orchestrator.grid.plan_sweep import plan_sweep
from orchestrator.sweep.load import load_sweep
from trainers.durable import begun_layout
from trainers.spec import Layout, TrialSpec
from trialstore.records import Manifest, manifest_key, read_manifest
from trialstore.storage import LocalStorage
from trialstore.sweep_file import trial_storage


@pytest.fixture
def sweep(tmp_path) -> LocalStorage:
    return LocalStorage(tmp_path / "sweep")


def as_begun(sweep: LocalStorage, spec: TrialSpec) -> TrialSpec:
    return begun_layout.as_begun(trial_storage(sweep, spec.id), spec)


def begin(sweep: LocalStorage, spec: TrialSpec, **layout: object) -> None:
    """A committed checkpoint of that layout, after 5 updates."""
    manifest = Manifest(
        trial_id=spec.id, step=5, attempt=1, records=[], files={},
        layout=Layout.model_validate(layout).model_dump(mode="json"),
    )  # fmt: skip
    trial_storage(sweep, spec.id).put(manifest_key(5), manifest.to_json())


def test_what_has_not_begun_is_laid_out_as_the_sweep_says(sweep: LocalStorage):
    spec = make_trial(workers=2, zero_stage=1)
    assert as_begun(sweep, spec) == spec


def test_what_has_begun_keeps_its_layout_and_takes_the_branch_points(sweep: LocalStorage):
    asked = make_trial(workers=1, branch_points=(7,))
    begin(sweep, asked, workers=2, cpus_per_worker=3, zero_stage=2, branch_points=(3,))
    layout = as_begun(sweep, asked).layout
    assert (layout.workers, layout.cpus_per_worker, layout.zero_stage) == (2, 3, 2)
    assert layout.branch_points == (7,)
    assert as_begun(sweep, asked).id == asked.id


def test_a_micro_batch_that_a_retry_has_made_smaller_stays_as_small(sweep: LocalStorage):
    smaller = make_trial(micro_batch=4, retried_smaller=True)
    begin(sweep, smaller, micro_batch=8)
    assert as_begun(sweep, smaller).layout == smaller.layout


def test_the_driver_and_the_trainer_have_one_rule(sweep: LocalStorage):
    asked = make_trial(workers=1, keep_checkpoints=7, branch_points=(7,))
    begin(sweep, asked, workers=2, micro_batch=4, keep_checkpoints=1)
    trial = trial_storage(sweep, asked.id)
    trained = begun_layout.continue_from(asked, trial, read_manifest(trial, 5))
    assert as_begun(sweep, asked) == trained


def test_a_checkpoint_that_says_nothing_of_its_layout_changes_none(sweep: LocalStorage):
    asked = make_trial(workers=2)
    about = {"trial_id": asked.id, "step": 5, "attempt": 1, "records": [], "files": {}}
    trial_storage(sweep, asked.id).put(manifest_key(5), json.dumps(about).encode())
    assert as_begun(sweep, asked) == asked


def test_another_device_is_left_for_the_trainer_to_refuse(sweep: LocalStorage):
    asked = make_trial(workers=1)
    begin(sweep, asked, workers=2, device="cuda")
    assert as_begun(sweep, asked) == asked


def unreadable(step: int) -> list[bytes]:
    layout = {"workers": "many"}
    about = {"trial_id": "x", "step": step, "attempt": 1, "records": [], "files": {}}
    return [b"", b"[", json.dumps({**about, "layout": layout}).encode()]


@pytest.mark.parametrize("number", range(3))
def test_a_checkpoint_that_cannot_be_read_decides_nothing(sweep: LocalStorage, number: int):
    asked = make_trial(workers=1)
    trial_storage(sweep, asked.id).put(manifest_key(5), unreadable(5)[number])
    assert as_begun(sweep, asked) == asked


@pytest.mark.parametrize("number", range(3))
def test_the_one_before_it_does_as_the_trainer_goes_on_from_that(sweep: LocalStorage, number: int):
    asked = make_trial(workers=1)
    begin(sweep, asked, workers=2)
    trial_storage(sweep, asked.id).put(manifest_key(6), unreadable(6)[number])
    assert as_begun(sweep, asked).layout.workers == 2


# --- said in plan and run ------------------------------------------------------------------


def planned(sweep: LocalStorage, *settings: str) -> Plan:
    return plan_sweep(load_sweep(TINY, settings), sweep)


def test_a_plan_shows_begun_trials_as_they_will_continue_and_says_so(sweep: LocalStorage):
    first, *others = [row.trial.spec for row in planned(sweep).rows]
    begin(sweep, first, workers=1, checkpoint_every=5)
    plan = planned(sweep, "resources.workers=2")
    workers = {row.trial.id: row.workers for row in plan.rows}
    assert workers == {first.id: 1, **{spec.id: 2 for spec in others}}
    (note,) = [note for note in plan.notes if "resources.workers" in note]
    assert mentions(note, "1 unfinished trial ... resources.workers 1, not 2")
    assert not [note for note in plan.notes if "checkpoint_every" in note]


def test_a_finished_trial_keeps_nothing(sweep: LocalStorage):
    first = planned(sweep).rows[0].trial.spec
    begin(sweep, first, workers=1)
    trial_storage(sweep, first.id).put("result.json", b"{}")
    assert begun_trials(sweep) == set()
    assert not any("continue" in note for note in planned(sweep, "resources.workers=2").notes)


def test_what_a_storage_holds_beside_trials_is_no_trial(sweep: LocalStorage):
    sweep.put("trials/notes.txt", b"")
    assert begun_trials(sweep) == set()
