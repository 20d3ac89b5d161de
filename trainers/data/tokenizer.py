"""From text to token ids: bytes, a BPE trained on the corpus, or a published tokenizer.

Every tokenizer is a `tokenizers.Tokenizer` underneath, so that an exported model carries a
`tokenizer.json` that `transformers` opens. Text never turns into special tokens, even where it
spells one: the separator comes between documents and from nowhere else.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from analysis.errors import InputError
from trainers.data import sources
from trainers.data.documents import Corpus
from trainers.data.hub import local_folder

log = logging.getLogger(__name__)

SEPARATOR = "<|endoftext|>"

#: Text that a BPE is trained on, taken evenly over the training split: about a second's work,
#: and merges for a vocabulary of thousands do not change with more.
BPE_TRAINING_BYTES = 4_000_000
#: Pieces in which the training text is sampled, and long documents are encoded, in characters.
PIECE = 2**16

_BPE_RULE = "bpe/1"
#: The parts of a tokenizer.json that decide which ids a text becomes.
_DECISIVE = ("added_tokens", "normalizer", "pre_tokenizer", "model")

Ids = NDArray[np.uint32]


class Tokenizer:
    """A tokenizer with a document separator. Ids are below `vocab_size`."""

    def __init__(self, backend: tokenizers.Tokenizer, separator: int) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        self.separator = separator
        self.hash = _content_hash(backend.to_str(), separator)
        # Published tokenizers may leave holes: the embedding needs a row for the highest id.
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, without separators."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of ids; the separator is spelt out."""
        text: str = self._backend.decode([int(i) for i in ids], skip_special_tokens=False)
        return text

    def save(self, directory: Path) -> Path:
        """Write tokenizer.json and tokenizer_config.json, as `transformers` reads them."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "tokenizer.json"
        path.write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self._backend.id_to_token(self.separator),
            "clean_up_tokenization_spaces": False,
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        return path


class ByteTokenizer(Tokenizer):
    """Ids 0-255 are the bytes of UTF-8, 256 is the separator."""

    def __init__(self) -> None:
        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([SEPARATOR])
        super().__init__(backend, separator=256)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        # The backend gives the same ids, a thousand times slower.
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]


def open_tokenizer(config: sources.Tokenizer, corpus: Corpus, cache: Path) -> Tokenizer:
    """The tokenizer; one that is trained on the corpus is kept below `cache`. Raises InputError."""
    match config:
        case sources.BytesTokenizer():
            return ByteTokenizer()
        case sources.BPETokenizer():
            return _open_bpe(config.vocab_size, corpus, cache)
        case sources.PretrainedTokenizer():
            return _open_pretrained(config)


# --- byte-level BPE ------------------------------------------------------------------------


def _open_bpe(vocab_size: int, corpus: Corpus, cache: Path) -> Tokenizer:
    kept = kept_bpe(vocab_size, corpus.fingerprint, cache)
    if kept is not None:
        return kept
    tokenizer = train_bpe(vocab_size, sample(corpus))
    _keep(tokenizer, _bpe_path(vocab_size, corpus.fingerprint, cache))
    return tokenizer


def kept_bpe(vocab_size: int, fingerprint: str, cache: Path) -> Tokenizer | None:
    """The tokenizer that was trained before on the corpus of this fingerprint, if any."""
    return _read_kept(_bpe_path(vocab_size, fingerprint, cache))


def _bpe_path(vocab_size: int, fingerprint: str, cache: Path) -> Path:
    key = hashlib.sha256(f"{_BPE_RULE} {fingerprint} {vocab_size}".encode()).hexdigest()
    return cache / "tokenizers" / f"bpe-{vocab_size}-{key[:16]}.json"


def train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE: every text has ids, and every UTF-8 text decodes to itself.

    The result depends on the texts alone. Raises InputError where they do not hold enough
    different words for the vocabulary.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=_byte_characters(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(backend, separator=0)  # special tokens come first
    if tokenizer.vocab_size < vocab_size:
        raise InputError(
            f"tokenizer bpe: the corpus gives a vocabulary of {tokenizer.vocab_size}, not "
            f"{vocab_size}; lower vocab_size, use kind bytes, or give more text"
        )
    return tokenizer


def sample(corpus: Corpus) -> Iterator[str]:
    """About `BPE_TRAINING_BYTES` of the training split: every k-th piece of its documents.

    Of a corpus of unknown size, the first documents.
    """
    every = -(-(corpus.total_bytes or 0) // BPE_TRAINING_BYTES) or 1
    taken = 0
    texts = (document.text for document in corpus.documents("train"))
    for number, piece in enumerate(piece for text in texts for piece in pieces(text)):
        if number % every == 0:
            yield piece
            taken += len(piece.encode())
            if taken >= BPE_TRAINING_BYTES:
                return


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """The text in pieces of about `size` characters, cut after a line end where there is one."""
    start = 0
    while len(text) - start > size:
        newline = text.rfind("\n", start, start + size)
        end = newline + 1 if newline > start else start + size
        yield text[start:end]
        start = end
    yield text[start:]


def _byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte, 0 to 255.

    The visible characters of Latin-1 stand for themselves, the others for those from 256 on.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def _keep(tokenizer: Tokenizer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"hash": tokenizer.hash, "tokenizer": tokenizer._backend.to_str()}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(content, stream)
    os.chmod(name, 0o644)  # mkstemp makes it private, and a cache may be shared
    os.replace(name, path)


def _read_kept(path: Path) -> Tokenizer | None:
    """The tokenizer kept there, or None where there is none or not the one that was written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        text, expected = content["tokenizer"], content["hash"]
        separator = _separator_in(text)
        if _content_hash(text, separator) != expected:
            raise ValueError("its content does not match its hash")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s: a broken tokenizer is trained anew (%s)", path, error)
        return None
    return Tokenizer(tokenizers.Tokenizer.from_str(text), separator)


def _separator_in(text: str) -> int:
    added = json.loads(text)["added_tokens"]
    return next(int(token["id"]) for token in added if token["content"] == SEPARATOR)


def _content_hash(text: str, separator: int) -> str:
    """Sixteen hexadecimal digits over what decides the ids of a tokenizer.json."""
    content = json.loads(text)
    decisive = {key: content.get(key) for key in _DECISIVE} | {"separator": separator}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


# --- published tokenizers ------------------------------------------------------------------


def pretrained_at_hand(config: sources.PretrainedTokenizer) -> Tokenizer | None:
    """A published tokenizer from its folder or from what the hub's client keeps on this machine;
    None where that would have to ask the hub. Raises InputError for one that cannot be used."""
    if local_folder("tokenizer pretrained", config.path):
        return _open_pretrained(config)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(config.path, revision=config.revision, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None  # files of that repository, but not these
    return _open_pretrained(config.model_copy(update={"path": str(folder), "revision": None}))


def _open_pretrained(config: sources.PretrainedTokenizer) -> Tokenizer:
    folder = local_folder("tokenizer pretrained", config.path)
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder or config.path), revision=config.revision, trust_remote_code=False
        )
    # OSError: not found or not reachable; ValueError, KeyError: files of no known tokenizer.
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"tokenizer pretrained: {config.path!r} cannot be opened: {error!r}; give a folder "
            "with a tokenizer.json, or the id of a model on the Hugging Face hub"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise InputError(
            f"tokenizer pretrained: {config.path!r} ({type(loaded).__name__}) has no "
            "tokenizer.json form; convert it with transformers' save_pretrained, or use another"
        )
    if backend.get_vocab_size(with_added_tokens=False) < 2:  # made of the configuration alone
        raise InputError(
            f"tokenizer pretrained: {config.path!r} holds no vocabulary; give a folder with a "
            "tokenizer.json, such as save_pretrained of transformers writes"
        )
    for separator in (loaded.eos_token_id, loaded.sep_token_id, loaded.bos_token_id):
        if separator is not None:
            return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), int(separator))
    raise InputError(
        f"tokenizer pretrained: {config.path!r} has no eos, sep or bos token to put between "
        "documents; set eos_token in its tokenizer_config.json"
    )
