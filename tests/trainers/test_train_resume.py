"""A trial that was cut off and goes on ends with the bits of one that never was."""

import json
import threading

import pytest
import torch
from messages import mentions

from trainers.durable import writer
from trainers.durable.checkpoint import NoUsableCheckpointError
from trainers.train import train
from trialstore import records
from trialstore.errors import InputError
from trialstore.lease import STOP_REQUEST
from trialstore.records import METRICS, read_records
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def trained_whole() -> dict[bytes, LocalStorage]:
    """Trials that nothing has interrupted, by spec and layout: each is trained once."""
    return {}


@pytest.fixture
def whole(make_spec, tmp_path_factory, diary, trained_whole):
    """Train a spec without interruption, beside the trial under test."""

    def run(**changes) -> LocalStorage:
        spec = make_spec(**changes)
        if spec.to_json() not in trained_whole:
            trial = LocalStorage(tmp_path_factory.mktemp("whole"))
            train(spec, trial, diary())
            trained_whole[spec.to_json()] = trial
        return trained_whole[spec.to_json()]

    return run


@pytest.fixture
def damage(stored):
    """Turn one bit of a checkpoint's file around."""

    def turn(trial: LocalStorage, step: int) -> None:
        path = trial.path(stored(trial, step))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return turn


# --- cut off -------------------------------------------------------------------------------


@pytest.mark.parametrize("flush_s", [0.0, 1e9], ids=["a part per step", "parts at checkpoints"])
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_twice_and_resumed_it_ends_with_the_same_bits(
    make_spec, trial, diary, dying_at, killed, bits, whole, monkeypatch, stage, flush_s
) -> None:
    """Checkpoints are at 4, 8 and, for 4 does not divide 10, at 10."""
    monkeypatch.setattr(writer, "FLUSH_S", flush_s)
    changes = {"layout__zero_stage": stage, "training__batch_tokens": 128, "layout__micro_batch": 4}
    spec = make_spec(**changes)
    for step in (6, 9):
        with pytest.raises(killed):
            train(spec, trial, dying_at(step))
    log = diary()
    end = train(spec, trial, log)
    assert log.starts == [(spec.id, 3, 8, 10)]
    assert log.updates == [9, 10]
    assert log.checkpoints == [10]  # not again at 8
    assert end.result["attempts"] == 3
    assert bits(trial) == bits(whole(**changes))


def test_killed_before_the_first_checkpoint_it_begins_anew(
    make_spec, trial, diary, dying_at, killed, bits, whole, monkeypatch
) -> None:
    monkeypatch.setattr(writer, "FLUSH_S", 0.0)  # rows of the lost attempt lie there
    with pytest.raises(killed):
        train(make_spec(), trial, dying_at(3))
    lost = read_records(trial, METRICS)["step"].to_pylist()
    assert lost
    assert lost == [0, 1, 2][: len(lost)]  # the last may not have been written yet
    log = diary()
    train(make_spec(), trial, log)
    assert log.starts[0][1:3] == (2, 0)
    assert bits(trial) == bits(whole())


def test_killed_between_the_last_checkpoint_and_the_result_it_only_writes_the_result(
    make_spec, trial, diary, killed, bits, whole, monkeypatch
) -> None:
    def die(*_: object) -> None:
        raise killed

    with monkeypatch.context() as patched:
        patched.setattr(writer.TrialWriter, "finish", die)
        with pytest.raises(killed):
            train(make_spec(), trial, diary())
    log = diary()
    end = train(make_spec(), trial, log)
    assert (log.updates, end.outcome, end.step) == ([], "completed", 10)
    assert bits(trial) == bits(whole())


def test_killed_while_a_checkpoint_is_stored_it_goes_on_from_the_one_before(
    make_spec, trial, diary, killed, bits, whole, monkeypatch
) -> None:
    """The files of an unfinished checkpoint do not count, and are cleared away."""
    commit = writer.TrialWriter.commit

    def die_at_8(self, step, *arguments) -> None:
        if step == 8:
            raise killed
        commit(self, step, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(writer.TrialWriter, "commit", die_at_8)
        with pytest.raises(killed):
            train(make_spec(layout__keep_checkpoints=1), trial, diary())
    trial.put(f"{records.attempt_folder(7, 1)}/mp_rank_00_model_states.pt", b"of a stopped attempt")
    log = diary()
    train(make_spec(layout__keep_checkpoints=1), trial, log)
    assert log.starts[0][2] == 4
    assert bits(trial) == bits(whole())
    assert {key.split("/")[1] for key in trial.list("checkpoints")} == {"step-00000010"}


def test_what_a_killed_attempt_was_putting_does_not_stay(
    make_spec, trial, diary, dying_at, killed
) -> None:
    """Gigabytes at each kill, under a name that no listing shows."""
    with pytest.raises(killed):
        train(make_spec(), trial, dying_at(6))
    for place in (records.attempt_folder(8, 1), "metrics"):
        trial.path(place).mkdir(parents=True, exist_ok=True)
        (trial.path(place) / ".weights.x7kq_0ab").write_bytes(b"ha")
    train(make_spec(), trial, diary())
    assert not [path for path in trial.root.rglob(".*") if path.is_file()]


def test_the_failure_is_left_for_whoever_retries_and_goes_with_success(
    make_spec, trial, diary, dying_at, killed
) -> None:
    with pytest.raises(killed):
        train(make_spec(), trial, dying_at(3))
    failure = records.get_json(trial, records.FAILURE)
    assert failure["stage"] == "train"
    assert failure["message"] == "Killed: after update 3"
    assert "Traceback" in failure["traceback"]
    assert failure["attempt"] == 1
    assert records.get_json(trial, records.LEASE)["released"]
    train(make_spec(), trial, diary())
    assert records.get_json(trial, records.FAILURE) is None


def test_the_time_of_attempts_adds_up(make_spec, trial, diary, dying_at, killed, stored) -> None:
    with pytest.raises(killed):
        train(make_spec(), trial, dying_at(6))
    manifest = json.loads(trial.get(records.manifest_key(4)))
    assert manifest["attempt"] == 1
    saved = torch.load(trial.path(stored(trial, 4)), weights_only=True)
    result = train(make_spec(), trial, diary()).result
    for kind in ("start", "training", "evaluation", "spectra"):
        assert result["seconds"][kind] > saved["seconds"][kind]


# --- stopped -------------------------------------------------------------------------------


def test_a_stopped_trial_checkpoints_and_is_continued(make_spec, trial, diary, bits, whole) -> None:
    stop = threading.Event()
    log = diary({6: stop.set})
    end = train(make_spec(), trial, log, stop=stop)
    assert (end.outcome, end.step, end.result) == (None, 6, None)
    assert log.checkpoints == [4, 6]
    assert records.get_json(trial, records.RESULT) is None
    assert records.get_json(trial, records.FAILURE) is None
    assert read_records(trial, METRICS)["step"].to_pylist()[-1] == 6
    log = diary()
    assert train(make_spec(), trial, log).outcome == "completed"
    assert log.updates == [7, 8, 9, 10]
    assert bits(trial) == bits(whole())


def test_a_trial_stopped_before_its_first_update_begins_anew(make_spec, trial, diary) -> None:
    stop = threading.Event()
    stop.set()
    log = diary()
    assert train(make_spec(), trial, log, stop=stop).step == 0
    assert log.updates == log.checkpoints == []
    assert train(make_spec(), trial, diary()).outcome == "completed"


def test_a_stop_that_comes_with_the_last_update_is_too_late(make_spec, trial, diary) -> None:
    stop = threading.Event()
    end = train(make_spec(), trial, diary({10: stop.set}), stop=stop)
    assert (end.outcome, end.step) == ("completed", 10)


def test_a_request_in_the_directory_stops_it_too(make_spec, trial, diary, monkeypatch) -> None:
    """The heartbeat sees the request; here it beats at every update."""
    seen = threading.Event()
    get = LocalStorage.get

    def watched(self, key: str) -> bytes:
        data = get(self, key)
        if key == STOP_REQUEST:
            seen.set()
        return data

    def ask() -> None:
        trial.put(STOP_REQUEST, b"{}")
        assert seen.wait(30)

    monkeypatch.setattr(LocalStorage, "get", watched)
    monkeypatch.setattr("trialstore.lease.HEARTBEAT_S", 0.005)
    end = train(make_spec(training__steps=400), trial, diary({3: ask}))
    assert end.outcome is None
    assert 3 <= end.step < 400
    assert STOP_REQUEST in trial.list()


def test_a_request_is_forgotten_when_the_trial_is_started_again(make_spec, trial, diary) -> None:
    trial.put(STOP_REQUEST, b"{}")
    assert train(make_spec(training__steps=1), trial, diary()).outcome == "completed"
    assert STOP_REQUEST not in trial.list()


# --- damaged checkpoints -------------------------------------------------------------------


@pytest.fixture
def cut_off(make_spec, trial, dying_at, killed):
    """A trial with checkpoints at 4 and 8, cut off after update 9."""
    with pytest.raises(killed):
        train(make_spec(), trial, dying_at(9))
    assert records.committed_steps(trial.list()) == [4, 8]
    return trial


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    cut_off, make_spec, diary, bits, whole, caplog, damage
) -> None:
    damage(cut_off, 8)
    log = diary()
    train(make_spec(), cut_off, log)
    assert log.updates == list(range(5, 11))
    assert mentions(caplog.text, "checkpoint 8 ... attempt-1/mp_rank_00_model_states.pt")
    assert bits(cut_off) == bits(whole())


@pytest.mark.parametrize("lost", ["mp_rank_00_model_states.pt", "manifest.json"])
def test_a_checkpoint_that_lacks_a_file_gives_way_too(
    cut_off, make_spec, diary, bits, whole, lost, stored
) -> None:
    cut_off.delete(stored(cut_off, 8, lost))
    log = diary()
    train(make_spec(), cut_off, log)
    assert log.starts[0][2] == 4
    assert bits(cut_off) == bits(whole())


def test_a_manifest_that_is_cut_short_gives_way_too(cut_off, make_spec, diary, bits, whole) -> None:
    key = records.manifest_key(8)
    cut_off.put(key, cut_off.get(key)[:-20])
    log = diary()
    train(make_spec(), cut_off, log)
    assert log.starts[0][2] == 4
    assert bits(cut_off) == bits(whole())


def test_without_an_intact_checkpoint_it_fails_and_never_begins_anew(
    cut_off, make_spec, diary, damage
) -> None:
    damage(cut_off, 4)
    damage(cut_off, 8)
    for _ in range(2):  # not even when it is tried again
        log = diary()
        with pytest.raises(NoUsableCheckpointError, match=r"steps \[4, 8\] .*rerun"):
            train(make_spec(), cut_off, log)
        assert log.starts == []
        failure = records.get_json(cut_off, records.FAILURE)
        assert failure["message"].startswith("NoUsableCheckpointError")


# --- the layout it began with --------------------------------------------------------------


def test_a_trial_keeps_the_layout_it_began_with(make_spec, trial, diary, dying_at, killed) -> None:
    with pytest.raises(killed):
        train(make_spec(layout__zero_stage=1, layout__micro_batch=2), trial, dying_at(6))
    end = train(make_spec(layout__zero_stage=2, layout__micro_batch=4), trial, diary())
    assert (end.result["layout"]["zero_stage"], end.result["layout"]["micro_batch"]) == (1, 2)


def test_a_retry_that_ran_out_of_memory_keeps_all_of_it_but_the_micro_batch(
    make_spec, trial, diary, dying_at, killed
) -> None:
    with pytest.raises(killed):
        train(make_spec(layout__zero_stage=1, layout__micro_batch=4), trial, dying_at(6))
    smaller = {"layout__micro_batch": 1, "layout__retried_smaller": True}
    end = train(make_spec(**smaller), trial, diary())
    layout = end.result["layout"]
    assert (layout["zero_stage"], layout["micro_batch"]) == (1, 1)
    assert layout["retried_smaller"]


def test_a_trial_does_not_move_to_another_kind_of_device(
    make_spec, trial, diary, dying_at, killed
) -> None:
    with pytest.raises(killed):
        train(make_spec(), trial, dying_at(6))
    manifest = records.get_json(trial, records.manifest_key(4))
    manifest["layout"]["device"] = "cuda"
    trial.put(records.manifest_key(4), records.encode_json(manifest))
    with pytest.raises(InputError, match=r"cuda .*layout\.device .*cpu"):
        train(make_spec(), trial, diary())


def test_a_result_that_is_lost_is_made_again_from_the_last_checkpoint(
    make_spec, trial, diary, bits
) -> None:
    """Compaction takes the parts away that the checkpoint was committed with."""
    train(make_spec(), trial, diary())
    before = bits(trial)
    trial.delete(records.RESULT)
    log = diary()
    assert train(make_spec(), trial, log).outcome == "completed"
    assert log.updates == []
    assert bits(trial) == before
