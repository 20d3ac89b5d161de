"""A tokenizer that loses text is refused, or said; bits per byte are of text that is all there."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from trainers.data.at_hand import resolve
from trainers.data.sources import DataSource
from trainers.data.store import open_store
from trainers.train import train
from trialstore import records
from trialstore.errors import InputError

WORDS = ["river", "king", "film", "war", "city", "light", "river", "king"]


def publish(folder: Path, backend: tokenizers.Tokenizer) -> str:
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return str(folder)


def words(folder: Path, known: list[str]) -> str:
    """A tokenizer of whole words and the white space between them; [UNK] for the others."""
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys(["[UNK]", "</s>", " ", *known]))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    return publish(folder, backend)


def corpus(folder: Path, texts: list[str], tokenizer: str) -> DataSource:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DataSource.model_validate(
        {
            "corpus": {"kind": "text", "paths": [str(path)]},
            "tokenizer": {"kind": "pretrained", "path": tokenizer},
        }
    )


#: 60 documents of 50 words of 4 or 5 letters; one word of the 3000 is in no vocabulary.
TEXTS = [" ".join(WORDS[(n * k) % 8] for k in range(50)) for n in range(1, 60)]
TEXTS.append(" ".join([*(WORDS[k % 8] for k in range(49)), "xylo"]))


def test_where_nearly_all_text_is_unknown_plan_and_run_refuse(tmp_path: Path) -> None:
    source = corpus(tmp_path, TEXTS, words(tmp_path / "t", ["xylo"]))
    for ask in (open_store, resolve):
        with pytest.raises(InputError, match=r"loses 100 %.*50\.5 % of the ids.* 1 % may be lost"):
            ask(source, tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache" / "tokens").iterdir()] == [".lock"]


def test_a_held_out_split_of_unknown_words_is_refused_however_small_it_is(tmp_path: Path) -> None:
    """Of both splits together 0.4 % is lost; of the one that is measured, all."""
    tokenizer = words(tmp_path / "t", WORDS)
    source = corpus(tmp_path, TEXTS[:-1] * 10, tokenizer)
    (tmp_path / "valid.jsonl").write_text(json.dumps({"text": "xylo " * 100}))
    given = source.corpus.model_copy(update={"heldout": [str(tmp_path / "valid.jsonl")]})
    source = source.model_copy(update={"corpus": given})
    for ask in (open_store, resolve):
        with pytest.raises(InputError, match=r"100 % .* held-out split, such as 'x'"):
            ask(source, tmp_path / "cache")


@pytest.mark.long
def test_a_little_that_is_lost_is_said_and_has_no_bits_per_byte(
    make_spec, trial, diary, tmp_path, monkeypatch
) -> None:
    source = corpus(tmp_path, TEXTS, words(tmp_path / "t", WORDS))
    monkeypatch.setenv("WIDTHLAB_CACHE", str(tmp_path / "cache"))
    store = open_store(source)
    encoding = store.meta.contents.encoding
    assert encoding is not None
    letters = sum(len(text.replace(" ", "")) for text in TEXTS)
    assert (encoding.lost_characters, encoding.characters) == (4, letters)
    # A word, and the blank before it unless it is the first: 60 x (50 + 49) ids, one unknown.
    assert encoding.unknown_share == pytest.approx(1 / (60 * 99))
    assert not encoding.lossless
    (remark,) = [said for said in store.meta.contents.remarks if "loses" in said]
    assert f"{100 * 4 / letters:.3g} %" in remark
    assert "'x' (U+0078)" in remark
    spec = make_spec(
        training__steps=2,
        model__vocab_size=store.vocab_size,
        data=store.data_spec.model_dump(),
        source=source.model_dump(),
    )
    train(spec, trial, diary())
    result = records.get_result(trial)
    assert result["final"]["val_bits_per_byte"] is None
    assert result["final"]["val_loss"] > 0
    assert result["data"]["lossless"] is False
    assert result["data"]["unknown_share"] == encoding.unknown_share


def test_text_that_is_dropped_without_an_unknown_id_counts_as_lost(tmp_path: Path) -> None:
    vocabulary = {token: n for n, token in enumerate(["</s>", *"abcdefghijklmnopqrstuvwy "])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    source = corpus(tmp_path, TEXTS, publish(tmp_path / "t", backend))
    encoding = open_store(source, tmp_path / "cache").meta.contents.encoding
    assert encoding is not None
    assert (encoding.lost_characters, encoding.unknown_share) == (1, 0)  # the x of xylo


def test_text_that_is_altered_has_no_bits_per_byte(tmp_path: Path) -> None:
    known = words(tmp_path / "t", [*WORDS, "xylo"])
    content = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(content))
    texts = [text.upper() if n == 7 else text for n, text in enumerate(TEXTS)]
    store = open_store(corpus(tmp_path, texts, known), tmp_path / "cache")
    encoding = store.meta.contents.encoding
    assert encoding is not None
    assert encoding.lost_characters == 0
    # The parts of this tokenizer join words with blanks: no document decodes to itself.
    assert encoding.altered_documents >= 1
    assert not store.lossless
    assert any("alters text" in remark for remark in store.meta.contents.remarks)


def test_a_tokenizer_of_the_project_loses_nothing(tmp_path: Path) -> None:
    source = corpus(tmp_path, ["naïve \x00 日本\r\n", *TEXTS], "unused")
    for kind in ({"kind": "bytes"}, {"kind": "bpe", "vocab_size": 265}):
        chosen = DataSource.model_validate({**source.model_dump(), "tokenizer": kind})
        store = open_store(chosen, tmp_path / "cache")
        assert store.lossless
        assert store.meta.contents.encoding is not None
        assert store.meta.contents.encoding.proven


def test_a_separator_within_documents_is_said(tmp_path: Path) -> None:
    known = words(tmp_path / "t", [*WORDS, "xylo"])
    texts = [f"{text} </s> {text}" if n in (3, 8) else text for n, text in enumerate(TEXTS)]
    store = open_store(corpus(tmp_path, texts, known), tmp_path / "cache")
    encoding = store.meta.contents.encoding
    assert encoding is not None
    assert encoding.separators_in_text == 2
    assert any("2 places" in said for said in store.meta.contents.remarks)
