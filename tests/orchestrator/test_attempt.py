"""One attempt at a trial as Ray runs it: whether there is one, how large, and what its end is."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from messages import mentions
from small_spec import small_spec
from storages import ScriptedStorage

from orchestrator.tune import attempt as attempt_module
from orchestrator.tune.attempt import FAILED, UNFINISHED, attempt
from orchestrator.tune.preemption import PreemptedError
from orchestrator.tune.trial_request import TrialRequest
from trainers.durable.failure import leave_failure
from trainers.spec import Layout, TrialSpec
from trialstore import records, retries
from trialstore.claims import Fence, LeaseLostError, newest_attempt, take
from trialstore.driver_lease import current_driver, driving
from trialstore.errors import FinalError, InputError, NoAnswerError, is_final
from trialstore.records import FAILURE, RESULT, encode_json, get_json
from trialstore.retries import Budget, opened, read_retries, write_retries
from trialstore.storage import LocalStorage, StorageFullError
from trialstore.sweep_file import trial_storage

BUDGET = Budget(failures=2, preemptions=3)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)


@pytest.fixture
def sweep(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def spec(**layout: object) -> TrialSpec:
    return small_spec(12, **layout)


class Trial:
    """A trial whose attempts end as they are told, in order; as a trainer, it takes the lease."""

    def __init__(self, sweep: LocalStorage, *ends: object, **layout: object) -> None:
        self.sweep, self.spec = sweep, spec(**layout)
        self.directory = trial_storage(sweep, self.spec.id)
        self.ends = list(ends)
        self.micro_batches: list[int | None] = []

    def run(self, spec: TrialSpec) -> str | None:
        self.micro_batches.append(spec.layout.micro_batch)
        take(self.directory)
        self.directory.put(records.SPEC, spec.to_json())
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    def once(self, shall_stop: bool = False) -> str:
        return self.attempt(lambda: shall_stop)

    def attempt(self, stop_requested: Callable[[], bool], **given: object) -> str:
        driver = given.get("driver", current_driver(self.sweep))
        request = TrialRequest(self.sweep.url, driver, "probe", self.spec, BUDGET)
        return attempt(self.sweep, request, given.get("run", self.run), stop_requested)

    def until_it_ends(self) -> str:
        """As Ray does: whatever is raised is a reason to start anew."""
        while True:
            try:
                return self.once()
            except Exception as error:
                if is_final(error):
                    raise
                if isinstance(error, Failed):
                    error.leave(self.directory)


class Failed(RuntimeError):  # noqa: N818 (an event, not a mistake)
    """An exception of the trial, which its trainer leaves in failure.json."""

    def __init__(self, kind: str = "error") -> None:
        super().__init__(kind)
        self.kind = kind

    def leave(self, trial: LocalStorage) -> None:
        said = {
            "attempt": newest_attempt(trial),
            "kind": self.kind,
            "message": f"{self.kind} it was",
        }
        trial.put(FAILURE, encode_json(said))


class Died(RuntimeError):  # noqa: N818
    """What Ray sees of a process that is gone; nothing is left behind."""


def test_a_trial_that_ends_is_not_tried_again(sweep) -> None:
    trial = Trial(sweep, "completed")
    assert trial.once() == "completed"


def test_one_that_has_its_result_is_not_run(sweep) -> None:
    trial = Trial(sweep)
    result = {"outcome": "diverged", "step": 1, "steps": 1, "final": {}, "records": {}}
    trial.directory.put(RESULT, encode_json({**result, "trial_id": trial.spec.id}))
    assert trial.once() == "diverged"


def test_a_failure_may_happen_as_often_as_the_budget_says(sweep) -> None:
    assert Trial(sweep, Failed(), Failed(), "completed").until_it_ends() == "completed"


def no_room() -> StorageFullError:
    return StorageFullError(errno.ENOSPC, "No space left on device: part finds 0 free")


def test_a_full_storage_ends_the_attempts_and_charges_none(sweep) -> None:
    trial = Trial(sweep, *[no_room() for _ in range(5)], "completed")
    for _ in range(5):
        assert trial.once() == UNFINISHED
        Failed("no_room").leave(trial.directory)
    assert trial.once() == "completed"
    assert read_retries(trial.directory).failures == 0
    assert read_retries(trial.directory).preemptions == 0


def test_where_not_even_the_count_finds_room_nothing_is_begun(sweep, monkeypatch) -> None:
    trial = Trial(sweep, "completed")
    put = LocalStorage.put

    def full(storage: LocalStorage, key: str, data: bytes) -> None:
        raise no_room()

    monkeypatch.setattr(LocalStorage, "put", full)
    assert trial.once() == UNFINISHED
    assert trial.ends == ["completed"]
    monkeypatch.setattr(LocalStorage, "put", put)
    assert trial.once() == "completed"


def test_input_that_is_refused_beside_a_full_storage_is_not_tried_again_either(
    sweep, monkeypatch
) -> None:
    trial = Trial(sweep, InputError("no such block"))
    monkeypatch.setattr(attempt_module, "give_up", lambda *_: (_ for _ in ()).throw(no_room()))
    assert trial.once() == UNFINISHED


def test_one_failure_more_and_it_is_given_up_with_its_own_words(sweep) -> None:
    trial = Trial(sweep, Failed(), Failed(), Failed(), "never")
    assert trial.until_it_ends() == FAILED
    assert trial.ends == ["never"]
    failure = get_json(trial.directory, FAILURE)
    assert failure["gave_up"]
    assert "it was" in failure["message"]


def test_preemptions_have_a_budget_of_their_own(sweep) -> None:
    trial = Trial(sweep, Died(), Failed(), Died(), Failed("peer_lost"), Failed(), "completed")
    assert trial.until_it_ends() == "completed"
    counted = read_retries(trial.directory)
    assert (counted.failures, counted.preemptions) == (2, 3)


def test_a_failure_from_before_the_trial_was_taken_is_charged_once(sweep) -> None:
    """It has the number that the next attempt takes, and that one is killed."""
    trial = Trial(sweep, Died(), "completed")
    write_retries(trial.directory, opened(trial.directory, read_retries(trial.directory), None))
    leave_failure(trial.directory, RuntimeError("this node sees no CUDA device"), None)
    assert trial.until_it_ends() == "completed"
    counted = read_retries(trial.directory)
    assert (counted.failures, counted.preemptions) == (1, 1)


def test_one_preemption_more_and_it_is_given_up_and_says_why(sweep) -> None:
    trial = Trial(sweep, *[Died() for _ in range(4)], "never")
    assert trial.until_it_ends() == FAILED
    message = get_json(trial.directory, FAILURE)["message"]
    assert mentions(message, "4 ... resources.preemptions ... 3")


def test_a_trial_that_dies_with_its_driver_is_not_charged(sweep) -> None:
    trial = Trial(sweep, *[Died() for _ in range(9)], "completed")
    for _ in range(9):
        with driving(sweep), pytest.raises(Died):
            trial.once()
    with driving(sweep):
        assert trial.once() == "completed"
    assert read_retries(trial.directory).preemptions == 0


def test_bad_input_is_not_tried_again(sweep) -> None:
    trial = Trial(sweep, InputError("no such corpus"), "never")
    assert trial.until_it_ends() == FAILED
    assert get_json(trial.directory, FAILURE)["message"] == "no such corpus"


def test_a_corpus_that_does_not_answer_is_tried_again_and_charged_as_a_preemption(sweep) -> None:
    trial = Trial(sweep, NoAnswerError("the hub gave no answer"), "completed")
    assert trial.until_it_ends() == "completed"
    counted = read_retries(trial.directory)
    assert (counted.failures, counted.preemptions) == (0, 1)


def test_nor_is_what_is_final_without_being_the_users_input(sweep) -> None:
    trial = Trial(sweep, FinalError("the checkpoint has gone"), "never")
    assert trial.until_it_ends() == FAILED
    assert trial.ends == ["never"]


def test_out_of_memory_is_tried_with_half_until_it_fits_and_is_not_charged(sweep) -> None:
    """Twelve sequences: six, three, one."""
    trial = Trial(sweep, *[Failed("out_of_memory") for _ in range(3)], "completed")
    assert trial.until_it_ends() == "completed"
    assert trial.micro_batches == [None, 6, 3, 1]
    counted = read_retries(trial.directory)
    assert (counted.failures, counted.out_of_memory) == (0, 3)


def test_out_of_memory_with_one_sequence_is_a_failure(sweep) -> None:
    ends = [Failed("out_of_memory") for _ in range(4)]
    trial = Trial(sweep, *ends, "never", micro_batch=2)
    assert trial.until_it_ends() == FAILED
    assert trial.micro_batches == [2, 1, 1, 1]
    assert "out_of_memory" in get_json(trial.directory, FAILURE)["message"]


@pytest.mark.parametrize("write", [1, 2, 3])
def test_whoever_is_killed_at_a_write_does_not_have_it_halved_twice(sweep, write) -> None:
    trial = Trial(sweep, Failed("out_of_memory"))
    with pytest.raises(Failed) as raised:
        trial.once()
    raised.value.leave(trial.directory)
    trial.sweep = ScriptedStorage(sweep.root)
    trial.sweep.before("put", Cut(), skip=write - 1)
    with pytest.raises(Cut):
        trial.once()
    trial.sweep, trial.ends = sweep, ["completed"]
    assert trial.once() == "completed"
    assert trial.micro_batches[-1] in (None, 6)


class Cut(Exception):  # noqa: N818
    """The process is gone."""


def test_the_next_driver_begins_with_what_fitted(sweep) -> None:
    trial = Trial(sweep, Failed("out_of_memory"), Died())
    with driving(sweep):
        for _ in range(2):
            with pytest.raises((Failed, Died)) as raised:
                trial.once()
            if isinstance(raised.value, Failed):
                raised.value.leave(trial.directory)
    trial.ends = ["completed"]
    with driving(sweep):
        assert trial.once() == "completed"
    assert trial.micro_batches == [None, 6, 6]


def test_a_stored_micro_batch_that_no_longer_fits_the_workers_is_left(sweep) -> None:
    trial = Trial(sweep, "completed", workers=4)  # three sequences each
    stored = trial.spec.model_copy(
        update={"layout": Layout(workers=2, micro_batch=2, retried_smaller=True)}
    )
    trial.directory.put(records.SPEC, stored.to_json())
    assert trial.once() == "completed"
    assert trial.micro_batches == [None]


def test_one_that_made_room_is_started_again_elsewhere(sweep) -> None:
    trial = Trial(sweep, None, "completed")
    with pytest.raises(PreemptedError):
        trial.once()
    assert trial.once() == "completed"
    assert read_retries(trial.directory).preemptions == 1


def test_one_that_was_asked_to_stop_is_not(sweep) -> None:
    asked = iter([False, True])
    assert Trial(sweep, None).attempt(lambda: next(asked)) == UNFINISHED


def test_none_begins_once_the_sweep_shall_stop(sweep) -> None:
    trial = Trial(sweep)
    assert trial.once(shall_stop=True) == UNFINISHED
    assert trial.directory.list() == []


def test_a_wait_ends_when_the_sweep_shall_stop(sweep, monkeypatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 1e6)
    monkeypatch.setattr(retries, "LONGEST_DELAY_S", 1e6)
    trial = Trial(sweep, Died())
    with pytest.raises(Died):
        trial.once()
    asked = iter([False, True])
    assert trial.attempt(lambda: next(asked)) == UNFINISHED
    assert read_retries(trial.directory).preemptions == 1


def test_a_trial_that_another_process_has_taken_is_left_to_it(sweep) -> None:
    trial = Trial(sweep, LeaseLostError("attempt 1 was replaced"))
    assert trial.once() == UNFINISHED
    assert get_json(trial.directory, FAILURE) is None


def test_when_another_driver_has_the_sweep_nothing_is_started_again(sweep) -> None:
    trial = Trial(sweep, None)

    def run(spec: TrialSpec) -> str | None:
        replace_driver(sweep)
        return trial.run(spec)

    assert trial.attempt(lambda: False, run=run) == UNFINISHED


def test_nor_does_what_was_handed_over_before_begin(sweep) -> None:
    """Its successor trains it by now: to take it away would begin it a third time."""
    trial = Trial(sweep, "never")
    with driving(sweep) as held:
        replace_driver(sweep)
        assert trial.attempt(lambda: False, driver=held.owner) == UNFINISHED
    assert trial.directory.list() == []


def test_nor_what_waits_for_its_next_attempt(sweep, monkeypatch) -> None:
    trial = Trial(sweep, Failed(), "never")
    with driving(sweep) as held:
        with pytest.raises(Failed) as raised:
            trial.once()
        raised.value.leave(trial.directory)
        monkeypatch.setattr(retries, "FIRST_DELAY_S", 1e6)
        monkeypatch.setattr(retries, "LONGEST_DELAY_S", 1e6)
        monkeypatch.setattr(attempt_module.time, "sleep", lambda seconds: replace_driver(sweep))
        assert trial.attempt(lambda: False, driver=held.owner) == UNFINISHED


def replace_driver(sweep: LocalStorage) -> None:
    """Another, elsewhere, has found this one silent."""
    claim = {"host": "h", "pid": 1, "started": 0.0, "state": "driving", "heartbeat_ms": 1}
    sweep.put(f"drivers/000009-{'a' * 32}.json", encode_json(claim))


def test_a_result_of_another_trial_is_not_taken_for_this_ones(sweep) -> None:
    trial = Trial(sweep, "never")
    result = {"outcome": "completed", "step": 1, "steps": 1, "final": {}, "records": {}}
    trial.directory.put(RESULT, encode_json({**result, "trial_id": "9" * 12}))
    assert trial.once() == FAILED
    assert trial.ends == ["never"]


def test_a_spec_that_was_tampered_with_is_not_taken(sweep) -> None:
    trial = Trial(sweep, "never")
    other = trial.spec.model_copy(update={"replicate": 7})
    forged = other.to_json().replace(other.id.encode(), trial.spec.id.encode())
    trial.directory.put(records.SPEC, forged)
    assert trial.once() == FAILED
    assert " id " in get_json(trial.directory, FAILURE)["message"]


def test_the_fence_knows_the_attempts_that_were_counted(sweep) -> None:
    trial = Trial(sweep, Died(), "completed")
    trial.until_it_ends()
    assert read_retries(trial.directory).open.attempt == 2
    assert Fence(trial.directory, take(trial.directory)).holds()
