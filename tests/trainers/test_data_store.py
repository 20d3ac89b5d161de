"""The token store: what is in it, and that whoever opens it finds it whole."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from trainers.data import shards, split_writer
from trainers.data import store as store_module
from trainers.data.at_hand import resolve
from trainers.data.corpus import Corpus, open_corpus
from trainers.data.shards import ShardedTokens
from trainers.data.sources import BPETokenizer, BytesTokenizer, DataSource, DataSpec, TextFiles
from trainers.data.store import cache_root, expect, open_store
from trainers.data.tokenizer import ByteTokenizer, Tokenizer
from trialstore.errors import InputError

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
    return {
        path.relative_to(folder).as_posix(): path.stat().st_ino
        for path in folder.rglob("*")
        if path.is_file()
    }


def ids(tokens: ShardedTokens) -> np.ndarray:
    """Every id of a split."""
    return np.concatenate(list(tokens.chunks()))


def test_documents_are_packed_with_the_separator_after_each(
    source: DataSource, cache: Path
) -> None:
    store = open_store(source, cache)
    for split, tokens in (("train", store.train), ("heldout", store.heldout)):
        expected = [[*text.encode(), 256] for text in documents(source, split)]
        assert ids(tokens).tolist() == [token for document in expected for token in document]


def test_long_documents_are_packed_like_short_ones(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_writer, "_BATCH", 1000)
    texts = ["\u00e9" * 200_000, "line\n" * 50_000, "short"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    source = DataSource(corpus=TextFiles(paths=[str(tmp_path)]), tokenizer=BytesTokenizer())
    store = open_store(source, cache)
    for split, tokens in (("train", ids(store.train)), ("heldout", ids(store.heldout))):
        parts = np.split(tokens, np.flatnonzero(tokens == 256) + 1)[:-1]
        decoded = [ByteTokenizer().decode(part[:-1]) for part in parts]
        assert decoded == documents(source, split)


def test_bpe_tokens_decode_to_the_documents(source: DataSource, cache: Path) -> None:
    store = open_store(source.model_copy(update={"tokenizer": BPETokenizer(vocab_size=270)}), cache)
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer_path.parent)
    expected = "".join(text + tokenizer.eos_token for text in documents(source, "train"))
    assert tokenizer.decode(ids(store.train).tolist()) == expected
    assert store.vocab_size == 270
    assert ids(store.train).max() < 270


def test_documents_bytes_tokens_and_counts_are_those_of_the_text(
    source: DataSource, cache: Path
) -> None:
    store = open_store(source, cache)
    for split, tokens in (("train", store.train), ("heldout", store.heldout)):
        texts = documents(source, split)
        total = store.meta.contents.total(split)
        assert total.documents == len(texts)
        assert total.bytes == sum(len(text.encode()) for text in texts)
        assert total.tokens == len(tokens) == total.bytes + total.documents
    counts = Counter(ids(store.train).tolist())
    assert store.unigram.tolist() == [counts[token] for token in range(257)]


def test_each_held_out_id_knows_the_bytes_that_it_stands_for(
    source: DataSource, cache: Path
) -> None:
    bpe = source.model_copy(update={"tokenizer": BPETokenizer(vocab_size=270)})
    store = open_store(bpe, cache)
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer_path.parent)
    starts = np.arange(len(store.heldout))
    found = store.heldout.text_bytes(starts, 1)[:, 0]
    for token, text_bytes in zip(ids(store.heldout).tolist(), found.tolist(), strict=True):
        spelt = tokenizer.convert_ids_to_tokens(token)  # a character a byte
        assert text_bytes == (0 if token == store.separator else len(spelt))
    assert found.sum() == store.meta.contents.total("heldout").bytes


def test_sources_are_counted_apart(tmp_path: Path, cache: Path) -> None:
    for name, count in (("a", 300), ("b", 150)):
        rows = [{"text": f"{name} says {number} " * 5} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(corpus=TextFiles(paths=[str(tmp_path)]), tokenizer=BytesTokenizer())
    contents = open_store(source, cache).meta.contents
    assert [(part.source, part.split) for part in contents.sources] == [
        ("a.jsonl", "train"), ("a.jsonl", "heldout"), ("b.jsonl", "train"), ("b.jsonl", "heldout")
    ]  # fmt: skip
    counted: Counter[str] = Counter()
    for part in contents.sources:
        counted[part.source] += part.documents
        assert part.tokens == part.bytes + part.documents
    assert counted == {"a.jsonl": 300, "b.jsonl": 150}


def test_what_is_left_out_is_told_as_it_is_now(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (folder / "a.jsonl").write_text("".join(rows))
    source = DataSource(corpus=TextFiles(paths=[str(folder)]), tokenizer=BytesTokenizer())
    assert open_store(source, cache).meta.contents.left_out == ()
    before = files(open_store(source, cache).folder)
    (folder / "b.jsonl.lz4").write_bytes(b"packed")
    store = open_store(source, cache)
    assert files(store.folder) == before
    for contents in (store.meta.contents, resolve(source, cache).contents):
        assert contents is not None
        (left,) = contents.left_out
        assert (left.count, left.suffix, left.example) == (1, ".jsonl.lz4", "b.jsonl.lz4")


# --- shards --------------------------------------------------------------------------------


def test_one_shard_and_many_are_the_same_tokens(
    source: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = open_store(source, tmp_path / "one")
    monkeypatch.setattr(shards, "SHARD_TEXT_BYTES", 100)
    many = open_store(source, tmp_path / "many")
    begins = np.cumsum([0, *(len(text.encode()) for text in documents(source, "train"))])[:-1]
    counts = [len(store.meta.splits["train"].shards) for store in (one, many)]
    assert counts == [1, len(set((begins // 100).tolist()))]
    for split in ("train", "heldout"):
        few, lots = getattr(one, split), getattr(many, split)
        np.testing.assert_array_equal(ids(few), ids(lots))
        starts = np.arange(0, len(few) - 40, 17)
        np.testing.assert_array_equal(few.windows(starts, 40), lots.windows(starts, 40))
    starts = np.arange(0, len(one.heldout) - 9, 3)
    np.testing.assert_array_equal(
        one.heldout.text_bytes(starts, 9), many.heldout.text_bytes(starts, 9)
    )
    assert one.meta.contents == many.meta.contents


def test_a_shard_ends_with_a_document(
    source: DataSource, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_TEXT_BYTES", 100)
    store = open_store(source, cache)
    for meta in store.meta.splits["train"].shards:
        own = pa.ipc.open_file(str(store.folder / meta.file)).get_batch(0).column("token")
        assert own[-1].as_py() == 256
        assert len(own) == meta.tokens


def test_a_shard_is_mapped_when_it_is_touched_and_cannot_be_written(
    source: DataSource, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_TEXT_BYTES", 100)
    open_store(source, cache)
    store = open_store(source, cache)  # verified before: nothing need be read
    assert store.train._mapped == {}
    store.train.windows(np.array([0]), 4)
    ((place, mapped),) = store.train._mapped.items()
    assert place == (0, "token")
    assert mapped.dtype == np.uint16
    assert not mapped.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1


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
    assert ids(store.train).dtype == np.uint32
    assert ByteTokenizer().decode(ids(store.train)[:4]) == documents(source, "train")[0][:4]


# --- the cache -----------------------------------------------------------------------------


def test_a_second_opening_reads_what_the_first_made(source: DataSource, cache: Path) -> None:
    first = open_store(source, cache)
    before = files(first.folder)
    second = open_store(source, cache)
    assert files(second.folder) == before
    assert second.meta == first.meta
    assert sorted(before) == [
        "heldout/00000.arrow",
        "meta.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train/00000.arrow",
        "unigram.arrow",
    ]


@pytest.mark.processes
def test_four_processes_at_once_make_one_store(source: DataSource, cache: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from trainers.data.sources import DataSource;"
        "from trainers.data.store import open_store; import os;"
        "source = DataSource.model_validate_json(sys.argv[1]); sys.stdin.readline();"
        "store = open_store(source, Path(sys.argv[2]));"
        "print(store.digest, os.stat(store.folder / 'train/00000.arrow').st_ino)"
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


@pytest.mark.parametrize(
    "victim",
    [
        "train/00000.arrow", "heldout/00000.arrow", "unigram.arrow", "meta.json", "tokenizer.json"
    ],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_damaged_store_is_made_anew(
    source: DataSource, cache: Path, victim: str, damage: str
) -> None:
    first = open_store(source, cache)
    tokens, spec, folder = ids(first.train).tolist(), first.data_spec, first.folder
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
    assert ids(again.train).tolist() == tokens
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
    monkeypatch.setenv("WIDTHLAB_CACHE", "~/w")
    assert cache_root() == Path("/home/someone/w")


@pytest.mark.parametrize("name", ["WIDTHLAB_CACHE", "XDG_CACHE_HOME"])
def test_a_relative_cache_does_not_follow_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("WIDTHLAB_CACHE", raising=False)
    monkeypatch.setenv(name, "relcache")
    monkeypatch.chdir(tmp_path)
    root = cache_root()
    monkeypatch.chdir("/")
    assert root.is_relative_to(tmp_path / "relcache")


def test_a_cache_that_cannot_be_a_folder_is_named(source: DataSource, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cache folder .*file .*WIDTHLAB_CACHE"):
        open_store(source, tmp_path / "file")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/dev/null/cache", "cache folder /dev/null/cache cannot be used.*WIDTHLAB_CACHE"),
        ("/proc/no-such/cache", "cache folder /proc/no-such/cache "),
        ("~no-such-user/cache", "WIDTHLAB_CACHE: path '~no-such-user/cache'"),
        ("a" * 5000, "WIDTHLAB_CACHE: path .*: File name too long"),
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
    found = resolve(source, cache)
    assert not (cache / "tokens").exists()
    store = open_store(source, cache, found.data)
    assert (store.data_spec, store.vocab_size) == (found.data, found.vocab_size)
    expect(store, found.data)


def test_the_expected_store_opens_without_its_corpus(source: DataSource, cache: Path) -> None:
    first = open_store(source, cache)
    assert isinstance(source.corpus, TextFiles)
    Path(source.corpus.paths[0]).unlink()
    again = open_store(source, cache, first.data_spec)
    np.testing.assert_array_equal(ids(again.train), ids(first.train))


def test_a_changed_corpus_or_tokenizer_is_refused(source: DataSource, cache: Path) -> None:
    store = open_store(source, cache)
    planned = DataSpec(corpus_fingerprint="0" * 16, tokenizer_hash=store.data_spec.tokenizer_hash)
    with pytest.raises(InputError, match=r"corpus .*0{16}.*build of Python"):
        open_store(source, cache, planned)
    with pytest.raises(InputError, match=r"corpus .*0{16}"):
        expect(store, planned)
    other = store.data_spec.model_copy(update={"tokenizer_hash": "0" * 16})
    with pytest.raises(InputError, match=r"tokenizer .*0{16}"):
        open_store(source, cache, other)
