"""Define a corpus: named documents, the split of each, and what was left out.

Held-out text must not occur in training. The digest that assigns documents to splits therefore
ignores white space, line ends, byte order marks and Unicode form: copies that differ only in these
count as one document.
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
#: The ASCII characters that `str.split` treats as white space.
_ASCII_SPACE = b"\t\n\v\f\r\x1c\x1d\x1e\x1f "
_MARK = "\ufeff"  # the byte order mark
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OTHER_SPACE = re.compile(rf"[^\S\x00-\x7f]|{_MARK}")


@dataclass(frozen=True)
class Document:
    """One text with its name and its source.

    Attributes:
        name: identifies the document in messages and in the fingerprint.
        text: the whole text, not empty.
        source: the group it is counted under: a file, a folder, the shards of one set, or a split
            of a data set.
    """

    name: str
    text: str
    source: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A count of what is in neither split, for one reason and one kind of file.

    Attributes:
        reason: a few words, such as "empty document".
        suffix: such as ".jsonl.gz"; empty if it does not apply.
        count: how many of `unit`.
        unit: what is counted.
        example: the name of one of them.
    """

    reason: str
    suffix: str
    count: int
    unit: Unit
    example: str


def shown(name: str) -> str:
    """Escape a file name, or a sentence that contains one, for records and terminals.

    Bytes that are not UTF-8 become `\\xe9`, and control characters become escapes such as `\\n`.
    """
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return _CONTROL.sub(lambda match: repr(match.group())[1:-1], text)


class Omissions:
    """Counts what is left out while a corpus is read."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, Unit], int] = {}
        self._examples: dict[tuple[str, str, Unit], str] = {}

    @property
    def total(self) -> int:
        """The count over all reasons and kinds."""
        return sum(self._counts.values())

    def add(self, reason: str, suffix: str, unit: Unit, example: str) -> None:
        """Count one more; the first of each reason, suffix and unit is kept as the example."""
        kind = (reason, shown(suffix), unit)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._examples.setdefault(kind, shown(example))

    def take(self, row: LeftOut) -> None:
        """Add the count of a row from another `Omissions`."""
        kind = (row.reason, row.suffix, row.unit)
        self._counts[kind] = self._counts.get(kind, 0) + row.count
        self._examples.setdefault(kind, row.example)

    def listed(self) -> tuple[LeftOut, ...]:
        """Return the counts by reason; within a reason the most frequent suffix comes first."""
        rows = [
            LeftOut(reason, suffix, count, unit, self._examples[reason, suffix, unit])
            for (reason, suffix, unit), count in self._counts.items()
        ]
        return tuple(sorted(rows, key=lambda row: (row.reason, -row.count, row.suffix)))


class Corpus(ABC):
    """Documents in an order that depends only on their names and contents."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits; equal for equal documents, order and split rule."""

    @property
    @abstractmethod
    def total_bytes(self) -> int | None:
        """UTF-8 bytes of both splits, or None if that needs reading a whole stream."""

    @abstractmethod
    def assigned(self) -> Iterator[tuple[Split, Document]]:
        """Yield every document that is not empty, with its split, in one pass."""

    def documents(self, split: Split) -> Iterator[Document]:
        """Yield the documents of one split, in order."""
        return (document for part, document in self.assigned() if part == split)

    @property
    def split_rule(self) -> str:
        """One sentence for people that says how the held-out split is made."""
        return ""

    @property
    def split_is_given(self) -> bool:
        """Whether the user or the data set, rather than a rule, defines the held-out split."""
        return False

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Counts of what is in neither split; complete for a stream only after a full pass."""
        return ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences for the user; complete for a stream only after a full pass."""
        return ()


def is_empty(text: str) -> bool:
    """Return whether a text holds only white space and byte order marks."""
    return not text or text.isspace() or not text.replace(_MARK, "").strip()


def normalised(text: str) -> bytes:
    """Return the UTF-8 bytes that identify copies of a text: NFC, without white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        if _OTHER_SPACE.search(text):
            text = "".join(text.replace(_MARK, "").split())
    return text.encode().translate(None, _ASCII_SPACE)


def digest_of(content: bytes) -> int:
    """Return a uniformly distributed 64-bit digest of normalised bytes."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8])


def content_digest(text: str) -> int:
    """Return a uniformly distributed 64-bit digest of a text.

    It is equal for texts that differ only in white space, line ends, Unicode form or byte order
    marks.
    """
    return digest_of(normalised(text))


def held_out_cut(lowest: int, highest: int) -> int:
    """Return the largest digest that is held out from a stream.

    About `HELD_OUT_SHARE` of all documents are held out, at least one and never all of them. The
    rule depends only on contents, so copies of a document are always in the same split.

    Args:
        lowest: the lowest digest among the first documents.
        highest: the highest digest among the first documents.

    Raises:
        ValueError: `lowest` equals `highest`; all documents are copies of one.
    """
    if lowest == highest:
        raise ValueError("a corpus of one distinct document cannot be split")
    return min(max(int(HELD_OUT_SHARE * _DIGEST_RANGE), lowest), highest - 1)


def split_of(text: str, cut: int) -> Split:
    """Return the split of a text from a stream; `cut` comes from `held_out_cut`."""
    return "heldout" if content_digest(text) <= cut else "train"


def fingerprint_of(rule: str, documents: Iterable[Document]) -> str:
    """Return sixteen hexadecimal digits over the names, contents and order of documents.

    Args:
        rule: the name and version of the split rule. Rule and documents together determine the
            split.
        documents: all of them, in order.
    """
    whole = hashlib.sha256(rule.encode())
    for document in documents:
        content = hashlib.sha256(document.text.encode()).digest()
        name = document.name.encode(errors="surrogateescape")  # file names may be any bytes
        whole.update(b"\0" + name + b"\0" + content)
    return whole.hexdigest()[:16]
