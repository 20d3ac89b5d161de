"""A storage or a cache that somebody else can write holds data: it is never executed, and what
was changed is never taken in silence."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from repository import ROOT

from trainers.data.sources import BytesTokenizer, DataSource, TextFiles
from trainers.data.store import find_store, open_store
from trainers.data.verified import verified_once
from trainers.models.model_spec import BlockSpec
from trainers.spec import refuse_unnamed_block
from trainers.train import read_spec, train
from trialstore import records
from trialstore.errors import InputError
from trialstore.records import METRICS, BrokenRecordError, read_part
from trialstore.storage import LocalStorage


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


# --- checkpoints ---------------------------------------------------------------------------


def with_code(saved: dict, bait: Payload) -> dict[str, dict]:
    """A checkpoint's file with the payload, by where that lies."""
    optimizers = ("optimizer", "optimizer_state_dict")
    return {
        "beside all else": {**saved, "extra": bait},
        "in the weights": {**saved, "module": {"weight": bait}},
        "in the moments": saved | dict.fromkeys(optimizers, bait),
        "in our own state": {**saved, "seconds": {"training": bait}, "tokens": bait},
    }


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_wherever_in_whichever_file_of_a_checkpoint_code_lies_it_is_not_run(
    make_spec, trial, dying_at, killed, diary, tmp_path, stage
) -> None:
    """With the right hash, as somebody has it who writes the manifest too."""
    spec = make_spec(layout__zero_stage=stage, layout__keep_checkpoints=1)
    with pytest.raises(killed):
        train(spec, trial, dying_at(6))
    bait = tmp_path / "executed"
    manifest = records.read_manifest(trial, 4)
    for name in manifest.files:
        path = trial.path(f"{records.checkpoint_folder(4)}/{name}")
        saved = torch.load(path, weights_only=False)
        for place, content in with_code(saved, Payload(bait)).items():
            attacked = LocalStorage(tmp_path / "attacked")
            shutil.copytree(trial.root, attacked.root)
            torch.save(content, attacked.path(f"{records.checkpoint_folder(4)}/{name}"))
            data = attacked.get(f"{records.checkpoint_folder(4)}/{name}")
            about = {**manifest.files[name], "sha256": hashlib.sha256(data).hexdigest()}
            forged = replace(manifest, files={**manifest.files, name: about})
            attacked.put(records.manifest_key(4), forged.to_json())
            with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
                train(spec, attacked, diary())
            assert not bait.exists(), (name, place)
            shutil.rmtree(attacked.root)
    pickle.loads(pickle.dumps(Payload(bait))).close()
    assert bait.exists()  # it would have worked


# --- specs, leases, marks ------------------------------------------------------------------


def test_a_spec_whose_content_is_not_of_its_id_is_refused(make_spec, trial) -> None:
    spec = make_spec()
    other = make_spec(training__learning_rate=1.0)
    trial.put(records.SPEC, other.to_json().replace(other.id.encode(), spec.id.encode()))
    with pytest.raises(InputError, match=f"id {spec.id} .*trial {other.id}"):
        read_spec(trial)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training", {"steps": "10", "batch_tokens": 64, "learning_rate": 1e-2}),
        ("training", {"steps": 10**30, "batch_tokens": 64, "learning_rate": 1e-2}),
        ("replicate", float("nan")),
        ("replicate", True),
        ("layout", {"workers": -1}),
        ("layout", []),
        ("block", "os:system"),
    ],
)
def test_a_spec_of_other_kinds_is_refused(make_spec, trial, key, value) -> None:
    content = json.loads(make_spec().to_json())
    del content["id"]
    content[key] = value
    trial.put(records.SPEC, json.dumps(content).encode())
    with pytest.raises(InputError, match=r"spec\.json: "):
        read_spec(trial)


@pytest.mark.parametrize("layout", [{"workers": -1}, {"workers": "2"}, {"of a later version": 1}])
@pytest.mark.long
def test_a_layout_of_other_kinds_is_refused_with_its_place(
    make_spec, trial, diary, dying_at, killed, layout
) -> None:
    with pytest.raises(killed):
        train(make_spec(), trial, dying_at(5))
    manifest = records.read_manifest(trial, 4)
    trial.put(records.manifest_key(4), replace(manifest, layout=layout).to_json())
    with pytest.raises(InputError, match=r"step-00000004/manifest\.json: layout: "):
        train(make_spec(), trial, diary())


def test_code_that_a_spec_names_needs_the_users_word(make_spec) -> None:
    block = BlockSpec(path="antigravity:Board", source_hash="0" * 16).model_dump()
    spec = make_spec(model__block=block)
    for named in (None, "antigravity:Other"):
        with pytest.raises(InputError, match="--block antigravity:Board"):
            refuse_unnamed_block(spec, named, "spec.json")
    refuse_unnamed_block(spec, "antigravity:Board", "spec.json")
    assert "antigravity" not in sys.modules


# --- records -------------------------------------------------------------------------------


def part(trial: LocalStorage, table: pa.Table, **options: object) -> str:
    key = "metrics/part-1-1-1.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    trial.put(key, sink.getvalue().to_pybytes())
    return key


def row(**changes: object) -> dict:
    return {"step": 1, "tokens": 1, "time_ms": 1, "kind": "train", "train_loss": 2.5} | changes


@pytest.mark.parametrize(
    "rows",
    [[row(step="one")], [row(train_loss="low")], [row(tokens=None)], [row(step=[1])], [{"x": 1}]],
)
def test_a_part_of_other_types_is_a_broken_record(trial, rows) -> None:
    key = part(trial, pa.Table.from_pylist(rows))
    with pytest.raises(BrokenRecordError, match=r"part-1-1-1\.parquet "):
        read_part(trial, key)


def test_a_part_with_absurdly_many_rows_is_not_unpacked(trial, monkeypatch) -> None:
    monkeypatch.setattr(records, "MAX_ROWS", 1000)
    key = part(trial, pa.Table.from_pylist([row()] * 1001))
    with pytest.raises(BrokenRecordError, match="claims 1,001 rows"):
        read_part(trial, key)


@pytest.mark.long
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_byte_of_a_part_is_noticed_or_changes_nothing(trial, every) -> None:
    rows = [row(step=step, train_loss=step / 7) for step in range(40)]
    key = records.put_part(trial, METRICS, 1, rows)
    data, before, unnoticed = trial.get(key), read_part(trial, key), []
    for place in range(0, len(data), every):
        turned = bytearray(data)
        turned[place] ^= 0x10
        trial.put(key, bytes(turned))
        try:
            if not read_part(trial, key).equals(before):
                unnoticed.append(place)
        except BrokenRecordError:
            continue
    # Of the footer Parquet keeps no checksum; every page of values has one.
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert [place for place in unnoticed if place < footer] == []


# --- token stores --------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> DataSource:
    path = tmp_path / "corpus" / "lines.txt"
    path.parent.mkdir()
    verses = (f"{n} green bottles, and {n * n % 89} walls " * 9 for n in range(99))
    path.write_text("\n\n".join(verses))
    return DataSource(corpus=TextFiles(paths=[str(path)]), tokenizer=BytesTokenizer())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("WIDTHLAB_CACHE", str(folder))
    return folder


def change_a_token(folder: Path, split: str = "train") -> None:
    """In its place, leaving all counts and sizes as they are, and the times too."""
    path = folder / f"{split}/00000.arrow"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_token_that_was_changed_is_noticed_and_the_store_made_anew(
    corpus, cache, caplog, split
) -> None:
    store = open_store(corpus, cache)
    tokens = np.concatenate(list(getattr(store, split).chunks()))
    change_a_token(store.folder, split)
    again = open_store(corpus, cache, expected=store.data_spec)
    assert "hash" in caplog.text
    assert np.array_equal(np.concatenate(list(getattr(again, split).chunks())), tokens)
    assert again.digest == store.digest


def test_without_its_corpus_a_changed_store_is_refused(corpus, cache) -> None:
    store = open_store(corpus, cache)
    change_a_token(store.folder)
    Path(corpus.corpus.paths[0]).unlink()
    with pytest.raises(InputError):
        open_store(corpus, cache, expected=store.data_spec)
    assert find_store(store.data_spec, cache) is None


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": "257"}, {"highest_id": None}, {"unigram_sha256": None},
        {"contents": {}}, {"separator": 1.5}, {"splits": []}, {"format": "3"},
        {"splits": {"train": {}, "heldout": {}}},
    ],
)  # fmt: skip
def test_a_description_of_other_kinds_is_not_believed(corpus, cache, change) -> None:
    store = open_store(corpus, cache)
    path = store.folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert find_store(store.data_spec, cache) is None
    assert open_store(corpus, cache).meta == store.meta


def test_a_tokenizer_that_was_changed_is_noticed(corpus, cache) -> None:
    store = open_store(corpus, cache)
    text = store.tokenizer_path.read_text()
    store.tokenizer_path.write_text(text.replace("a", "b"))
    assert find_store(store.data_spec, cache) is None


@pytest.mark.long
def test_other_tokens_than_a_checkpoint_was_trained_on_are_refused(
    make_spec, trial, dying_at, killed, diary, token_cache, tmp_path, monkeypatch
) -> None:
    """Even where whoever changed them has set their hash too."""
    spec = make_spec()
    with pytest.raises(killed):
        train(spec, trial, dying_at(6))
    cache = tmp_path / "cache"
    monkeypatch.setenv("WIDTHLAB_CACHE", str(cache))
    store = open_store(spec.source, cache)
    change_a_token(store.folder)
    path = store.folder / "meta.json"
    meta = json.loads(path.read_text())
    ids = (
        pa.ipc.open_file(str(store.folder / "train/00000.arrow")).get_batch(0).column(0).to_numpy()
    )
    meta["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(ids.data).hexdigest()
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="the checkpoint of step 4"):
        train(spec, trial, diary())


def test_a_file_is_read_through_once_and_again_when_it_has_changed(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    reads = []

    def digest() -> str:
        reads.append(path.read_bytes())
        return "right" if reads[-1] == b"content" else "wrong"

    assert [verified_once(path, "right", tmp_path, digest) for _ in range(3)] == [True] * 3
    assert len(reads) == 1
    stat = path.stat()
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not verified_once(path, "right", tmp_path, digest)
    path.write_bytes(b"content")
    assert verified_once(path, "right", tmp_path, digest)
    assert len(reads) == 3


def test_another_node_need_not_read_it_again(tmp_path, monkeypatch) -> None:
    """Nodes number the devices that they mount each in its own order."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert verified_once(path, "right", tmp_path, lambda: "right")
    stat = Path.stat

    def elsewhere(self, **options):
        found = stat(self, **options)
        fields = {"st_mtime_ns": found.st_mtime_ns, "st_ctime_ns": found.st_ctime_ns}
        return os.stat_result((*found[:2], found.st_dev + 1, *found[3:]), fields)

    monkeypatch.setattr(Path, "stat", elsewhere)
    assert verified_once(path, "right", tmp_path, lambda: pytest.fail("it was read again"))


def test_a_note_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(json, "dump", full)
    assert verified_once(path, "right", tmp_path, lambda: "right")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_where_others_can_write_no_note_is_believed(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "no home"))
    path = tmp_path / "file"
    path.write_bytes(b"content")
    tmp_path.chmod(0o777)
    reads = []
    for _ in range(2):
        assert verified_once(path, "right", tmp_path, lambda: reads.append(1) or "right")
    assert len(reads) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# --- data that vanish ----------------------------------------------------------------------


@pytest.mark.long
def test_a_store_that_vanishes_in_mid_training_is_a_clear_failure_of_the_next_attempt(
    make_spec, trial, diary, dying_at, killed, corpus, cache
) -> None:
    """What is mapped stays for as long as somebody trains on it; who comes next finds nothing."""
    data = open_store(corpus, cache).data_spec
    spec = make_spec(data=data.model_dump(), source=corpus.model_dump())
    log = dying_at(6)

    def vanish() -> None:
        shutil.rmtree(find_store(data, cache).folder)
        Path(corpus.corpus.paths[0]).unlink()

    log.after[3] = vanish
    with pytest.raises(killed):
        train(spec, trial, log)
    with pytest.raises(InputError, match=r"lines\.txt"):
        train(spec, trial, diary())
    failure = records.get_json(trial, records.FAILURE)
    assert failure["kind"] == "input"
    assert "lines.txt" in failure["message"]
    assert records.committed_steps(trial.list()) == [4]


CUT = """
import os, sys
from trainers import __main__ as command

class Cutting(command.ConsoleLog):
    def progress(self, step, *arguments):
        super().progress(step, *arguments)
        if step == 6:
            os.truncate(sys.argv[1], 64)

command.ConsoleLog = Cutting
sys.exit(command.main(sys.argv[2:]))
"""


@pytest.mark.processes
@pytest.mark.slow
def test_a_store_that_is_cut_short_in_mid_training_kills_it_and_is_made_anew(
    make_spec, trial, corpus, cache, tmp_path, bits, diary
) -> None:
    data = open_store(corpus, cache).data_spec
    spec = make_spec(data=data.model_dump(), source=corpus.model_dump())
    path = tmp_path / "spec.json"
    path.write_bytes(spec.to_json())
    tokens = find_store(data, cache).folder / "train/00000.arrow"
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(tokens), str(path), "--out", str(trial.root)],
        check=False, cwd=ROOT, timeout=240, capture_output=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGBUS
    assert records.get_json(trial, records.FAILURE) is None  # so it counts as preempted
    log = diary()
    assert train(spec, trial, log).outcome == "completed"
    assert log.starts[0][2] == 4
    alone = LocalStorage(tmp_path / "alone")
    train(spec, alone, diary())
    assert bits(trial) == bits(alone)
