"""The rows of the embedding: those of the tokenizer, or those that the sweep states."""

import json
from pathlib import Path

import pytest

from trainers.data.at_hand import resolve
from trainers.data.sources import BPETokenizer, DataSource, PretrainedTokenizer, TextFiles
from trainers.data.store import open_store
from trainers.data.tokenizer import ByteTokenizer
from trialstore.errors import InputError


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    """A published tokenizer of 257 ids, and text whose highest is the separator, 256."""
    path = tmp_path / "corpus.jsonl"
    texts = (f"text {number}\n" for number in range(60))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ByteTokenizer().save(tmp_path / "tokenizer")
    tokenizer = PretrainedTokenizer(path=str(tmp_path / "tokenizer"))
    return DataSource(corpus=TextFiles(paths=[str(path)]), tokenizer=tokenizer)


def stating(source: DataSource, vocab_size: int | None) -> DataSource:
    tokenizer = source.tokenizer.model_copy(update={"vocab_size": vocab_size})
    return source.model_copy(update={"tokenizer": tokenizer})


@pytest.mark.parametrize(("stated", "rows"), [(None, 257), (257, 257), (512, 512)])
def test_the_embedding_has_the_rows_that_are_stated(source, tmp_path, stated, rows):
    store = open_store(stating(source, stated), tmp_path / "cache")
    assert store.vocab_size == rows
    found = resolve(stating(source, stated), tmp_path / "cache")
    assert (found.data, found.vocab_size) == (store.data_spec, rows)
    assert store.meta.highest_id == 256


def test_ids_that_no_text_has_may_be_left_out(source, tmp_path):
    """As the published recipes leave out the 100 extra ids of T5."""
    folder = Path(source.tokenizer.path)
    content = json.loads((folder / "tokenizer.json").read_text())
    extra = [{**content["added_tokens"][0], "id": 257 + n, "content": f"<e{n}>"} for n in range(9)]
    content["added_tokens"] += extra
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert open_store(source, tmp_path / "cache").vocab_size == 266
    assert open_store(stating(source, 257), tmp_path / "cache").vocab_size == 257


def test_a_vocabulary_without_an_id_of_the_data_is_refused_every_time(source, tmp_path):
    for _ in ("built", "found in the cache"):
        with pytest.raises(InputError, match=r"vocab_size 256 .* id 256; .* 257"):
            open_store(stating(source, 256), tmp_path / "cache")
    store = open_store(source, tmp_path / "cache")
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size"):
        open_store(stating(source, 100), tmp_path / "cache", store.data_spec)


def test_one_store_serves_every_stated_vocabulary(source, tmp_path):
    folders = {open_store(stating(source, rows), tmp_path / "c").folder for rows in (None, 300)}
    assert len(folders) == 1


def test_a_trained_bpe_has_the_vocabulary_it_was_asked_for(source, tmp_path):
    trained = source.model_copy(update={"tokenizer": BPETokenizer(vocab_size=262)})
    assert open_store(trained, tmp_path / "cache").vocab_size == 262
    assert resolve(trained, tmp_path / "cache").vocab_size == 262
