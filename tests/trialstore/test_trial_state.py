"""A trial's state, read from its directory, is the same for everyone who asks."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trialstore.json_objects import BrokenRecordError
from trialstore.records import COLLAPSE, FAILURE, LEASE, RESULT, encode_json
from trialstore.storage import LocalStorage
from trialstore.trial_state import STATES, TrialState, finished_trials, read_state

RESULT_OF_20 = {"outcome": "completed", "step": 20, "steps": 20, "final": {}, "records": {}}


def lease(attempt: int = 1, age_s: float = 0.0, **changed: object) -> dict[str, object]:
    held = {"attempt": attempt, "step": 7, "steps": 20, "loss": 3.5, "tokens_per_s": 100.0}
    return {**held, "age_s": age_s, **changed}


def failure(attempt: int = 1, gave_up: bool = False) -> dict[str, object]:
    return {"message": "no disk", "attempt": attempt, "gave_up": gave_up}


Put = Callable[..., LocalStorage]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def into(**objects: dict[str, object]) -> LocalStorage:
        directory = LocalStorage(tmp_path / "trial")
        for name, content in objects.items():
            if "age_s" in content:  # of the heartbeat, from when the test runs
                beat = time.time() - float(str(content["age_s"]))
                content = {**content, "heartbeat_ms": int(beat * 1000)}
            directory.put(f"{name}.json", encode_json(content))
        return directory

    return into


@pytest.mark.parametrize(
    ("objects", "state", "message"),
    [
        ({}, "waiting", None),
        ({"lease": lease()}, "running", None),
        ({"lease": lease(age_s=3600)}, "stale", None),
        ({"lease": lease(released=True)}, "waiting", None),
        ({"lease": lease(released=True), "failure": failure()}, "waiting", "no disk"),
        ({"lease": lease(age_s=3600), "failure": failure()}, "waiting", "no disk"),
        ({"failure": failure(gave_up=True)}, "failed", "no disk"),
        # The process was killed; its last heartbeat is a few seconds old.
        ({"lease": lease(), "failure": failure(gave_up=True)}, "failed", "no disk"),
        # A failure without an attempt is of the newest.
        ({"lease": lease(released=True), "failure": {"gave_up": True}}, "failed", None),
        # A later attempt has begun since.
        ({"lease": lease(2), "failure": failure(1, gave_up=True)}, "running", None),
        ({"lease": lease(2, age_s=3600), "failure": failure(1)}, "stale", None),
        ({"result": RESULT_OF_20, "failure": failure(gave_up=True)}, "completed", None),
    ],
)  # fmt: skip
def test_the_state_follows_from_result_lease_and_failure(
    put: Put, objects: dict[str, dict[str, object]], state: str, message: str | None
) -> None:
    found = read_state(put(**objects))
    assert (found.state, found.message) == (state, message)
    assert found.state in STATES
    assert found.over == (state in ("failed", "completed"))


def test_only_a_running_trial_has_a_speed(put: Put) -> None:
    assert read_state(put(lease=lease())).tokens_per_s == 100.0
    assert read_state(put(lease=lease(age_s=3600))).tokens_per_s is None


def test_the_steps_of_the_plan_count_until_the_trial_says_its_own(put: Put) -> None:
    assert read_state(put(), steps=40).steps == 40
    assert read_state(put(lease=lease()), steps=40).steps == 20


def test_objects_that_the_caller_did_not_list_are_not_asked_for(put: Put) -> None:
    trial = put(lease=lease(), failure=failure(gave_up=True), collapse={"step": 5})
    assert read_state(trial, keys=[]) == TrialState(state="waiting")
    assert read_state(trial, keys=trial.list()) == read_state(trial)


@pytest.mark.parametrize("key", [RESULT, FAILURE, COLLAPSE])
def test_a_broken_record_is_raised_by_name(put: Put, key: str) -> None:
    trial = put()
    trial.put(key, b"{")
    with pytest.raises(BrokenRecordError, match=key):
        read_state(trial)


def test_a_broken_lease_is_ignored_and_logged_once(
    put: Put, caplog: pytest.LogCaptureFixture
) -> None:
    trial = put()
    trial.put(LEASE, b"{")
    assert [read_state(trial).state for _ in range(3)] == ["waiting"] * 3
    assert caplog.text.count(LEASE) == 1


def test_finished_trials_are_those_with_a_result(tmp_path: Path) -> None:
    sweep = LocalStorage(tmp_path)
    for key in ("trials/a/result.json", "trials/b/spec.json", "trials/c/deep/result.json"):
        sweep.put(key, b"{}")
    assert finished_trials(sweep) == {"a"}
