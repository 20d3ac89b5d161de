"""A trial that has a checkpoint goes on with as many workers as it was begun with."""

import json

import pytest
from small_spec import trial_laid_out as make_trial

from orchestrator.ledger.ledger import trial_storage
from orchestrator.tune.execute import as_begun
from trainers.spec import Layout, TrialSpec
from trialstore.records import Manifest, manifest_key
from trialstore.storage import LocalStorage


@pytest.fixture
def sweep(tmp_path) -> LocalStorage:
    return LocalStorage(tmp_path / "sweep")


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


def test_what_has_begun_keeps_its_workers_and_stage_and_takes_the_rest(sweep: LocalStorage):
    asked = make_trial(workers=1, keep_checkpoints=7)
    begin(sweep, asked, workers=2, cpus_per_worker=3, zero_stage=2, keep_checkpoints=1)
    layout = as_begun(sweep, asked).layout
    assert (layout.workers, layout.cpus_per_worker, layout.zero_stage) == (2, 3, 2)
    assert layout.keep_checkpoints == 7
    assert as_begun(sweep, asked).id == asked.id


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
