"""How a trial can end other than well: it diverges, is replaced, or fails; and what is kept."""

import errno
import math
import os

import pytest
import torch
from messages import mentions
from storages import Call, ScriptedStorage

from trainers import train as train_module
from trainers.durable import writer
from trainers.durable.failure import MicroBatchMemoryError, leave_failure
from trainers.models.build import build
from trainers.train import train
from trialstore import records
from trialstore.claims import Fence, LeaseLostError, claims, take
from trialstore.errors import InputError
from trialstore.records import METRICS, SPECTRA, read_records
from trialstore.storage import LocalStorage

# --- divergence is an outcome --------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.long
def test_an_absurd_learning_rate_diverges_and_the_records_are_kept(
    make_spec, trial, diary, stage
) -> None:
    spec = make_spec(
        training__learning_rate=1e30, training__steps=50, layout__zero_stage=stage,
        spectra__every=1,
    )  # fmt: skip
    log = diary()
    end = train(spec, trial, log)
    assert end.outcome == "diverged"
    assert 0 < end.step < 50
    assert end.result["reason"].endswith(f"at step {end.step}")
    assert end.result["final"]["val_loss"] is None  # it ended between evaluations
    rows = [row for row in read_records(trial, METRICS).to_pylist() if row["kind"] == "train"]
    assert [row["train_loss"] for row in rows] == log.losses
    assert end.result["final"]["train_loss"] == log.losses[-1]
    assert all(math.isfinite(loss) for loss in log.losses)
    assert read_records(trial, SPECTRA)["step"].to_pylist()[0] == 0
    assert records.get_json(trial, records.FAILURE) is None


@pytest.mark.long
def test_a_trial_that_diverged_is_not_trained_again(make_spec, trial, diary) -> None:
    spec = make_spec(training__learning_rate=1e30, training__steps=50)
    first = train(spec, trial, diary())
    log = diary()
    assert train(spec, trial, log) == first
    assert log.starts == []


@pytest.fixture
def poison(monkeypatch):
    """Set one weight of the model that is being trained to NaN, now or when it is built."""
    built = []

    def build_and_remember(*arguments):
        built.append(build(*arguments))
        for name in at_the_start:
            poison(name)
        return built[-1]

    def poison(name: str) -> None:
        if not built:
            at_the_start.append(name)
            return
        with torch.no_grad():
            built[-1].get_parameter(name).view(-1)[0] = math.nan

    at_the_start: list[str] = []
    monkeypatch.setattr(train_module, "build", build_and_remember)
    return poison


@pytest.mark.long
def test_weights_that_are_not_numbers_diverge_at_once(make_spec, trial, diary, poison) -> None:
    poison("layers.1.ffn.down.weight")
    end = train(make_spec(), trial, diary())
    assert (end.outcome, end.step) == ("diverged", 0)
    assert mentions(end.result["reason"], "nan ... step 0")
    assert end.result["records"] == {}
    assert end.result["final"] == dict.fromkeys(end.result["final"])
    assert records.committed_steps(trial.list()) == []


@pytest.mark.long
def test_activations_that_are_not_numbers_are_named(make_spec, trial, diary, poison) -> None:
    """At step 5 spectra are due and no evaluation."""
    log = diary({5: lambda: poison("layers.1.ffn.up.weight")})
    end = train(make_spec(), trial, log)
    assert (end.outcome, end.step) == ("diverged", 5)

    assert mentions(end.result["reason"], "layer 1, site pre: ... step 5")
    assert read_records(trial, METRICS)["step"].to_pylist()[-1] == 5


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.long
def test_a_gradient_that_is_not_finite_is_not_applied(
    make_spec, trial, diary, monkeypatch, stage
) -> None:
    """The loss is fine, its gradient is not: the step is named, not the one after."""
    poison = {"now": False}
    real = train_module.token_loss

    class Infinite(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    def token_loss(logits, targets):
        loss = real(logits, targets)
        return Infinite.apply(loss) if poison["now"] and loss.requires_grad else loss

    monkeypatch.setattr(train_module, "token_loss", token_loss)
    log = diary({3: lambda: poison.update(now=True)})
    end = train(make_spec(layout__zero_stage=stage), trial, log)
    assert (end.outcome, end.step) == ("diverged", 3)
    assert end.result["reason"].startswith("the gradient norm is ")
    assert read_records(trial, METRICS)["step"].to_pylist()[-1] == 3


# --- one writer ----------------------------------------------------------------------------


def replace(trial: LocalStorage) -> dict[str, bytes]:
    """Another process takes the trial over. Returns the directory as it left it."""
    take(trial)
    return contents(trial)


def contents(trial: LocalStorage) -> dict[str, bytes]:
    return {key: trial.get(key) for key in trial.list()}


@pytest.mark.parametrize("step", [2, 4, 10], ids=["a flush", "a checkpoint", "the end"])
@pytest.mark.long
def test_one_that_was_replaced_stops_and_writes_nothing_more(
    make_spec, trial, diary, monkeypatch, step
) -> None:
    left = {}

    def replaced() -> None:
        left.update(replace(trial))
        if step == 2:
            monkeypatch.setattr(writer, "FLUSH_S", 0.0)

    log = diary({step: replaced})
    with pytest.raises(LeaseLostError, match="attempt 1 "):
        train(make_spec(), trial, log)
    # Rows are written beside training, which hears of it an update or two later.
    assert step <= log.updates[-1] <= (4 if step == 2 else step)
    assert contents(trial) == left


@pytest.mark.long
def test_one_that_was_replaced_does_not_touch_its_successors_checkpoint(
    make_spec, trial, diary
) -> None:
    """It wakes up when the successor has already committed the checkpoint it comes to."""
    left = {}

    def overtaken() -> None:
        trial.put("checkpoints/step-00000004/mp_rank_00_model_states.pt", b"the successor's")
        left.update(replace(trial))

    with pytest.raises(LeaseLostError):
        train(make_spec(), trial, diary({4: overtaken}))
    assert contents(trial) == left


# --- a storage that fails ------------------------------------------------------------------


@pytest.mark.long
def test_a_full_disk_is_a_failure_and_no_checkpoint_is_committed_without_its_records(
    make_spec, tmp_path, diary
) -> None:
    trial = ScriptedStorage(tmp_path)
    trial.before("put", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), keys="*.parquet")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        train(make_spec(), trial, diary())
    assert records.committed_steps(trial.list()) == []
    assert os.strerror(errno.ENOSPC) in records.get_json(trial, records.FAILURE)["message"]


@pytest.mark.long
def test_a_storage_that_does_not_answer_is_no_failure_of_the_trial(
    make_spec, tmp_path, diary
) -> None:
    trial = ScriptedStorage(tmp_path)
    trial.before("put", OSError(errno.ESTALE, os.strerror(errno.ESTALE)), keys="*.parquet")
    with pytest.raises(OSError) as raised:  # noqa: PT011
        train(make_spec(), trial, diary())
    assert raised.value.errno == errno.ESTALE
    assert records.get_json(LocalStorage(tmp_path), records.FAILURE)["kind"] == "storage_away"


def forbidden(call: Call) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), call.key)


def test_a_failure_that_cannot_be_recorded_is_still_raised(
    make_spec, tmp_path, diary, caplog
) -> None:
    trial = ScriptedStorage(tmp_path)
    trial.before("put", forbidden)
    with pytest.raises(PermissionError, match="attempts/000001"):
        train(make_spec(), trial, diary())
    assert "recorded" in caplog.text


@pytest.mark.long
def test_nothing_rests_on_a_lease_that_cannot_be_read(make_spec, trial, diary) -> None:
    trial.put(records.LEASE, b'{"attempt": ')
    assert train(make_spec(), trial, diary()).outcome == "completed"


def test_of_several_ranks_the_first_to_fail_says_why(trial) -> None:
    """The others only lose their connection to it. The next attempt may say something else."""

    def fail(fence: Fence, message: str) -> str:
        leave_failure(trial, RuntimeError(message), fence)
        return records.get_json(trial, records.FAILURE)["message"]

    first = Fence(trial, take(trial))
    assert fail(first, "layer 3") == "RuntimeError: layer 3"
    assert fail(first, "Connection closed by peer") == "RuntimeError: layer 3"
    second = Fence(trial, take(trial))
    assert fail(second, "Connection closed by peer") == "RuntimeError: Connection closed by peer"
    assert fail(second, "disk full") == "RuntimeError: disk full"
    assert records.get_json(trial, records.FAILURE)["attempt"] == 2


def test_one_that_was_replaced_leaves_no_failure_in_its_successors_name(trial) -> None:
    orphan = Fence(trial, take(trial))
    take(trial)
    leave_failure(trial, RuntimeError("its staging folder is gone"), orphan)
    assert records.get_json(trial, records.FAILURE) is None


def test_a_failure_before_the_trial_was_taken_is_of_the_attempt_that_never_was(trial) -> None:
    take(trial)
    leave_failure(trial, RuntimeError("no such corpus"), None)
    assert records.get_json(trial, records.FAILURE)["attempt"] == 2


def test_what_failed_before_the_trial_was_taken_does_not_speak_for_the_attempt_of_its_number(
    trial,
) -> None:
    """Or that one's lack of memory, which a smaller micro-batch mends, would not be known."""
    leave_failure(trial, RuntimeError("this node sees no CUDA device"), None)
    leave_failure(trial, MicroBatchMemoryError("no memory"), Fence(trial, take(trial)))
    failure = records.get_json(trial, records.FAILURE)
    assert (failure["attempt"], failure["kind"]) == (1, "out_of_memory")


def test_a_rank_that_never_joined_says_why_the_others_lost_it(trial) -> None:
    leave_failure(trial, InputError("no such corpus on this node"), None)
    leave_failure(trial, RuntimeError("Connection reset by peer"), Fence(trial, take(trial)))
    assert records.get_json(trial, records.FAILURE)["message"].endswith("on this node")


@pytest.mark.parametrize("broken", [b'{"attempt": ', b'{"attempt": "1"}', b"[]"])
def test_a_failure_that_cannot_be_read_gives_way(trial, broken) -> None:
    trial.put(records.FAILURE, broken)
    leave_failure(trial, RuntimeError("layer 3"), Fence(trial, take(trial)))
    assert records.get_json(trial, records.FAILURE)["message"] == "RuntimeError: layer 3"


def test_tokens_that_a_node_does_not_have_are_a_failure_of_that_attempt(
    make_spec, trial, diary, monkeypatch
) -> None:
    """Of several ranks only one may lack them, when the first has taken the trial already."""

    def missing(*_: object, **__: object) -> None:
        raise InputError("no such corpus on this node")

    monkeypatch.setattr(train_module, "open_store", missing)
    with pytest.raises(InputError):
        train(make_spec(), trial, diary())
    failure, (claim,) = records.get_json(trial, records.FAILURE), claims(trial)
    assert (failure["attempt"], failure["owner"]) == (1, claim.owner)


def test_a_failure_says_what_was_noted_on_its_way(trial) -> None:
    error = MemoryError("no room")
    error.add_note("in the spectrum of layer 0")
    leave_failure(trial, error, None)
    message = records.get_json(trial, records.FAILURE)["message"]
    assert message == "MemoryError: no room; in the spectrum of layer 0"
