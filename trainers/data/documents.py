"""What a corpus is: named documents, each wholly in the training or wholly in the held-out split.

Holding out whole documents is what makes held-out loss mean anything: neighbouring pieces of one
file share names, habits and copied passages, and a random split of pieces leaks them.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]

#: The share of documents that the content rule holds out.
HELD_OUT_SHARE = 0.1

_DIGEST_RANGE = 2**64


@dataclass(frozen=True)
class Document:
    """One text, and the name that error messages and the fingerprint know it by."""

    name: str
    text: str


class Corpus(ABC):
    """Documents in an order that depends on names and contents alone."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits; equal for equal documents, order and rule of splitting."""

    @property
    @abstractmethod
    def total_bytes(self) -> int | None:
        """UTF-8 bytes of both splits, or None where only reading everything would tell."""

    @abstractmethod
    def assigned(self) -> Iterator[tuple[Split, Document]]:
        """Every document with its split, read once. Empty documents are left out."""

    def documents(self, split: Split) -> Iterator[Document]:
        """The documents of one split."""
        return (document for part, document in self.assigned() if part == split)


def content_digest(text: str) -> int:
    """A uniform 64-bit number that is a function of the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def held_out_cut(lowest: int, highest: int) -> int:
    """The digest up to which a document is held out, given the range of digests in the corpus.

    About `HELD_OUT_SHARE` of all documents, but at least one and never all of them. The rule
    sees only contents, so copies of one document never end up on both sides.
    Raises ValueError where all documents are copies of one.
    """
    if lowest == highest:
        raise ValueError("a corpus of one distinct document cannot be split")
    return min(max(int(HELD_OUT_SHARE * _DIGEST_RANGE), lowest), highest - 1)


def split_of(text: str, cut: int) -> Split:
    """The split that the content rule puts a text in."""
    return "heldout" if content_digest(text) <= cut else "train"


def fingerprint_of(rule: str, documents: Iterable[Document]) -> str:
    """Sixteen hexadecimal digits over names, contents and order.

    `rule` names the way of splitting and its version, which with the documents gives the split.
    """
    whole = hashlib.sha256(rule.encode())
    for document in documents:
        content = hashlib.sha256(document.text.encode()).digest()
        whole.update(f"\0{document.name}\0".encode() + content)
    return whole.hexdigest()[:16]
