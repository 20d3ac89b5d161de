"""A trial that branches off another's run ends with the bits of one that ran alone."""

import pytest

from trainers.durable.branch import fork
from trainers.train import train
from trialstore import records
from trialstore.records import METRICS, SPECTRA, read_records
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.long

TRUNK, BRANCH, STEP = 14, 10, 8  # updates; the branch's last fifth decays


@pytest.fixture
def make_wsd(make_spec):
    def make(steps: int, **changes):
        training = {"schedule": "wsd", "warmup_steps": 2, "steps": steps}
        return make_spec(**{f"training__{k}": v for k, v in training.items()}, **changes)

    return make


@pytest.fixture
def trunk(make_wsd, tmp_path, diary) -> LocalStorage:
    spec = make_wsd(TRUNK, layout__branch_points=[STEP])
    trial = LocalStorage(tmp_path / "trunk")
    train(spec, trial, diary())
    return trial


def test_the_decay_of_the_branch_begins_where_the_two_part(make_wsd) -> None:
    assert make_wsd(BRANCH).training.stable_end == STEP
    assert make_wsd(TRUNK).training.stable_end >= STEP


def test_branch_points_do_not_change_what_trial_it_is(make_wsd) -> None:
    assert make_wsd(TRUNK).id == make_wsd(TRUNK, layout__branch_points=[3, 8]).id


def test_a_finished_trunk_keeps_the_checkpoints_that_others_branch_off_from(trunk) -> None:
    assert records.committed_steps(trunk.list("checkpoints")) == [STEP, TRUNK]


def test_a_branch_ends_with_the_bits_of_the_same_trial_run_alone(
    make_wsd, trunk, trial, tmp_path, diary, bits
) -> None:
    spec = make_wsd(BRANCH)
    assert fork(trunk, trial, spec, STEP)
    assert read_records(trial, METRICS)["step"].to_pylist()[-1] == STEP
    log = diary()
    train(spec, trial, log)
    assert log.updates == [9, 10]  # the rest is the trunk's
    alone = LocalStorage(tmp_path / "alone")
    train(spec, alone, diary())
    assert bits(trial) == bits(alone)
    assert set(read_records(trial, SPECTRA)["step"].to_pylist()) == {0, 5, 10}


def test_a_trial_that_has_begun_is_not_begun_again(make_wsd, trunk, trial, diary) -> None:
    spec = make_wsd(BRANCH)
    train(spec, trial, diary())
    before = {key: trial.get(key) for key in trial.list()}
    assert not fork(trunk, trial, spec, STEP)
    assert {key: trial.get(key) for key in trial.list()} == before


@pytest.mark.parametrize("harm", ["gone", "flipped"])
def test_without_a_whole_checkpoint_to_branch_off_from_nothing_is_written(
    make_wsd, trunk, trial, harm, stored
) -> None:
    key = stored(trunk, STEP)
    if harm == "gone":
        trunk.delete(key)
    else:
        trunk.put(key, trunk.get(key)[:-1] + b"?")
    assert not fork(trunk, trial, make_wsd(BRANCH), STEP)
    assert trial.list() == []


def test_where_the_trunks_records_cannot_be_read_nothing_is_written(make_wsd, trunk, trial) -> None:
    for key in trunk.list(METRICS):
        trunk.put(key, b"not Parquet")
    assert not fork(trunk, trial, make_wsd(BRANCH), STEP)
    assert trial.list() == []


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"workers": 2}, {"zero_stage": 1}])
def test_a_checkpoint_of_another_layout_is_left_alone(make_wsd, trunk, trial, other) -> None:
    """The branch trains from its beginning in the layout that is asked for; a checkpoint would
    hold it to that of the trunk."""
    spec = make_wsd(BRANCH, **{f"layout__{name}": value for name, value in other.items()})
    assert not fork(trunk, trial, spec, STEP)
    assert trial.list() == []
