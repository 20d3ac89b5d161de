"""The writer: rows before the checkpoint that rests on them, and the result last of all."""

import concurrent.futures
import threading

import pytest
from storages import Call, ScriptedStorage

from trainers.durable import writer as writer_module
from trainers.durable.writer import TrialWriter
from trialstore import records
from trialstore.claims import take
from trialstore.lease import STOP_REQUEST, Lease, LeaseLostError
from trialstore.records import METRICS, SPECTRA, read_records
from trialstore.storage import LocalStorage


@pytest.fixture
def trial(tmp_path) -> ScriptedStorage:
    return ScriptedStorage(tmp_path / "trial")


@pytest.fixture
def lease(trial, monkeypatch):
    monkeypatch.setattr("trialstore.lease.HEARTBEAT_S", 1e6)
    with Lease(trial, steps=10) as held:
        trial.forget_calls()
        yield held


@pytest.fixture
def writer(trial, lease) -> TrialWriter:
    return TrialWriter(trial, "0a1b", lease)


def done(trial: ScriptedStorage) -> list[str]:
    """The order of what is done to a trial, but for the lease."""
    return [
        f"{'delete' if call.method == 'delete' else 'put'} {call.key}"
        for call in trial.done("put", "put_new", "delete")
        if (call.method, call.key) != ("put", records.LEASE)
    ]


def metric(step: int) -> records.Row:
    return {"step": step, "tokens": step, "time_ms": 0, "kind": "train", "train_loss": 1.0}


def spectrum(step: int) -> records.Row:
    return {
        "step": step, "tokens": step, "time_ms": 0, "site": "post", "layer": 0, "bucket": "all",
        "D": 2, "N": 20,
    }  # fmt: skip


def steps(trial: LocalStorage, table: str = METRICS) -> list[int]:
    return read_records(trial, table).column("step").to_pylist()


def test_rows_are_durable_after_a_flush_and_not_before(trial, writer) -> None:
    writer.add(METRICS, [metric(1)])
    writer.add(METRICS, [metric(2)])
    writer.add(SPECTRA, [spectrum(2)])
    assert trial.list(METRICS) == []
    writer.flush()
    assert (steps(trial), steps(trial, SPECTRA)) == ([1, 2], [2])
    assert trial.list(METRICS) == ["metrics/part-1-1-2.parquet"]


def test_a_flush_of_nothing_writes_nothing(trial, writer) -> None:
    writer.flush()
    writer.flush()
    assert done(trial) == []


def test_rows_are_flushed_when_they_have_waited_long_enough(trial, writer, monkeypatch) -> None:
    now = writer._flushed
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now)
    writer.add(METRICS, [metric(1)])
    now += writer_module.FLUSH_S * 0.9
    writer.flush_if_due()
    assert writer._writing is None
    now += writer_module.FLUSH_S * 0.2
    writer.flush_if_due()
    writer._writing.result()
    assert steps(trial) == [1]
    writer.add(METRICS, [metric(2)])
    writer.flush_if_due()
    writer._writing.result()
    assert steps(trial) == [1]  # the clock has begun anew


class SlowPut:
    """A put that takes place when it is let go, and then ends as it is told."""

    def __init__(self) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.thread = 0

    def __call__(self, call: Call) -> None:
        self.thread = threading.get_ident()
        self.reached.set()
        assert self.let_go.wait(60)
        if self.error is not None:
            raise self.error


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """A trial, its writer, and how parts are put."""
    monkeypatch.setattr("trialstore.lease.HEARTBEAT_S", 1e6)
    monkeypatch.setattr(writer_module, "FLUSH_S", 0.0)
    trial, part = ScriptedStorage(tmp_path / "slow"), SlowPut()
    trial.before("put", part, keys=f"{METRICS}/*")
    with Lease(trial, steps=10) as lease:
        trial.forget_calls()
        writer = TrialWriter(trial, "0a1b", lease)
        yield trial, writer, part
        part.let_go.set()
        writer.close()


def test_training_does_not_wait_for_a_slow_storage_and_no_row_is_lost(slow) -> None:
    trial, writer, part = slow
    writer.add(METRICS, [metric(1)])
    writer.flush_if_due()
    assert part.reached.wait(60)
    assert part.thread != threading.get_ident()
    for step in (2, 3):  # the storage is still at the first part
        writer.add(METRICS, [metric(step)])
        writer.flush_if_due()
    assert done(trial) == []
    part.let_go.set()
    writer.commit(3, {}, {})
    assert done(trial) == [
        "put metrics/part-1-1-1.parquet",
        "put metrics/part-1-2-3.parquet",
        "put checkpoints/step-00000003/manifest.json",
    ]


@pytest.mark.parametrize("then", ["flush_if_due", "flush", "commit", "finish", "read"])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), LeaseLostError("replaced")])
def test_what_fails_beside_training_is_raised_by_whatever_writes_next(slow, then, error) -> None:
    trial, writer, part = slow
    part.error = error
    writer.add(METRICS, [metric(1)])
    writer.flush_if_due()
    part.let_go.set()
    concurrent.futures.wait([writer._writing])
    arguments = {"commit": (1, {}, {}), "finish": ({},), "read": (METRICS, ["step"])}
    with pytest.raises(type(error)) as raised:
        getattr(writer, then)(*arguments.get(then, ()))
    assert raised.value is error
    assert done(trial) == []


def test_a_writer_that_is_closed_has_ended_what_it_began(slow) -> None:
    trial, writer, part = slow
    writer.add(METRICS, [metric(1)])
    writer.flush_if_due()
    assert part.reached.wait(60)
    threading.Timer(0.1, part.let_go.set).start()
    writer.close()
    assert done(trial) == ["put metrics/part-1-1-1.parquet"]


def test_a_checkpoint_is_committed_after_every_row_it_rests_on(trial, writer) -> None:
    writer.add(METRICS, [metric(1)])
    writer.flush()
    writer.add(METRICS, [metric(2)])
    writer.add(SPECTRA, [spectrum(2)])
    writer.commit(2, {"weights": {"sha256": "00", "bytes": 1}}, {"workers": 1})
    assert done(trial) == [
        "put metrics/part-1-1-1.parquet",
        "put metrics/part-1-2-2.parquet",
        "put spectra/part-1-2-2.parquet",
        "put checkpoints/step-00000002/manifest.json",
    ]
    manifest = records.Manifest.from_json(trial.get(records.manifest_key(2)))
    assert sorted(manifest.records) == [*trial.list(METRICS), *trial.list(SPECTRA)]
    assert (manifest.trial_id, manifest.step, manifest.attempt) == ("0a1b", 2, 1)
    assert manifest.layout == {"workers": 1}


def test_a_resumed_writer_rests_on_the_rows_of_the_checkpoint_too(trial, writer, lease) -> None:
    writer.add(METRICS, [metric(1)])
    writer.commit(1, {}, {})
    manifest = records.Manifest.from_json(trial.get(records.manifest_key(1)))
    lease.attempt = 2
    again = TrialWriter(trial, "0a1b", lease)
    again.resume(manifest)
    again.add(METRICS, [metric(2)])
    again.commit(2, {}, {})
    resumed = records.Manifest.from_json(trial.get(records.manifest_key(2)))
    assert resumed.records == ["metrics/part-1-1-1.parquet", "metrics/part-2-2-2.parquet"]
    assert manifest.records == ["metrics/part-1-1-1.parquet"]
    assert steps(trial) == [1, 2]


def test_a_resumed_writer_does_not_read_what_an_earlier_attempt_lost(trial, writer, lease) -> None:
    """Before its first flush a reader still sees those rows; its result must not rest on them."""
    writer.add(METRICS, [metric(1)])
    writer.commit(1, {}, {})
    writer.add(METRICS, [metric(2)])
    writer.flush()
    lease.attempt = 2
    again = TrialWriter(trial, "0a1b", lease)
    again.resume(records.Manifest.from_json(trial.get(records.manifest_key(1))))
    assert steps(trial) == [1, 2]
    assert again.read(METRICS, ["tokens"])["step"].to_pylist() == [1]


def test_only_the_newest_checkpoints_are_kept_and_manifests_go_first(trial, writer) -> None:
    for step in (1, 2, 3):
        trial.put(f"{records.attempt_folder(step, 1)}/weights", b"")
        writer.commit(step, {}, {})
    trial.put("checkpoints/step-00000009/weights", b"of an attempt that was killed")
    trial.forget_calls()
    writer.prune_checkpoints(keep=2)
    assert done(trial) == [
        "delete checkpoints/step-00000001/manifest.json",
        "delete checkpoints/step-00000001/attempt-1/weights",
        "delete checkpoints/step-00000009/weights",
    ]
    assert trial.list("checkpoints") == [
        f"checkpoints/step-0000000{step}/{name}"
        for step in (2, 3)
        for name in ("attempt-1/weights", "manifest.json")
    ]


def test_files_of_an_attempt_that_was_cut_off_go_from_a_checkpoint_that_is_kept(
    trial, writer, lease
) -> None:
    """It died before the manifest, and its successor has come to the same step."""
    trial.put(f"{records.attempt_folder(4, 1)}/weights", b"cut off")
    lease.attempt = 2
    trial.put(f"{records.attempt_folder(4, 2)}/weights", b"whole")
    trial.put(f"{records.attempt_folder(4, 3)}/weights", b"of one that came since the check")
    writer.commit(4, {"attempt-2/weights": {"sha256": "00", "bytes": 5}}, {})
    writer.prune_checkpoints(keep=1)
    assert trial.list("checkpoints") == [
        "checkpoints/step-00000004/attempt-2/weights",
        "checkpoints/step-00000004/attempt-3/weights",
        "checkpoints/step-00000004/manifest.json",
    ]


def test_the_result_comes_after_its_tables_and_the_parts_go_after_it(trial, writer) -> None:
    writer.add(METRICS, [metric(1)])
    writer.commit(1, {}, {})
    writer.add(METRICS, [metric(2)])
    trial.put(records.FAILURE, b"{}")
    trial.put(STOP_REQUEST, b"{}")
    trial.forget_calls()
    result = writer.finish({"outcome": "completed"})
    assert done(trial) == [
        "put metrics/part-1-2-2.parquet",
        "put metrics/part-1-1-2.parquet",
        "put result.json",
        "delete failure.json",
        "delete stop-request.json",
        "put checkpoints/step-00000001/manifest.json",
        "delete metrics/part-1-1-1.parquet",
        "delete metrics/part-1-2-2.parquet",
    ]
    assert result == records.get_json(trial, records.RESULT)
    assert result["records"] == {METRICS: "metrics/part-1-1-2.parquet"}
    assert result["attempts"] == 1
    assert steps(trial) == [1, 2]


@pytest.mark.long
def test_a_long_trial_has_few_parts_and_every_row_of_them(trial, writer, monkeypatch) -> None:
    monkeypatch.setattr(writer_module, "MERGED_PARTS", 4)
    for step in range(1, 151):
        writer.add(METRICS, [metric(step)])
        writer.add(SPECTRA, [spectrum(step)])
        writer.flush()
        if step % 10 == 0:
            writer.commit(step, {}, {})
            writer.prune_checkpoints(keep=2)
            # Those of the last checkpoints, and what they were merged into.
            assert len(trial.list(METRICS)) <= 2 * (10 + 4)
    assert steps(trial) == steps(trial, SPECTRA) == list(range(1, 151))
    rows = records.read_parts(trial, METRICS, records.live_parts(trial))
    assert rows["train_loss"].to_pylist() == [1.0] * 150


def test_an_older_checkpoint_keeps_the_parts_that_it_rests_on(trial, writer, monkeypatch) -> None:
    monkeypatch.setattr(writer_module, "MERGED_PARTS", 2)
    for step in range(1, 7):
        writer.add(METRICS, [metric(step)])
        writer.commit(step, {}, {})
        writer.prune_checkpoints(keep=3)
        kept = records.committed_steps(trial.list("checkpoints"))
        assert kept == [one for one in (step - 2, step - 1, step) if one > 0]
        for checkpoint in kept:
            manifest = records.Manifest.from_json(trial.get(records.manifest_key(checkpoint)))
            rows = records.read_parts(trial, METRICS, manifest.records)
            assert rows["step"].to_pylist() == list(range(1, checkpoint + 1))


def test_a_manifest_that_was_harmed_does_not_end_a_trial_that_runs(
    trial, writer, monkeypatch
) -> None:
    """Another checkpoint is newer by now, and nobody may ever need that one."""
    monkeypatch.setattr(writer_module, "MERGED_PARTS", 2)
    for step in range(1, 7):
        writer.add(METRICS, [metric(step)])
        writer.commit(step, {}, {})
        trial.put(records.manifest_key(step), b"harmed")
        writer.prune_checkpoints(keep=2)
    assert len(trial.list(METRICS)) < 6


def test_parts_that_are_large_are_not_written_again(trial, writer, monkeypatch) -> None:
    monkeypatch.setattr(writer_module, "MERGED_PARTS", 2)
    monkeypatch.setattr(writer_module, "LARGE_PART", 0)
    for step in range(1, 9):
        writer.add(METRICS, [metric(step)])
        writer.commit(step, {}, {})
    put = [one for one in done(trial) if one.startswith("put metrics/")]
    assert len(put) == 8 + 4
    assert steps(trial) == list(range(1, 9))


def test_one_that_is_replaced_as_it_ends_takes_nothing_of_its_successors_away(
    trial, writer, monkeypatch
) -> None:
    """In an object store the successor's result may replace this one's, and name its own parts."""
    put_new = trial.put_new

    def overtaken(key: str, data: bytes) -> None:
        put_new(key, data)
        take(trial)
        trial.put("metrics/part-2-1-1.parquet", b"the successor's")
        trial.put(records.FAILURE, b"the successor's")

    writer.add(METRICS, [metric(1)])
    monkeypatch.setattr(trial, "put_new", overtaken)
    with pytest.raises(LeaseLostError):
        writer.finish({"outcome": "completed"})
    assert steps(trial) == [1]
    assert trial.get("metrics/part-2-1-1.parquet") == b"the successor's"
    assert trial.get(records.FAILURE) == b"the successor's"


@pytest.mark.parametrize("verb", ["flush", "commit", "finish"])
def test_nothing_is_written_once_a_newer_attempt_has_taken_over(trial, writer, verb) -> None:
    writer.add(METRICS, [metric(1)])
    take(trial)
    left = trial.list()
    trial.forget_calls()
    arguments = {"flush": (), "commit": (1, {}, {}), "finish": ({},)}[verb]
    with pytest.raises(LeaseLostError):
        getattr(writer, verb)(*arguments)
    assert trial.list() == left
    assert done(trial) == []
