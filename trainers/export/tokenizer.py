"""Write a trial's tokenizer in the files that `transformers.AutoTokenizer` opens."""

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
    """Write a trial's tokenizer into a model directory.

    It comes from the token store, in the current or an earlier format, or is made again from the
    trial's source. A published tokenizer that adds special tokens around a text stops doing so,
    because training did not add them.

    Args:
        trial: The trial that was trained with the tokenizer.
        folder: The model directory.
        cache: Folder of token stores; None for the default.

    Returns:
        The id of the separator, the token after every document.

    Raises:
        InputError: The tokenizer is not in the cache and cannot be made again with the same hash,
            or `transformers` would give a text other ids than training did.
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
    """Copy the tokenizer of a token store in an earlier format and return its separator.

    Returns None if there is no such store whose tokenizer has the trial's hash.
    """
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
        except Exception as error:  # tokenizers raises plain Exception, also for broken files
            log.info("%s: %s", path, error)
            continue
        for name in (TOKENIZER, CONFIG):
            shutil.copyfile(path / name, folder / name)
        return int(separator)
    return None


class _PlannedCorpus(Corpus):
    """The corpus of a trial, opened only if a tokenizer must be trained on it.

    Opening raises InputError if the corpus no longer has the trial's fingerprint.
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
            raise InputError(
                f"its hash is now {tokenizer.hash}, not {trial.data.tokenizer_hash} as in training"
            )
    except (InputError, OSError) as error:
        raise InputError(
            f"the tokenizer of trial {trial.id} is no longer in the cache {cache} and cannot be "
            f"made again: {error}; --no-tokenizer exports only the model"
        ) from error
    return tokenizer


def _as_trained(path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(path))
    if backend.num_special_tokens_to_add(is_pair=False):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["post_processor"] = None
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _for_generation(path: Path, context: int) -> None:
    """Pad batches on the left: a decoder continues the end of a text."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {
        "pad_token": content["eos_token"],
        "padding_side": "left",
        "model_max_length": context,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _same_in_transformers(folder: Path, separator: int) -> None:
    """Check that `AutoTokenizer`, which applies rules of its own, gives the trained ids."""
    import transformers

    trained = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    opened = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    ids = probe_ids(opened.backend_tokenizer)
    if ids != probe_ids(trained) or opened.eos_token_id != separator or opened("")["input_ids"]:
        raise InputError(
            f"the tokenizer of this trial cannot be exported: AutoTokenizer of transformers "
            f"{transformers.__version__} gives a probe text other ids than training did; "
            "--no-tokenizer exports only the model"
        )
