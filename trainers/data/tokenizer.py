"""Tokenizers: bytes, a BPE trained on the corpus, or a published tokenizer.

Each wraps a `tokenizers.Tokenizer`, so an exported model carries a `tokenizer.json` that
`transformers` opens. Text never becomes a special token, even if it spells one: separators are
inserted only between documents. Documents are encoded whole, or in pieces if that provably gives
the same ids.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from trainers.data import sources
from trainers.data.bpe_sample import sample
from trainers.data.documents import Corpus
from trainers.data.encoded import (
    Encoded,
    Ids,
    bytes_by_offsets,
    lost_places,
    visible_characters,
)
from trainers.data.pretrained_tokenizer import (
    Published,
    from_file,
    open_published,
    probe_ids,
    published_at_hand,
)
from trainers.data.tokenizer_parts import TokenizerParts, batches, byte_characters, pieces
from trialstore.errors import InputError

__all__ = [
    "SEPARATOR",
    "ByteTokenizer",
    "Encoded",
    "Ids",
    "Tokenizer",
    "kept_bpe",
    "open_tokenizer",
    "pretrained_at_hand",
    "train_bpe",
]

log = logging.getLogger(__name__)

SEPARATOR = "<|endoftext|>"

_BPE_RULE = "bpe/2"

#: Characters per call of the backend: it holds about a hundred times the memory of the ids.
_BATCH = 2**20


class Tokenizer:
    """A tokenizer with a document separator.

    Attributes:
        separator: the id between documents.
        remarks: sentences for the user.
        hash: sixteen hexadecimal digits over everything that determines ids.
        lossless: every text is proven to decode to itself.
        unknown_id: the id for text the tokenizer does not know, or None.
        vocab_size: all ids are below it.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, separator: int, remarks: tuple[str, ...] = ()
    ) -> None:
        """Wrap a backend, which is modified.

        Truncation, padding and post-processing are turned off, and text that spells a special token
        stays text.
        """
        backend.no_truncation()
        backend.no_padding()
        backend.post_processor = None
        backend.encode_special_tokens = True
        self._backend = backend
        self._parts = TokenizerParts(json.loads(backend.to_str()))
        self.separator = separator
        self.remarks = remarks
        self.hash = self._parts.digest(separator)
        self.lossless = self._parts.is_lossless
        self.unknown_id = self._parts.unknown_id
        # Ids of published tokenizers may have gaps; the embedding needs a row for the highest id.
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Return the token ids of each whole text, without separators.

        Raises:
            InputError: a part of a text has no id, and the tokenizer has no unknown id.
        """
        if not self._parts.may_be_cut:
            return [ids for part in batches(texts, _BATCH) for ids in self._ids_of(part)]
        ends = [0]

        def cut() -> Iterator[str]:
            for text in texts:
                ends.append(ends[-1])
                for piece in pieces(text):
                    ends[-1] += 1
                    yield piece

        encoded = [ids for part in batches(cut(), _BATCH) for ids in self._ids_of(part)]
        return [
            encoded[start] if end == start + 1 else np.concatenate(encoded[start:end])
            for start, end in pairwise(ends)
        ]

    def measure_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the ids of `encode_batch` with the bytes and characters that they represent.

        Raises:
            InputError: as `encode_batch`.
        """
        if self._parts.is_byte_level:
            encoded = zip(texts, self.encode_batch(texts), strict=True)
            return [self._by_tokens(text, ids) for text, ids in encoded]
        return [encoded for part in batches(texts, _BATCH) for encoded in self._by_offsets(part)]

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """Return the text of ids; a separator is spelt out."""
        text: str = self._backend.decode([int(i) for i in ids], skip_special_tokens=False)
        return text

    def save(self, directory: Path) -> Path:
        """Write tokenizer.json, whose path is returned, and tokenizer_config.json.

        Raises:
            InputError: the library gives other ids after writing and reading the tokenizer.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "tokenizer.json"
        path.write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        reopened = from_file(path, str(path))
        reopened.encode_special_tokens = True
        if probe_ids(reopened) != probe_ids(self._backend):
            raise InputError(
                f"{path}: tokenizers {tokenizers.__version__} gives other ids for a probe text "
                "after writing and reading this tokenizer; use another tokenizer"
            )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self._backend.id_to_token(self.separator),
            "clean_up_tokenization_spaces": False,
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        return path

    def _encodings(self, texts: list[str], offsets: bool = False) -> list[tokenizers.Encoding]:
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        try:
            return list(encode(texts, add_special_tokens=False))
        except Exception as error:
            if type(error) is not Exception:
                raise
            # The library raises a bare Exception if a part of a text has no id.
            raise InputError(
                f"tokenizer: a part of a text has no id, and the tokenizer has no unknown id "
                f"({error}); use another tokenizer, such as kind bpe"
            ) from error

    def _ids_of(self, texts: list[str]) -> list[Ids]:
        return [np.array(encoding.ids, np.uint32) for encoding in self._encodings(texts)]

    @cached_property
    def _bytes_of_ids(self) -> NDArray[np.uint32]:
        return self._parts.bytes_of_ids(self.vocab_size)

    def _by_tokens(self, text: str, ids: Ids) -> Encoded:
        """Measure a text with a byte-level tokenizer, whose tokens consist of bytes of the text.

        Falls back to offsets if a byte is missing or an id is unknown.
        """
        text_bytes = self._bytes_of_ids[ids]
        complete = int(text_bytes.sum(dtype=np.int64)) == len(text.encode())
        if not complete or self._is_unknown(ids).any():
            return self._by_offsets([text])[0]
        altered = not self.lossless and self.decode(ids) != text
        return self._measured(text, ids, text_bytes, altered, [])

    def _by_offsets(self, texts: list[str]) -> list[Encoded]:
        """Measure texts with any tokenizer: an id accounts for the characters it was made from."""
        found = []
        for text, encoding in zip(texts, self._encodings(texts, offsets=True), strict=True):
            ids = np.array(encoding.ids, np.uint32)
            offsets = np.array(encoding.offsets, np.int64).reshape(len(ids), 2)
            lost = lost_places(text, offsets[~self._is_unknown(ids)])
            altered = self.decode(ids) != text
            text_bytes = bytes_by_offsets(text, offsets)
            found.append(self._measured(text, ids, text_bytes, altered, lost))
        return found

    def _is_unknown(self, ids: Ids) -> NDArray[np.bool_]:
        unknown = -1 if self.unknown_id is None else self.unknown_id
        found: NDArray[np.bool_] = ids.astype(np.int64) == unknown
        return found

    def _measured(
        self, text: str, ids: Ids, text_bytes: NDArray[np.uint32], altered: bool, lost: list[int]
    ) -> Encoded:
        return Encoded(
            ids=ids,
            text_bytes=text_bytes,
            lost_characters=len(lost),
            altered=altered,
            characters=visible_characters(text),
            separators=int((ids == self.separator).sum()),
            lost_example=text[lost[0]] if lost else "",
        )


class ByteTokenizer(Tokenizer):
    """Ids 0-255 are the bytes of UTF-8; 256 is the separator."""

    def __init__(self) -> None:
        vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([SEPARATOR])
        super().__init__(backend, separator=256)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        # The backend gives the same ids a thousand times more slowly.
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]


def open_tokenizer(config: sources.Tokenizer, corpus: Corpus, cache: Path) -> Tokenizer:
    """Open the tokenizer that a configuration names.

    Args:
        config: the tokenizer section.
        corpus: the text for training a BPE.
        cache: the folder that trained BPEs are kept in.

    Raises:
        InputError: the tokenizer cannot be opened, or the corpus is too small for the vocabulary.
    """
    match config:
        case sources.BytesTokenizer():
            return ByteTokenizer()
        case sources.BPETokenizer():
            return _open_bpe(config.vocab_size, corpus, cache)
        case sources.PretrainedTokenizer():
            return _of_published(open_published(config))


# --- byte-level BPE ------------------------------------------------------------------------


def _open_bpe(vocab_size: int, corpus: Corpus, cache: Path) -> Tokenizer:
    kept = kept_bpe(vocab_size, corpus.fingerprint, cache)
    if kept is not None:
        return kept
    tokenizer = train_bpe(vocab_size, sample(corpus))
    _keep(tokenizer, _bpe_path(vocab_size, corpus.fingerprint, cache))
    return tokenizer


def kept_bpe(vocab_size: int, fingerprint: str, cache: Path) -> Tokenizer | None:
    """Return the BPE already trained on the corpus with this fingerprint, or None."""
    return _read_kept(_bpe_path(vocab_size, fingerprint, cache))


def _bpe_path(vocab_size: int, fingerprint: str, cache: Path) -> Path:
    key = hashlib.sha256(f"{_BPE_RULE} {fingerprint} {vocab_size}".encode()).hexdigest()
    return cache / "tokenizers" / f"bpe-{vocab_size}-{key[:16]}.json"


def train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE: every text has ids, and every UTF-8 text decodes to itself.

    The result depends on the texts alone.

    Args:
        vocab_size: ids, the separator and the 256 bytes included.
        texts: the training text.

    Raises:
        InputError: the texts hold too few distinct words for the vocabulary.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(backend, separator=0)  # special tokens come first
    if tokenizer.vocab_size < vocab_size:
        raise InputError(
            f"tokenizer bpe: the corpus has text for a vocabulary of {tokenizer.vocab_size}, less "
            f"than vocab_size {vocab_size}; lower vocab_size, use kind bytes, or give more text"
        )
    return tokenizer


def _keep(tokenizer: Tokenizer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"hash": tokenizer.hash, "tokenizer": tokenizer._backend.to_str()}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(content, stream)
    os.chmod(name, 0o644)  # mkstemp makes a private file, but a cache may be shared
    os.replace(name, path)


def _read_kept(path: Path) -> Tokenizer | None:
    """Return the tokenizer kept at `path`, or None if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        text, expected = content["tokenizer"], content["hash"]
        separator = _separator_in(text)
        if TokenizerParts(json.loads(text)).digest(separator) != expected:
            raise ValueError("its content does not match its hash")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s: the cached tokenizer is broken and is trained again (%s)", path, error)
        return None
    return Tokenizer(tokenizers.Tokenizer.from_str(text), separator)


def _separator_in(text: str) -> int:
    added = json.loads(text)["added_tokens"]
    return next(int(token["id"]) for token in added if token["content"] == SEPARATOR)


# --- published tokenizers ------------------------------------------------------------------


def pretrained_at_hand(config: sources.PretrainedTokenizer) -> Tokenizer | None:
    """Open a published tokenizer from its folder or from the local cache of the hub's client.

    Returns:
        None if opening it needs a request to the hub.

    Raises:
        InputError: the tokenizer cannot be used.
    """
    published = published_at_hand(config)
    return None if published is None else _of_published(published)


def _of_published(published: Published) -> Tokenizer:
    for remark in published.remarks:
        log.warning("%s", remark)
    return Tokenizer(published.backend, published.separator, published.remarks)
