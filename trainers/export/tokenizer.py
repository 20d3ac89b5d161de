"""The tokenizer of a trial, in the files that `transformers.AutoTokenizer` opens."""

import json
import logging
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import tokenizers

from trainers.data.corpus import Corpus, Document, Split, open_corpus
from trainers.data.pretrained_tokenizer import probe_ids
from trainers.data.sources import DataSpec
from trainers.data.store import cache_root, find_store
from trainers.data.tokenizer import Tokenizer, open_tokenizer
from trainers.data.tokenizer_parts import TokenizerParts
from trainers.spec import TrialSpec
from trialstore.errors import InputError

log = logging.getLogger(__name__)

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"


def write_tokenizer(trial: TrialSpec, folder: Path, cache: Path | None = None) -> int:
    """Write a trial's tokenizer into a model directory. Returns the id of its separator.

    It is taken from the token store, of an earlier format too, or made again from the trial's
    source. Text becomes the ids
    that the model was trained on: a published tokenizer that puts special tokens around a text no
    longer does. Raises InputError where it cannot be had, or `transformers` would give a text
    other ids.
    """
    store = find_store(trial.data, cache)
    if store is not None:
        separator = store.separator
        for name in (TOKENIZER, CONFIG):
            shutil.copyfile(store.tokenizer_path.with_name(name), folder / name)
    elif (kept := _of_an_earlier_store(trial.data, cache or cache_root(), folder)) is not None:
        separator = kept
    else:
        remade = _remake(trial, cache or cache_root())
        separator = remade.separator
        remade.save(folder)
    _as_trained(folder / TOKENIZER)
    _for_generation(folder / CONFIG, trial.model.context)
    _same_in_transformers(folder, separator)
    return separator


def _of_an_earlier_store(data: DataSpec, root: Path, folder: Path) -> int | None:
    """Copy the tokenizer of a store whose format is no longer read; its separator, None where
    there is no such store, or its tokenizer is not the one that the trial was trained with."""
    stores = (root / "tokens").glob(f"{data.corpus_fingerprint}-{data.tokenizer_hash}-*")
    for path in sorted(stores, reverse=True):
        try:
            content = json.loads((path / TOKENIZER).read_text(encoding="utf-8"))
            config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
            backend = tokenizers.Tokenizer.from_file(str(path / TOKENIZER))
            separator = backend.token_to_id(config["eos_token"])
            if separator is None:
                continue
            if TokenizerParts(content).digest(separator) != data.tokenizer_hash:
                continue
        except Exception as error:  # the library raises nothing narrower; and files may be broken
            log.info("%s: %s", path, error)
            continue
        for name in (TOKENIZER, CONFIG):
            shutil.copyfile(path / name, folder / name)
        return int(separator)
    return None


class _PlannedCorpus(Corpus):
    """The corpus that a trial was planned with, read only if a tokenizer must be trained on it.

    Raises InputError where what is read turns out to be another.
    """

    def __init__(self, trial: TrialSpec) -> None:
        self._trial = trial

    @property
    def fingerprint(self) -> str:
        return self._trial.data.corpus_fingerprint

    @cached_property
    def _opened(self) -> Corpus:
        opened = open_corpus(self._trial.source.corpus)
        if opened.fingerprint != self.fingerprint:
            raise InputError(
                f"the corpus has changed: its fingerprint is {opened.fingerprint}, not "
                f"{self.fingerprint}"
            )
        return opened

    @property
    def total_bytes(self) -> int | None:
        return self._opened.total_bytes

    def assigned(self) -> Iterator[tuple[Split, Document]]:
        return self._opened.assigned()


def _remake(trial: TrialSpec, cache: Path) -> Tokenizer:
    try:
        tokenizer = open_tokenizer(trial.source.tokenizer, _PlannedCorpus(trial), cache)
        if tokenizer.hash != trial.data.tokenizer_hash:
            raise InputError(f"its hash is {tokenizer.hash}, not {trial.data.tokenizer_hash}")
    except (InputError, OSError) as error:
        raise InputError(
            f"the tokenizer of trial {trial.id} is not in the cache {cache} any more, and cannot "
            f"be made again: {error}; --no-tokenizer exports the model alone"
        ) from error
    return tokenizer


def _as_trained(path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(path))
    if backend.num_special_tokens_to_add(is_pair=False):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["post_processor"] = None
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _for_generation(path: Path, context: int) -> None:
    """A decoder continues the end of a text: batches are padded at its beginning."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {
        "pad_token": content["eos_token"],
        "padding_side": "left",
        "model_max_length": context,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _same_in_transformers(folder: Path, separator: int) -> None:
    """Whoever opens the model opens its tokenizer with `AutoTokenizer`, which builds a tokenizer
    by rules of its own."""
    import transformers

    trained = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    opened = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    ids = probe_ids(opened.backend_tokenizer)
    if ids != probe_ids(trained) or opened.eos_token_id != separator or opened("")["input_ids"]:
        raise InputError(
            f"the tokenizer of this trial would not travel: AutoTokenizer of transformers "
            f"{transformers.__version__} gives a probe text other ids than the model was trained "
            "on; --no-tokenizer exports the model alone"
        )
