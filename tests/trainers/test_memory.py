"""Memory that ends: what can be mended by a smaller micro-batch is told from what cannot."""

import numpy as np
import pytest
import torch

from trainers import train as train_module
from trainers.durable.failure import MicroBatchMemoryError, is_out_of_memory, kind_of
from trainers.durable.memory import halved, micro_batch
from trainers.train import train
from trialstore import records
from trialstore.errors import InputError, NoAnswerError
from trialstore.records import METRICS, SPECTRA, get_json, read_records
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.long

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory:"
        " you tried to allocate 99999999999999 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_every_way_to_run_out_of_memory_is_known(error) -> None:
    assert is_out_of_memory(error)


def test_what_torch_really_raises_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**60, np.uint8)
    assert is_out_of_memory(numpys.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError(), OSError(12, "no")])
def test_other_errors_are_not_of_memory(error) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("sequences", "workers", "first", "sizes"),
    [
        (16, 1, None, [8, 4, 2, 1]),
        (12, 1, None, [6, 3, 1]),
        (12, 2, 3, [1]),
        (7, 1, None, [1]),
        (1, 1, None, []),
        (30, 1, 10, [5, 2, 1]),
    ],
)
def test_halves_divide_what_a_worker_has(make_spec, sequences, workers, first, sizes) -> None:
    spec = make_spec(
        training__batch_tokens=16 * sequences,
        layout__workers=workers,
        layout__micro_batch=first,
    )
    found = []
    while (spec := halved(spec)) is not None:
        found.append(spec.layout.micro_batch)
        assert spec.layout.retried_smaller
        assert (sequences // workers) % micro_batch(spec) == 0
    assert found == sizes


@pytest.fixture
def memory_for(monkeypatch):
    """A device that holds so many sequences, from an update on."""

    def limit(sequences: int, error: Exception, from_update: int = 0) -> None:
        updates = {"begun": 0}
        real_update, real_loss = train_module.update, train_module.token_loss

        def update(*arguments):
            updates["begun"] += 1
            return real_update(*arguments)

        def token_loss(logits, targets):
            if len(logits) > sequences and updates["begun"] > from_update:
                raise error
            return real_loss(logits, targets)

        monkeypatch.setattr(train_module, "update", update)
        monkeypatch.setattr(train_module, "token_loss", token_loss)

    return limit


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_the_failure_says_that_a_smaller_micro_batch_may_help(
    make_spec, trial, diary, memory_for, error
) -> None:
    memory_for(2, error)
    with pytest.raises(MicroBatchMemoryError, match="micro-batch of 4 "):
        train(make_spec(), trial, diary())
    failure = get_json(trial, records.FAILURE)
    assert failure["kind"] == "out_of_memory"
    assert "widthlab run" in failure["message"]


def test_with_one_sequence_it_says_what_else_to_do(make_spec, trial, diary, memory_for) -> None:
    memory_for(0, MemoryError())
    with pytest.raises(MicroBatchMemoryError, match="model or context"):
        train(make_spec(layout__micro_batch=1), trial, diary())


def test_memory_that_ends_elsewhere_is_a_plain_failure(
    make_spec, trial, diary, monkeypatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(train_module, "build", no_memory)
    with pytest.raises(MemoryError):
        train(make_spec(), trial, diary())
    assert get_json(trial, records.FAILURE)["kind"] == "error"


def test_an_input_that_gave_no_answer_is_told_from_one_that_cannot_be_used() -> None:
    assert kind_of(InputError("no such corpus")) == "input"
    assert kind_of(NoAnswerError("the hub gave no answer")) == "input_away"


def test_a_broken_connection_says_that_it_was_another_rank() -> None:
    assert kind_of(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer "
                                "[127.0.0.1]:1234")) == "peer_lost"  # fmt: skip
    assert kind_of(RuntimeError("shapes differ")) == "error"


@pytest.fixture(scope="module")
def with_enough(tmp_path_factory) -> LocalStorage:
    """Where the trial that never ran out of memory is trained, once for all that did."""
    return LocalStorage(tmp_path_factory.mktemp("with-enough"))


@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "cut_off_at",
    [pytest.param(0, marks=pytest.mark.slow), 5, pytest.param(7, marks=pytest.mark.slow)],
    ids=["at once", "after 5", "after 7"],
)
def test_in_smaller_pieces_it_learns_the_same_up_to_the_order_of_sums(
    make_spec, trial, with_enough, diary, memory_for, stage, cut_off_at
) -> None:
    """Odd numbers of updates too: no engine may remember half an update of the old size."""
    spec = make_spec(layout__zero_stage=stage, layout__checkpoint_every=1)
    expected = with_enough.child(f"stage-{stage}")
    if not expected.list():
        train(spec, expected, diary())
    memory_for(2, MemoryError(), from_update=cut_off_at)
    with pytest.raises(MicroBatchMemoryError):
        train(spec, trial, diary())
    log = diary()
    end = train(halved(spec), trial, log)
    assert log.starts[0][2] == cut_off_at
    layout = end.result["layout"]
    assert (layout["micro_batch"], layout["retried_smaller"]) == (2, True)
    for table, column in ((METRICS, "train_loss"), (METRICS, "val_loss"), (SPECTRA, "soft_rank")):
        found, wanted = (
            read_records(whose, table)[column].drop_null().to_pylist()
            for whose in (trial, expected)
        )
        assert found == pytest.approx(wanted, rel=1e-4), column


def test_what_comes_after_goes_on_in_the_smaller_pieces(
    make_spec, trial, diary, dying_at, killed
) -> None:
    """A driver that knows nothing of it asks for the sweep's own micro-batch again."""
    spec = make_spec()
    with pytest.raises(killed):
        train(halved(spec), trial, dying_at(6))
    layout = train(spec, trial, diary()).result["layout"]
    assert (layout["micro_batch"], layout["retried_smaller"]) == (2, True)
