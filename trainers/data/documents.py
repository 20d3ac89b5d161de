"""What a corpus is: named documents, each with the split it belongs to, and what was left out.

Held-out text must not stand in training too: the digest that splits documents is of their text
without white space, line ends, byte order marks and in one Unicode form, so that copies which
differ only in these are one document for the split.
"""

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]
Unit = Literal["files", "folders", "documents", "rows"]

#: The share of a corpus that is held out: of its bytes, or of a stream's documents.
HELD_OUT_SHARE = 0.1

_DIGEST_RANGE = 2**64
#: What `str.split` takes for white space, of ASCII.
_ASCII_SPACE = b"\t\n\v\f\r\x1c\x1d\x1e\x1f "
_MARK = "\ufeff"  # the byte order mark
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OTHER_SPACE = re.compile(rf"[^\S\x00-\x7f]|{_MARK}")


@dataclass(frozen=True)
class Document:
    """One text, the name that error messages and the fingerprint know it by, and the source it
    is counted under: a file, a folder, shards of one set, or a split of a data set."""

    name: str
    text: str
    source: str = ""


@dataclass(frozen=True)
class LeftOut:
    """What a corpus holds and its splits do not, of one reason and one kind of file.

    `suffix` is such as ".jsonl.gz", and empty where it means nothing; `example` is one name.
    """

    reason: str
    suffix: str
    count: int
    unit: Unit
    example: str


def shown(name: str) -> str:
    """A name of a file, or a sentence that holds one, as records and terminals can hold it: bytes
    that are not UTF-8 are written as `\\xe9`, and a line end as `\\n`."""
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return _CONTROL.sub(lambda match: repr(match.group())[1:-1], text)


class Omissions:
    """Counts what is left out while a corpus is read."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, Unit], int] = {}
        self._examples: dict[tuple[str, str, Unit], str] = {}

    @property
    def total(self) -> int:
        """How much has been left out, of all kinds."""
        return sum(self._counts.values())

    def add(self, reason: str, suffix: str, unit: Unit, example: str) -> None:
        """One more; the first of a kind is its example."""
        kind = (reason, shown(suffix), unit)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._examples.setdefault(kind, shown(example))

    def take(self, row: LeftOut) -> None:
        """As many more as a row of another count holds."""
        kind = (row.reason, row.suffix, row.unit)
        self._counts[kind] = self._counts.get(kind, 0) + row.count
        self._examples.setdefault(kind, row.example)

    def listed(self) -> tuple[LeftOut, ...]:
        """By reason, the most frequent suffix first."""
        rows = [
            LeftOut(reason, suffix, count, unit, self._examples[reason, suffix, unit])
            for (reason, suffix, unit), count in self._counts.items()
        ]
        return tuple(sorted(rows, key=lambda row: (row.reason, -row.count, row.suffix)))


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

    @property
    def split_rule(self) -> str:
        """One sentence for people: how the held-out split is made."""
        return ""

    @property
    def split_is_given(self) -> bool:
        """Whether the held-out part is the user's or the data set's own, and no rule's."""
        return False

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What neither split holds; of a stream, complete once it has been read to its end."""
        return ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of the corpus, a sentence each; complete when `left_out` is."""
        return ()


def is_empty(text: str) -> bool:
    """Whether a text is no document: it holds nothing but white space and byte order marks."""
    return not text or text.isspace() or not text.replace(_MARK, "").strip()


def normalised(text: str) -> bytes:
    """The UTF-8 bytes by which copies of a text are known: NFC, without white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        if _OTHER_SPACE.search(text):
            text = "".join(text.replace(_MARK, "").split())
    return text.encode().translate(None, _ASCII_SPACE)


def digest_of(content: bytes) -> int:
    """A uniform 64-bit number that is a function of normalised bytes alone."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def content_digest(text: str) -> int:
    """A uniform 64-bit number, equal for texts that differ only in white space, line ends,
    Unicode form or byte order marks."""
    return digest_of(normalised(text))


def held_out_cut(lowest: int, highest: int) -> int:
    """The digest up to which a document of a stream is held out, given the range of digests.

    About `HELD_OUT_SHARE` of all documents, but at least one and never all of them. The rule
    sees only contents, so copies of one document never end up on both sides.
    Raises ValueError where all documents are copies of one.
    """
    if lowest == highest:
        raise ValueError("a corpus of one distinct document cannot be split")
    return min(max(int(HELD_OUT_SHARE * _DIGEST_RANGE), lowest), highest - 1)


def split_of(text: str, cut: int) -> Split:
    """The split that the rule for streams puts a text in."""
    return "heldout" if content_digest(text) <= cut else "train"


def fingerprint_of(rule: str, documents: Iterable[Document]) -> str:
    """Sixteen hexadecimal digits over names, contents and order.

    `rule` names the way of splitting and its version, which with the documents gives the split.
    """
    whole = hashlib.sha256(rule.encode())
    for document in documents:
        content = hashlib.sha256(document.text.encode()).digest()
        name = document.name.encode(errors="surrogateescape")  # of a file, which may be any bytes
        whole.update(b"\0" + name + b"\0" + content)
    return whole.hexdigest()[:16]
