"""Every tokenizer gives text back, never makes a separator of text, and opens in transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data import tokenizer as module
from trainers.data.documents import Corpus, Document, Split
from trainers.data.sources import BPETokenizer, BytesTokenizer, PretrainedTokenizer
from trainers.data.tokenizer import (
    SEPARATOR,
    ByteTokenizer,
    Tokenizer,
    open_tokenizer,
    train_bpe,
)
from trialstore.errors import InputError

SOURCE = Path(module.__file__).read_text()
AWKWARD = f"h\u00e9llo {SEPARATOR}\r\n\t \u4e2d\U0001f600\x00\x7f\u00ad end"


class Texts(Corpus):
    """Texts in memory; those that start with a hash mark are held out."""

    def __init__(self, *texts: str, size_known: bool = True) -> None:
        self._texts = texts
        self._size_known = size_known
        self.read = 0

    @property
    def fingerprint(self) -> str:
        return f"{sum(map(len, self._texts)):016x}"

    @property
    def total_bytes(self) -> int | None:
        return sum(len(text.encode()) for text in self._texts) if self._size_known else None

    def assigned(self) -> Iterator[tuple[Split, Document]]:
        for number, text in enumerate(self._texts):
            self.read += 1
            yield "heldout" if text.startswith("#") else "train", Document(str(number), text)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(400, [SOURCE])


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: Tokenizer) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else bpe


@given(texts=st.lists(st.text(), max_size=4))
def test_every_text_decodes_to_itself(bpe: Tokenizer, texts: list[str]) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            assert tokenizer.decode(ids) == text
            assert tokenizer.separator not in ids.tolist()


def test_a_text_that_spells_the_separator_is_not_one(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_batch([AWKWARD])
    assert tokenizer.separator not in ids.tolist()
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == AWKWARD


def test_bytes_are_the_bytes_of_utf8() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.separator) == (257, 256)
    assert tokenizer.encode_batch([AWKWARD])[0].tolist() == list(AWKWARD.encode())


@given(text=st.text())
def test_the_short_way_to_bytes_agrees_with_the_exported_tokenizer(text: str) -> None:
    tokenizer = ByteTokenizer()
    (slow,) = Tokenizer.encode_batch(tokenizer, [text])
    np.testing.assert_array_equal(tokenizer.encode_batch([text])[0], slow)


def test_hashes_of_version_one_are_fixed(bpe: Tokenizer) -> None:
    # Golden: this hash is in the id of every trial with bytes.
    assert ByteTokenizer().hash == "16a6d297360476d7"
    assert bpe.hash != ByteTokenizer().hash
    assert bpe.hash != train_bpe(401, [SOURCE]).hash


def test_merges_make_text_shorter(bpe: Tokenizer) -> None:
    assert bpe.vocab_size == 400
    assert len(bpe.encode_batch([SOURCE])[0]) < 0.8 * len(SOURCE.encode())


@pytest.mark.processes
def test_training_gives_the_same_tokenizer_in_every_process() -> None:
    program = (
        "from pathlib import Path; from trainers.data import tokenizer as t;"
        "text = Path(t.__file__).read_text();"
        "print(t.train_bpe(2000, [text, text[::-1]] + [text[i:] for i in range(30)]).hash)"
    )
    hashes = set()
    for seed, threads in (("1", "1"), ("2", "4"), ("3", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        answer = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        hashes.add(answer.stdout)
    assert len(hashes) == 1


def test_a_trained_tokenizer_is_kept_and_read_back(tmp_path: Path) -> None:
    corpus = Texts(SOURCE, "#held out")
    first = open_tokenizer(BPETokenizer(vocab_size=300), corpus, tmp_path)
    read = corpus.read
    second = open_tokenizer(BPETokenizer(vocab_size=300), corpus, tmp_path)
    assert corpus.read == read
    assert second.hash == first.hash
    assert second.separator == first.separator
    np.testing.assert_array_equal(
        second.encode_batch([AWKWARD])[0], first.encode_batch([AWKWARD])[0]
    )


@pytest.mark.parametrize("damage", ["cut", "altered", "other"])
def test_a_damaged_kept_tokenizer_is_trained_anew(tmp_path: Path, damage: str) -> None:
    corpus = Texts(SOURCE, "#held out")
    first = open_tokenizer(BPETokenizer(vocab_size=300), corpus, tmp_path)
    (path,) = (tmp_path / "tokenizers").iterdir()
    whole = path.read_text()
    match damage:
        case "cut":
            path.write_text(whole[: len(whole) // 2])
        case "altered":
            content = json.loads(whole)
            inner = json.loads(content["tokenizer"])
            inner["model"]["merges"].pop()
            path.write_text(json.dumps({**content, "tokenizer": json.dumps(inner)}))
        case "other":
            path.write_text('{"hash": "x", "tokenizer": "[]"}')
    assert open_tokenizer(BPETokenizer(vocab_size=300), corpus, tmp_path).hash == first.hash
    assert path.read_text() == whole


def test_too_little_text_for_the_vocabulary_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vocabulary of 26\d, .*5000; lower vocab_size"):
        open_tokenizer(BPETokenizer(vocab_size=5000), Texts("some words", "#"), tmp_path)


# --- transformers --------------------------------------------------------------------------


def test_transformers_opens_what_is_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token_id == tokenizer.separator
    assert len(loaded) == tokenizer.vocab_size
    plain = AWKWARD.replace(SEPARATOR, "")
    ids = tokenizer.encode_batch([plain])[0].tolist()
    assert loaded(plain, add_special_tokens=False)["input_ids"] == ids
    assert loaded.decode(ids) == plain


def test_a_pretrained_folder_gives_the_tokenizer_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    config = PretrainedTokenizer(path=str(tmp_path))
    loaded = open_tokenizer(config, Texts(), tmp_path / "unused")
    assert loaded.hash == tokenizer.hash
    assert (loaded.vocab_size, loaded.separator) == (tokenizer.vocab_size, tokenizer.separator)
    np.testing.assert_array_equal(
        loaded.encode_batch([AWKWARD])[0], tokenizer.encode_batch([AWKWARD])[0]
    )


def test_truncation_and_padding_of_a_published_tokenizer_are_off(tmp_path: Path) -> None:
    path = ByteTokenizer().save(tmp_path)
    content = json.loads(path.read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(content))
    loaded = open_tokenizer(PretrainedTokenizer(path=str(tmp_path)), Texts(), tmp_path)
    assert len(loaded.encode_batch(["longer than four"])[0]) == 16


def test_a_tokenizer_never_brings_its_own_code(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}'
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match=f"'{tmp_path}'"):
        open_tokenizer(PretrainedTokenizer(path=str(tmp_path)), Texts(), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"tokenizer pretrained: .*'{path}'.*OWNER/NAME"):
        open_tokenizer(PretrainedTokenizer(path=path), Texts(), tmp_path)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    path = ByteTokenizer().save(tmp_path)
    with pytest.raises(InputError, match=f"'{path}' is a file"):
        open_tokenizer(PretrainedTokenizer(path=str(path)), Texts(), tmp_path)


def test_bytes_need_no_corpus(tmp_path: Path) -> None:
    corpus = Texts()
    assert open_tokenizer(BytesTokenizer(), corpus, tmp_path).vocab_size == 257
    assert corpus.read == 0
    assert not list(tmp_path.iterdir())
