"""Derive properties of a tokenizer from its tokenizer.json: its identity, and its effect on text.

Nothing is tested by encoding. A property that is claimed for every text is proven from the parts of
the file; if they do not prove it, it is not claimed.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The parts that determine the ids of a text. `Tokenizer` turns truncation, padding and
#: post-processing off, and the decoder does not affect ids.
_DECISIVE = ("added_tokens", "normalizer", "pre_tokenizer", "model")

#: Characters of a piece of a long document, if the tokenizer allows cutting.
PIECE = 2**16

#: Pre-tokenizers that only divide text into words.
_DIVIDING = ("Split", "Digits", "Punctuation", "ByteLevel")

_CUT = re.compile(r"\S(?=[ \n])")


def byte_characters() -> list[str]:
    """Return the printable character that byte-level tokenizers write for each byte, 0 to 255.

    Visible characters of Latin-1 stand for themselves; the other bytes map to the characters from
    256 on.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


@dataclass(frozen=True)
class TokenizerParts:
    """A tokenizer.json as `tokenizers.Tokenizer.to_str` writes it, read as data."""

    content: dict[str, Any]

    def digest(self, separator: int) -> str:
        """Return sixteen hexadecimal digits over the separator and the parts that determine ids."""
        decisive = {key: self.content.get(key) for key in _DECISIVE} | {"separator": separator}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether the characters of a model's token correspond one to one to bytes of the text.

        This holds if no normaliser changes the text, pre-tokenizers leave nothing out, each byte is
        written as one character, and a merge only joins two tokens.
        """
        dividing = self._pre_tokenizers
        model = self.content["model"]
        return (
            self.content["normalizer"] is None
            and all(part["type"] in _DIVIDING for part in dividing)
            and all(part.get("behavior") != "Removed" for part in dividing)
            and sum(part["type"] == "ByteLevel" for part in dividing) == 1
            and not any(part.get("add_prefix_space") for part in dividing)
            and model["type"] == "BPE"
            and not model["continuing_subword_prefix"]
            and not model["end_of_word_suffix"]
        )

    @cached_property
    def is_lossless(self) -> bool:
        """Whether every text is proven to decode to itself.

        This holds if the tokenizer is byte level, and all 256 bytes have an id, so that no byte is
        dropped or unknown; no two tokens share an id, added ones included; the decoder writes each
        token's bytes; and an added token that text can become takes only its own characters and is
        ASCII, because the decoder would read other characters as the bytes that they stand for
        elsewhere.
        """
        vocabulary = self.content["model"]["vocab"]
        added = self._added_in_text
        all_tokens = {(token["content"], token["id"]) for token in self.content["added_tokens"]}
        all_tokens |= set(vocabulary.items()) if self.is_byte_level else set()
        return (
            self.is_byte_level
            and all(character in vocabulary for character in byte_characters())
            and len({index for _, index in all_tokens}) == len(all_tokens)
            and [part["type"] for part in self._decoders] == ["ByteLevel"]
            and not any(token["lstrip"] or token["rstrip"] for token in added)
            and all(token["content"].isascii() for token in added)
        )

    @cached_property
    def may_be_cut(self) -> bool:
        """Whether the ids of the pieces of a text (see `pieces`) equal those of the whole text.

        This is true only for the words of GPT-2, the `ByteLevel` pre-tokenizer:

            's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

        No alternative continues with white space after another character, so a word ends wherever
        white space follows another character. A cut there leaves the words before it unchanged:
        they end at the cut in any case, and the one look-ahead, at the end of white space, sees one
        character, which is not beyond the cut because a piece does not end in white space. The
        words after the cut are unchanged, because no alternative looks back. Each word is encoded
        by itself. An added token could span a cut, so text must not be able to become one.
        """
        return (
            self.is_byte_level
            and [part["type"] for part in self._pre_tokenizers] == ["ByteLevel"]
            and self._pre_tokenizers[0].get("use_regex", True)
            and not self._added_in_text
        )

    @cached_property
    def unknown_id(self) -> int | None:
        """The id that the model writes for unknown text, or None."""
        model = self.content["model"]
        if model["type"] == "Unigram":
            return None if model["unk_id"] is None else int(model["unk_id"])
        token = model.get("unk_token")
        return None if token is None else self._id_of(token)

    @cached_property
    def dropout(self) -> float:
        """The probability of leaving out a merge, drawn anew for each text."""
        return float(self.content["model"].get("dropout") or 0)

    def bytes_of_ids(self, size: int) -> NDArray[np.uint32]:
        """Return the UTF-8 bytes of text behind each id, [size]; for byte-level tokenizers only."""
        alphabet = frozenset(byte_characters())
        lengths = np.zeros(size, np.uint32)
        for token, index in self.content["model"]["vocab"].items():
            lengths[index] = len(token) if alphabet.issuperset(token) else len(token.encode())
        for token in self.content["added_tokens"]:
            lengths[token["id"]] = len(token["content"].encode())
        return lengths

    @property
    def _added_in_text(self) -> list[dict[str, Any]]:
        """The added tokens that text can become; special tokens are never made from text here."""
        return [token for token in self.content["added_tokens"] if not token["special"]]

    @property
    def _pre_tokenizers(self) -> list[dict[str, Any]]:
        return list(_parts(self.content["pre_tokenizer"], "pretokenizers"))

    @property
    def _decoders(self) -> list[dict[str, Any]]:
        return list(_parts(self.content["decoder"], "decoders"))

    def _id_of(self, token: str) -> int | None:
        found = self.content["model"]["vocab"].get(token)
        for added in self.content["added_tokens"]:
            if found is None and added["content"] == token:
                found = added["id"]
        return None if found is None else int(found)


def _parts(part: dict[str, Any] | None, key: str) -> Iterator[dict[str, Any]]:
    """Yield a part of a tokenizer.json, or the members of a sequence, in order."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for inner in part[key]:
            yield from _parts(inner, key)
    else:
        yield part


def batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Group texts, in order, into lists of at least `size` characters; the last may be shorter."""
    batch: list[str] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Cut a text into pieces of at least `size` characters.

    A piece ends at the first position from there on at which a blank or a line end follows a
    character that is not white space.
    """
    start = 0
    while len(text) - start > size:
        found = _CUT.search(text, start + size - 1)
        if found is None:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]
