"""The token store: what is in it, and that whoever opens it finds it whole."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from analysis.errors import InputError
from trainers.data import split_writer
from trainers.data import store as store_module
from trainers.data.at_hand import resolve
from trainers.data.corpus import Corpus, open_corpus
from trainers.data.sources import BPETokenizer, BytesTokenizer, DataSource, DataSpec, TextFiles
from trainers.data.split_writer import entropy
from trainers.data.store import cache_root, expect, open_store
from trainers.data.tokenizer import ByteTokenizer, Tokenizer

TEXTS = [f"text {number} \u00e9\n" * (1 + number % 7) for number in range(60)]


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return DataSource(corpus=TextFiles(paths=[str(path)]), tokenizer=BytesTokenizer())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def documents(source: DataSource, split: str) -> list[str]:
    return [document.text for document in open_corpus(source.corpus).documents(split)]


def files(folder: Path) -> dict[str, int]:
    """Inodes of a store's files: they change when it is made anew."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_documents_are_packed_with_the_separator_after_each(
    source: DataSource, cache: Path
) -> None:
    store = open_store(source, cache)
    for split, tokens in (("train", store.train), ("heldout", store.heldout)):
        expected = [[*text.encode(), 256] for text in documents(source, split)]
        assert tokens.tolist() == [token for document in expected for token in document]


def test_long_documents_are_packed_like_short_ones(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_writer, "_BATCH", 1000)
    texts = ["\u00e9" * 200_000, "line\n" * 50_000, "short"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    source = DataSource(corpus=TextFiles(paths=[str(tmp_path)]), tokenizer=BytesTokenizer())
    store = open_store(source, cache)
    decoded = [
        ByteTokenizer().decode(part[:-1])
        for tokens in (store.train, store.heldout)
        for part in np.split(tokens, np.flatnonzero(tokens == 256) + 1)[:-1]
    ]
    assert sorted(decoded) == sorted(texts)


def test_bpe_tokens_decode_to_the_documents(source: DataSource, cache: Path) -> None:
    store = open_store(source.model_copy(update={"tokenizer": BPETokenizer(vocab_size=270)}), cache)
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer_path.parent)
    expected = "".join(text + tokenizer.eos_token for text in documents(source, "train"))
    assert tokenizer.decode(store.train.tolist()) == expected
    assert store.vocab_size == 270
    assert store.train.max() < 270


def test_counts_of_bytes_and_the_entropy_are_those_of_the_text(
    source: DataSource, cache: Path
) -> None:
    store = open_store(source, cache)
    assert store.train_bytes == sum(len(text.encode()) for text in documents(source, "train"))
    assert store.heldout_bytes == sum(len(text.encode()) for text in documents(source, "heldout"))
    counts = Counter(store.train.tolist())
    total = counts.total()
    by_hand = -sum(n / total * math.log(n / total) for n in counts.values())
    assert store.unigram_entropy == pytest.approx(by_hand, rel=1e-12)


def test_the_entropy_of_equal_counts_is_the_log_of_their_number() -> None:
    assert entropy(np.array([5, 0, 5, 5, 5])) == pytest.approx(math.log(4))
    assert entropy(np.array([0, 9])) == 0


def test_tokens_are_mapped_and_cannot_be_written(source: DataSource, cache: Path) -> None:
    store = open_store(source, cache)
    assert store.train.dtype == np.uint16
    assert not store.train.flags.writeable
    assert not store.train.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        store.train[0] = 1


def test_a_vocabulary_beyond_two_bytes_takes_four(source: DataSource, tmp_path: Path) -> None:
    path = ByteTokenizer().save(tmp_path / "tokenizer")
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 70_000, "content": "<far>"})
    content["model"]["vocab"]["<far>"] = 70_000
    path.write_text(json.dumps(content))
    wide = {"kind": "pretrained", "path": str(path.parent)}
    store = open_store(
        DataSource.model_validate({**source.model_dump(), "tokenizer": wide}), tmp_path
    )
    assert store.vocab_size == 70_001
    assert store.train.dtype == np.uint32
    assert ByteTokenizer().decode(store.train[:4]) == documents(source, "train")[0][:4]


# --- the cache -----------------------------------------------------------------------------


def test_a_second_opening_reads_what_the_first_made(source: DataSource, cache: Path) -> None:
    first = open_store(source, cache)
    before = files(first.folder)
    second = open_store(source, cache)
    assert files(second.folder) == before
    assert second.meta == first.meta
    assert sorted(before) == [
        "heldout.arrow",
        "meta.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train.arrow",
    ]


@pytest.mark.processes
def test_four_processes_at_once_make_one_store(source: DataSource, cache: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from trainers.data.sources import DataSource;"
        "from trainers.data.store import open_store; import hashlib, os;"
        "source = DataSource.model_validate_json(sys.argv[1]); sys.stdin.readline();"
        "store = open_store(source, Path(sys.argv[2]));"
        "print(hashlib.sha256(store.train.tobytes()).hexdigest(),"
        " os.stat(store.folder / 'train.arrow').st_ino)"
    )
    bpe = source.model_copy(update={"tokenizer": BPETokenizer(vocab_size=280)})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, bpe.model_dump_json(), str(cache)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:  # all have started; let them go
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert len(answers) == 1
    kept = [path.name for path in (cache / "tokens").iterdir()]
    assert len(kept) == 2  # the store and its lock; nothing half-made


@pytest.mark.parametrize("victim", ["train.arrow", "heldout.arrow", "meta.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_damaged_store_is_made_anew(
    source: DataSource, cache: Path, victim: str, damage: str
) -> None:
    first = open_store(source, cache)
    tokens, spec, folder = first.train.tolist(), first.data_spec, first.folder
    del first
    path = folder / victim
    match damage:
        case "cut":
            os.truncate(path, path.stat().st_size - 100)
        case "emptied":
            os.truncate(path, 0)
        case "removed":
            path.unlink()
    again = open_store(source, cache, spec)
    assert again.train.tolist() == tokens
    assert again.data_spec == spec
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []


def test_what_a_killed_builder_left_is_cleared_away(source: DataSource, cache: Path) -> None:
    folder = open_store(source, cache).folder
    leftover = folder.with_name(f".{folder.name}.{os.uname().nodename}.killed")
    elsewhere = folder.with_name(f".{folder.name}.another-machine.building")
    elsewhere.mkdir()
    leftover.mkdir()
    (folder / "meta.json").unlink()
    open_store(source, cache)
    assert not leftover.exists()
    assert elsewhere.exists()


def test_a_store_that_another_machine_made_first_is_used(
    source: DataSource, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_slowly(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
        build(folder, corpus, tokenizer)
        data = DataSpec(corpus_fingerprint=corpus.fingerprint, tokenizer_hash=tokenizer.hash)
        shutil.copytree(folder, store_module._folder(cache, data))
        (folder / "too-late").touch()

    build = store_module._build
    monkeypatch.setattr(store_module, "_build", build_slowly)
    store = open_store(source, cache)
    assert "too-late" not in files(store.folder)
    assert len(list((cache / "tokens").iterdir())) == 2


def test_a_corpus_that_fails_midway_leaves_nothing(
    source: DataSource, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InputError("the disk is full of cats")

    monkeypatch.setattr(ByteTokenizer, "encode_batch", fail)
    with pytest.raises(InputError, match="cats"):
        open_store(source, cache)
    assert [path.suffix for path in (cache / "tokens").iterdir()] == [".lock"]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("WIDTHLAB_CACHE", raising=False)
    assert cache_root() == Path("/home/someone/.cache/widthlab")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_root() == Path("/caches/widthlab")
    monkeypatch.setenv("WIDTHLAB_CACHE", "/scratch/w")
    assert cache_root() == Path("/scratch/w")


def test_a_cache_that_cannot_be_a_folder_is_named(source: DataSource, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cache folder .*file cannot be used.*WIDTHLAB_CACHE"):
        open_store(source, tmp_path / "file")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/dev/null/cache", "cache folder /dev/null/cache cannot be used.*WIDTHLAB_CACHE"),
        ("/proc/no-such/cache", "cache folder /proc/no-such/cache cannot be used"),
        ("~no-such-user/cache", "WIDTHLAB_CACHE: path '~no-such-user/cache' cannot be looked up"),
        ("a" * 5000, "WIDTHLAB_CACHE: path .* cannot be looked up: File name too long"),
    ],
)
def test_a_cache_in_an_impossible_place_is_named(
    source: DataSource, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    monkeypatch.setenv("WIDTHLAB_CACHE", place)
    trained = source.model_copy(update={"tokenizer": BPETokenizer(vocab_size=270)})
    with pytest.raises(InputError, match=message):
        resolve(trained)
    with pytest.raises(InputError, match=message):
        open_store(source)


# --- what a trial was planned with ---------------------------------------------------------


def test_resolving_agrees_with_the_store_and_makes_none(source: DataSource, cache: Path) -> None:
    data, vocab_size = resolve(source, cache)
    assert not (cache / "tokens").exists()
    store = open_store(source, cache, data)
    assert (store.data_spec, store.vocab_size) == (data, vocab_size)
    expect(store, data)


def test_the_expected_store_opens_without_its_corpus(source: DataSource, cache: Path) -> None:
    first = open_store(source, cache)
    assert isinstance(source.corpus, TextFiles)
    Path(source.corpus.paths[0]).unlink()
    again = open_store(source, cache, first.data_spec)
    np.testing.assert_array_equal(again.train, first.train)


def test_a_changed_corpus_or_tokenizer_is_refused(source: DataSource, cache: Path) -> None:
    store = open_store(source, cache)
    planned = DataSpec(corpus_fingerprint="0" * 16, tokenizer_hash=store.data_spec.tokenizer_hash)
    with pytest.raises(InputError, match=r"the corpus has changed.*another version .* of Python"):
        open_store(source, cache, planned)
    with pytest.raises(InputError, match="the corpus has changed"):
        expect(store, planned)
    other = store.data_spec.model_copy(update={"tokenizer_hash": "0" * 16})
    with pytest.raises(InputError, match="the tokenizer has changed"):
        open_store(source, cache, other)
