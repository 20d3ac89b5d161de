"""Checkpoints hold all of a trial's state, and are data: nothing in them is ever executed."""

import contextlib
import hashlib
import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from storages import Call, ScriptedStorage

from trainers.durable import checkpoint
from trainers.durable.checkpoint import (
    DamagedCheckpointError,
    NoUsableCheckpointError,
    described,
    newest_intact,
    newest_usable,
)
from trainers.engine.engine import Engine, Ranks, start_ranks
from trainers.models.build import build, token_loss
from trainers.recorder import Recorder
from trainers.spec import Layout
from trainers.train import train
from trialstore import records
from trialstore.claims import Fence, LeaseLostError, take
from trialstore.storage import CHUNK, LocalStorage

pytestmark = pytest.mark.long

MODEL_STATES = "mp_rank_00_model_states.pt"


@pytest.fixture
def ranks() -> Ranks:
    return start_ranks("cpu")


def update(engine: Engine, seed: int) -> float:
    """One update on tokens of their own."""
    tokens = torch.randint(257, (4, 17), generator=torch.Generator().manual_seed(seed))
    loss = token_loss(engine.forward(tokens[:, :-1]), tokens[:, 1:]).mean()
    engine.backward(loss)
    engine.step()
    return loss.item()


def committed(trial: LocalStorage, step: int, files: dict[str, bytes]) -> None:
    """A checkpoint of any content, in order."""
    listed = {}
    for name, data in files.items():
        trial.put(f"{records.checkpoint_folder(step)}/{name}", data)
        listed[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = records.Manifest("0a1b", step, 1, listed, [])
    trial.put(records.manifest_key(step), manifest.to_json())


# --- save and load -------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "stage",
    [0, pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)],
)
def test_an_engine_goes_on_from_a_checkpoint_bit_for_bit(
    make_spec, trial, ranks, stage, precision
) -> None:
    """Weights, moments, master weights and the place in the schedule are all there."""
    spec = make_spec(layout__zero_stage=stage, training__precision=precision)
    engine = Engine(build(spec.model, 0), spec, ranks)
    for seed in range(3):
        update(engine, seed)
    fence = Fence(trial, take(trial))
    checkpoint.save(engine, fence, Recorder(), ranks, 3, {"seconds": {"training": 1.5}}, Layout())
    expected = [update(engine, seed) for seed in range(3, 7)]
    engine.close()

    resumed = Engine(build(spec.model, 1), spec, ranks)  # other weights, all to be replaced
    folder = records.checkpoint_folder(3)
    files = {
        key.removeprefix(f"{folder}/"): described(trial.path(key))
        for key in trial.list("checkpoints")
    }
    assert {Path(name).parts[0] for name in files} == {"attempt-1"}
    manifest = records.Manifest(spec.id, 3, 1, files, [])
    state = checkpoint.load(resumed, trial, manifest, ranks)
    assert state["seconds"] == {"training": 1.5}
    assert [update(resumed, seed) for seed in range(3, 7)] == expected
    resumed.close()


def test_a_manifest_lists_every_file_with_its_hash_and_the_records(
    make_spec, trial, diary, stored
) -> None:
    spec = make_spec()
    train(spec, trial, diary())
    manifest = newest_intact(trial)
    assert (manifest.trial_id, manifest.step, manifest.attempt) == (spec.id, 10, 1)
    assert manifest.layout == spec.layout.model_dump(mode="json")
    data = trial.get(stored(trial, 10))
    expected = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert manifest.files == {f"attempt-1/{MODEL_STATES}": expected}
    assert {Path(part).parts[0] for part in manifest.records} == {"metrics", "spectra"}


@pytest.mark.parametrize("keep", [1, 3])
def test_no_more_checkpoints_are_kept_than_asked_for(
    make_spec, trial, dying_at, killed, keep
) -> None:
    spec = make_spec(layout__checkpoint_every=1, layout__keep_checkpoints=keep)
    with pytest.raises(killed):
        train(spec, trial, dying_at(8))
    steps = records.committed_steps(trial.list())
    assert steps == list(range(8 - keep, 8))
    folders = {key.split("/")[1] for key in trial.list("checkpoints")}
    assert folders == {f"step-{step:08d}" for step in steps}


def test_no_staged_files_are_left_on_the_machine(
    make_spec, trial, diary, dying_at, killed, tmp_path, monkeypatch
) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(staging))
    with pytest.raises(killed):
        train(make_spec(), trial, dying_at(6))
    train(make_spec(), trial, diary())
    assert list(staging.iterdir()) == []


# --- which one is used ---------------------------------------------------------------------


def test_no_checkpoint_is_none(trial) -> None:
    assert newest_intact(trial) is None
    trial.put(f"{records.checkpoint_folder(5)}/{MODEL_STATES}", b"not committed")
    assert newest_intact(trial) is None


def test_the_newest_that_matches_its_manifest_is_used_and_newer_ones_are_withdrawn(trial) -> None:
    for step in (1, 2, 3):
        committed(trial, step, {"weights": b"%d" % step})
    trial.put(f"{records.checkpoint_folder(3)}/weights", b"4")
    assert newest_usable(Fence(trial, take(trial))).step == 2
    assert records.committed_steps(trial.list()) == [1, 2]


def test_whoever_only_reads_withdraws_nothing(trial) -> None:
    for step in (1, 2):
        committed(trial, step, {"weights": b"%d" % step})
    trial.put(f"{records.checkpoint_folder(2)}/weights", b"3")
    assert newest_intact(trial).step == 1
    assert records.committed_steps(trial.list()) == [1, 2]


def test_none_that_matches_is_an_error_and_stays_one(trial) -> None:
    committed(trial, 1, {"weights": b"1"})
    trial.delete(f"{records.checkpoint_folder(1)}/weights")
    for _ in range(2):
        with pytest.raises(NoUsableCheckpointError, match=r"steps \[1\]"):
            newest_usable(Fence(trial, take(trial)))


@pytest.mark.parametrize("damaged", [False, True])
def test_one_that_was_replaced_while_it_verified_withdraws_nothing_of_its_successors(
    tmp_path, damaged
) -> None:
    """Checkpoints of gigabytes take minutes to read, and a successor may have gone on by then."""
    trial = ScriptedStorage(tmp_path)
    for step in (1, 2):
        committed(trial, step, {"weights": b"%d" % step})
    if damaged:
        trial.put(f"{records.checkpoint_folder(2)}/weights", b"3")
    halted = Fence(trial, take(trial))

    def successor(_: Call) -> None:
        take(trial)
        for step in (2, 3):
            committed(trial, step, {"weights": b"the successor's"})

    trial.after("open", successor, keys="*/weights", times=1)  # opened to be verified
    with contextlib.suppress(LeaseLostError):
        newest_usable(halted)
    assert records.committed_steps(trial.list()) == [1, 2, 3]


# --- nothing is executed, and nothing is written outside -----------------------------------


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def plant(trial: LocalStorage, step: int, name: str, data: bytes) -> None:
    """Replace a checkpoint's file, and its hash as an attacker would."""
    trial.put(f"{records.checkpoint_folder(step)}/{name}", data)
    manifest = json.loads(trial.get(records.manifest_key(step)))
    manifest["files"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    trial.put(records.manifest_key(step), records.encode_json(manifest))


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("whole_file", [True, False])
def test_a_payload_in_a_checkpoint_is_refused(
    make_spec, trial, dying_at, killed, diary, tmp_path, stage, whole_file
) -> None:
    with pytest.raises(killed):
        train(make_spec(layout__zero_stage=stage), trial, dying_at(6))
    bait = tmp_path / "executed"
    names = sorted(json.loads(trial.get(records.manifest_key(4)))["files"])
    for name in names:
        path = tmp_path / "planted"
        if whole_file:
            path.write_bytes(pickle.dumps(Payload(bait), protocol=2))
        else:
            saved = torch.load(
                trial.path(f"{records.checkpoint_folder(4)}/{name}"), weights_only=False
            )
            torch.save({**saved, "seconds": Payload(bait)}, path)
        plant(trial, 4, name, path.read_bytes())
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        train(make_spec(layout__zero_stage=stage), trial, diary())
    assert not bait.exists()
    pickle.loads(pickle.dumps(Payload(bait))).close()
    assert bait.exists()  # it would have worked


@pytest.mark.parametrize("name", ["../../../outside", "/tmp/outside", "attempt-1/../../../outside"])
def test_a_manifest_cannot_name_a_place_outside(trial, ranks, tmp_path, name) -> None:
    manifest = records.Manifest("0a1b", 1, 1, {name: {"sha256": "", "bytes": 0}}, [])
    trial.put("checkpoints/step-00000001/tmp/outside", b"planted")
    with pytest.raises(ValueError, match="root"):
        checkpoint.load(object(), trial, manifest, ranks)
    trial.put(records.manifest_key(1), manifest.to_json())
    with pytest.raises(NoUsableCheckpointError):
        newest_intact(trial)


# --- what can happen to a checkpoint -------------------------------------------------------


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def turn_a_bit(data: bytes) -> bytes:
    turned = bytearray(data)
    turned[len(data) // 3] ^= 1
    return bytes(turned)


def other_step(data: bytes) -> bytes:
    return records.encode_json({**json.loads(data), "step": 1})


def other_kinds(data: bytes) -> bytes:
    return records.encode_json({**json.loads(data), "files": ["weights"], "records": "all"})


def a_part_outside(data: bytes) -> bytes:
    return records.encode_json({**json.loads(data), "records": ["metrics/../../secret"]})


def nested(data: bytes) -> bytes:
    return b"[" * 100_000


OF_ANY_FILE = [cut, turn_a_bit, None, bytes, nested]
OF_MANIFESTS = [other_step, other_kinds, a_part_outside]


@pytest.mark.parametrize(
    ("what", "harm"),
    [
        *(("weights", harm) for harm in OF_ANY_FILE),
        *(("manifest.json", harm) for harm in [*OF_ANY_FILE, *OF_MANIFESTS]),
    ],
)
def test_a_checkpoint_that_was_harmed_gives_way_to_the_one_before(trial, what, harm) -> None:
    for step in (1, 2):
        committed(trial, step, {"weights": b"the weights after %d updates" % step})
    key = f"{records.checkpoint_folder(2)}/{what}"
    before = trial.get(key)
    trial.delete(key)
    if harm is not None:
        trial.put(key, b"" if harm is bytes else harm(before))
    if what == "manifest.json" and harm is turn_a_bit:  # it may have hit a space
        trial.put(key, before.replace(b'"sha256"', b'"sha255"'))
    assert newest_intact(trial).step == 1


def test_a_manifest_too_large_for_one_is_not_taken_into_memory(trial, monkeypatch) -> None:
    monkeypatch.setattr("trialstore.json_objects.MAX_JSON", 1000)
    committed(trial, 1, {"weights": b"1"})
    committed(trial, 2, {"weights": b"2"})
    padded = trial.get(records.manifest_key(2)) + b" " * 2000
    trial.put(records.manifest_key(2), padded)
    assert newest_intact(trial).step == 1


def test_a_file_that_changes_after_it_was_verified_is_not_loaded(trial, ranks) -> None:
    committed(trial, 1, {"weights": b"verified"})
    manifest = newest_intact(trial)
    trial.put(f"{records.checkpoint_folder(1)}/weights", b"exchanged")
    with pytest.raises(DamagedCheckpointError, match="weights of checkpoint 1 "):
        checkpoint.load(object(), trial, manifest, ranks)


class Counting(LocalStorage):
    """Remembers the longest read."""

    longest = 0

    def open(self, key: str):
        storage, stream = self, super().open(key)

        class Stream(io.BufferedReader):
            def read(self, size=-1, /):
                data = super().read(size)
                storage.longest = max(storage.longest, len(data))
                return data

        return Stream(stream.detach())


def test_a_checkpoint_larger_than_memory_is_read_piece_by_piece(tmp_path) -> None:
    trial = Counting(tmp_path)
    committed(trial, 1, {"weights": bytes(5 * CHUNK)})
    trial.longest = 0
    assert newest_intact(trial).step == 1
    assert 0 < trial.longest <= CHUNK
