"""What follows from the parts of a tokenizer.json: its identity, and what it does to any text.

Nothing here tries a tokenizer out: what is claimed of every text is proven from the parts, and
where they prove nothing, nothing is claimed.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The parts that decide which ids a text becomes. Truncation, padding and what is put around a
#: text are off here, and the decoder works the other way.
_DECISIVE = ("added_tokens", "normalizer", "pre_tokenizer", "model")

#: Characters in which a long document is encoded, where it may be cut.
PIECE = 2**16

#: Pre-tokenizers that only say where words end.
_DIVIDING = ("Split", "Digits", "Punctuation", "ByteLevel")

_CUT = re.compile(r"\S(?=[ \n])")


def byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte, 0 to 255.

    The visible characters of Latin-1 stand for themselves, the others for those from 256 on.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


@dataclass(frozen=True)
class TokenizerParts:
    """A tokenizer.json as `tokenizers.Tokenizer.to_str` writes it, read as data."""

    content: dict[str, Any]

    def digest(self, separator: int) -> str:
        """Sixteen hexadecimal digits over what decides the ids, and the separator's."""
        decisive = {key: self.content.get(key) for key in _DECISIVE} | {"separator": separator}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether the characters of a model's token are, one for one, bytes of the text.

        So where nothing changes the text before it is divided, dividing leaves nothing out, each
        byte is written as one character, and a merge joins two tokens without more.
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

        It is byte level, and all 256 bytes have an id, so that no byte is dropped or unknown;
        no two tokens share an id, added ones included; the decoder writes each token's bytes; and
        an added token that text can become takes only its own characters, and is ASCII, for the
        decoder would read others as the bytes that they stand for elsewhere.
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
        """Whether the ids of the pieces of a text (see `pieces`) are those of the text.

        They are for the words of GPT-2 alone, the `ByteLevel` pre-tokenizer:

            's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

        No alternative goes on with white space after anything else, so a word ends wherever a
        white-space character follows another one. Cut there, the words before are the same:
        what they match ends at the cut anyway, and the one look-ahead, from the end of white
        space, sees one character, which is not beyond the cut, for the piece does not end in
        white space. The words after are the same, for nothing looks back. Words have their ids
        each by itself. An added token might lie across a cut, so text may become none.
        """
        return (
            self.is_byte_level
            and [part["type"] for part in self._pre_tokenizers] == ["ByteLevel"]
            and self._pre_tokenizers[0].get("use_regex", True)
            and not self._added_in_text
        )

    @cached_property
    def unknown_id(self) -> int | None:
        """The id that a model writes for what it does not know, if it has one."""
        model = self.content["model"]
        if model["type"] == "Unigram":
            return None if model["unk_id"] is None else int(model["unk_id"])
        token = model.get("unk_token")
        return None if token is None else self._id_of(token)

    @cached_property
    def dropout(self) -> float:
        """The chance with which a merge is left out, anew for each text."""
        return float(self.content["model"].get("dropout") or 0)

    def bytes_of_ids(self, size: int) -> NDArray[np.uint32]:
        """[size] UTF-8 bytes of the text that each id stands for. The tokenizer is byte level."""
        alphabet = frozenset(byte_characters())
        lengths = np.zeros(size, np.uint32)
        for token, index in self.content["model"]["vocab"].items():
            lengths[index] = len(token) if alphabet.issuperset(token) else len(token.encode())
        for token in self.content["added_tokens"]:
            lengths[token["id"]] = len(token["content"].encode())
        return lengths

    @property
    def _added_in_text(self) -> list[dict[str, Any]]:
        """The added tokens that text can become: special ones never are made of text here."""
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
    """A part of a tokenizer.json, or in order those that a sequence is made of."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for inner in part[key]:
            yield from _parts(inner, key)
    else:
        yield part


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """The text in pieces of `size` characters or more: each is cut at the first place from there
    on where a blank or a line end follows a character that is no white space."""
    start = 0
    while len(text) - start > size:
        found = _CUT.search(text, start + size - 1)
        if found is None:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]
