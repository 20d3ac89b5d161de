"""The exported tokenizer gives the ids that the model was trained on."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import transformers
from odd_tokenizers import ODD, TRAINING, publish
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.data.pretrained_tokenizer import PROBE
from trainers.data.sources import (
    BPETokenizer,
    BytesTokenizer,
    DataSource,
    PretrainedTokenizer,
    TextFiles,
)
from trainers.data.store import find_store, open_store
from trainers.export import tokenizer as export_tokenizer
from trainers.export.export import export
from trainers.export.tokenizer import write_tokenizer
from trainers.train import train
from trialstore.errors import InputError

TEXT = "ten green bottles, and one should fall\n"


@pytest.fixture
def corpus(tmp_path: Path) -> TextFiles:
    verses = [f"{n} green bottles on wall {n * n % 89}, and if one should fall" for n in range(99)]
    rows = (json.dumps({"text": verse}) + "\n" for verse in verses)
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(rows))
    return TextFiles(paths=[str(path)])


@pytest.fixture
def published(tmp_path: Path) -> PretrainedTokenizer:
    """Words, with a start and an end put around every text."""
    verse = "green bottles on wall , and if one should fall"
    known = {*TEXT.replace(",", " ,").split(), *verse.split(), *map(str, range(99))}
    words = ["<s>", "</s>", "?", *sorted(known)]
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="?")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    folder = tmp_path / "published"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return PretrainedTokenizer(path=str(folder))


@pytest.fixture(params=["bytes", "bpe", "published"])
def source(request, corpus, published) -> DataSource:
    kinds = {"bytes": BytesTokenizer(), "bpe": BPETokenizer(vocab_size=270), "published": published}
    return DataSource(corpus=corpus, tokenizer=kinds[request.param])


@pytest.fixture
def trial_spec(make_spec, source, tmp_path):
    store = open_store(source, tmp_path / "cache")
    return make_spec(
        source=source.model_dump(),
        data=store.data_spec.model_dump(),
        model__vocab_size=store.vocab_size,
    )


def test_text_gets_the_ids_of_training(trial_spec, tmp_path) -> None:
    """A document of the token store is what the exported tokenizer makes of its text: no token
    for its start or end."""
    folder = tmp_path / "out"
    folder.mkdir()
    separator = write_tokenizer(trial_spec, folder, tmp_path / "cache")
    loaded = AutoTokenizer.from_pretrained(folder)
    store = find_store(trial_spec.data, tmp_path / "cache")
    assert separator == store.separator == loaded.eos_token_id
    tokens = next(store.train.chunks())[:400].tolist()
    document = tokens[: tokens.index(separator)]
    assert loaded(loaded.decode(document))["input_ids"] == document


@pytest.fixture
def odd_spec(make_spec, corpus, tmp_path):
    """Of a tokenizer of that name: a trial, and the ids that its file gives the probe text."""

    def made(name):
        folder = publish(ODD[name](), tmp_path / "odd", tokenizer_class="GPT2Tokenizer")
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Of words that all of them know.
        rows = [{"text": f"{TRAINING[0] * n}The quick dogs see.\n"} for n in range(1, 30)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(corpus.paths[0]).write_text(text)
        source = DataSource(corpus=corpus, tokenizer=PretrainedTokenizer(path=str(folder)))
        store = open_store(source, tmp_path / "cache")
        spec = make_spec(
            source=source.model_dump(),
            data=store.data_spec.model_dump(),
            model__vocab_size=store.vocab_size,
        )
        return spec, backend.encode(PROBE, add_special_tokens=False).ids

    return made


@pytest.mark.parametrize("model_type", [None, "gpt2", "llama", "decoder"])
@pytest.mark.parametrize("name", ["byte_level_split", "byte_level_normalised", "unigram",
                                  "word_pieces", "byte_fallback", "byte_level_added"])  # fmt: skip
@pytest.mark.long
def test_normalisers_and_splits_travel(odd_spec, name, model_type, tmp_path) -> None:
    """Beside a model's configuration, which AutoTokenizer reads, as well as alone."""
    spec, expected = odd_spec(name)
    folder = tmp_path / "out"
    folder.mkdir()
    write_tokenizer(spec, folder, tmp_path / "cache")
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded(PROBE, truncation=False)["input_ids"] == expected


def test_a_tokenizer_that_transformers_would_open_as_another_is_refused(
    odd_spec, tmp_path, monkeypatch
) -> None:
    spec, _ = odd_spec("byte_level_split")
    answers = iter([[1], [2]])
    monkeypatch.setattr(export_tokenizer, "probe_ids", lambda backend: next(answers))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(
        InputError, match=f"transformers {transformers.__version__} .*--no-tokenizer"
    ):
        write_tokenizer(spec, folder, tmp_path / "cache")


def test_the_tokenizer_of_an_earlier_store_format_is_used(trial_spec, source, tmp_path) -> None:
    cache = tmp_path / "cache"
    store = find_store(trial_spec.data, cache)
    text = store.tokenizer_path.read_text()
    store.folder.rename(store.folder.with_name(store.folder.name.rpartition("-")[0] + "-3"))
    shutil.rmtree(cache / "tokenizers", ignore_errors=True)
    Path(source.corpus.paths[0]).unlink()
    assert write_tokenizer(trial_spec, out(tmp_path / "kept"), cache) == store.separator
    found = json.loads((tmp_path / "kept" / "tokenizer.json").read_text())
    assert found["model"] == json.loads(text)["model"]


def test_a_changed_tokenizer_of_an_earlier_store_is_refused(make_spec, corpus, tmp_path) -> None:
    cache = tmp_path / "cache"
    source = DataSource(corpus=corpus, tokenizer=BPETokenizer(vocab_size=270))
    store = open_store(source, cache)
    spec = make_spec(
        source=source.model_dump(), data=store.data_spec.model_dump(), model__vocab_size=270
    )
    earlier = store.folder.with_name(store.folder.name.rpartition("-")[0] + "-3")
    store.folder.rename(earlier)
    content = json.loads((earlier / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (earlier / "tokenizer.json").write_text(json.dumps(content))
    shutil.rmtree(cache / "tokenizers")
    Path(corpus.paths[0]).unlink()
    with pytest.raises(InputError, match=f"{spec.id}.*--no-tokenizer"):
        write_tokenizer(spec, out(tmp_path / "refused"), cache)


def out(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_batches_are_padded_at_their_beginning_with_the_separator(trial_spec, tmp_path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    separator = write_tokenizer(trial_spec, folder, tmp_path / "cache")
    loaded = AutoTokenizer.from_pretrained(folder)
    shorter, longer = (loaded(text)["input_ids"] for text in ("ten", "ten green bottles"))
    assert loaded.pad_token_id == separator
    assert loaded.model_max_length == trial_spec.model.context
    padded = [separator] * (len(longer) - len(shorter)) + shorter
    batch = loaded(["ten", "ten green bottles"], padding=True)
    assert batch["input_ids"] == [padded, longer]
    assert batch["attention_mask"][0] == [0] * (len(longer) - len(shorter)) + [1] * len(shorter)


def test_without_a_cache_the_tokenizer_is_made_again(trial_spec, tmp_path) -> None:
    contents = []
    for name in ("kept", "remade"):
        folder = tmp_path / name
        folder.mkdir()
        write_tokenizer(trial_spec, folder, tmp_path / "cache")
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert contents[0] == contents[1]
    assert find_store(trial_spec.data, tmp_path / "cache") is None  # the corpus was not encoded


def test_a_corpus_that_is_gone_matters_only_to_a_tokenizer_trained_on_it(
    trial_spec, corpus, tmp_path
) -> None:
    shutil.rmtree(tmp_path / "cache")
    Path(corpus.paths[0]).unlink()
    folder = tmp_path / "out"
    folder.mkdir()
    if trial_spec.source.tokenizer.kind == "bpe":
        with pytest.raises(InputError, match=r"corpus\.jsonl.*--no-token"):
            write_tokenizer(trial_spec, folder, tmp_path / "cache")
    else:
        write_tokenizer(trial_spec, folder, tmp_path / "cache")
        assert AutoTokenizer.from_pretrained(folder)("ten")["input_ids"]


@pytest.fixture
def bpe_spec(make_spec, corpus, tmp_path):
    source = DataSource(corpus=corpus, tokenizer=BPETokenizer(vocab_size=270))
    store = open_store(source, tmp_path / "cache")
    return make_spec(
        source=source.model_dump(),
        data=store.data_spec.model_dump(),
        model__vocab_size=270,
        model__ffn_widths=[24, 24],
    )


def test_a_corpus_that_has_changed_is_refused_and_does_not_enter_the_cache(
    bpe_spec, corpus, tmp_path
) -> None:
    shutil.rmtree(tmp_path / "cache")
    path = Path(corpus.paths[0])
    path.write_text(path.read_text().replace("bottles", "teapots"))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(InputError, match=f"fingerprint .*{bpe_spec.data.corpus_fingerprint}"):
        write_tokenizer(bpe_spec, folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.json"))
    assert not list(folder.iterdir())


@pytest.mark.long
def test_no_tokenizer_exports_only_the_model(bpe_spec, corpus, trial, diary, tmp_path) -> None:
    train(bpe_spec, trial, diary(), tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    Path(corpus.paths[0]).unlink()
    with pytest.raises(InputError, match=f"{bpe_spec.id}.*--no-tokenizer"):
        export(trial, str(tmp_path / "out"), cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()
    done = export(trial, str(tmp_path / "out"), tokenizer=False, cache=tmp_path / "cache")
    assert not [name for name in done.files if "tokenizer" in name]
    assert "AutoTokenizer" not in "\n".join(done.load)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id is None
