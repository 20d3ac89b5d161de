"""Summarise a corpus for people and records: sources, omissions, and text lost in encoding.

A plan, which estimates tokens from a sample, and a token store use the same classes.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainers.data.documents import LeftOut, Split
from trainers.data.encoded import is_refused, lost_text_problem
from trialstore.errors import InputError

SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class SourcePart:
    """The share of one source in one split.

    `bytes` are UTF-8 bytes of text. `tokens` include the separator after each document.
    """

    source: str
    split: Split
    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class Encoding:
    """The effect of the tokenizer on the text of a corpus.

    Characters are counted without white space. A character is lost if no id stands for it, or only
    the unknown id does.

    Attributes:
        lossless: every document decodes back to itself.
        proven: this follows from the tokenizer's definition for any text; otherwise the documents
            were tested.
    """

    lossless: bool
    proven: bool
    unknown_share: float  # of all ids
    lost_share: float  # of all characters
    lost_characters: int
    characters: int  # of all measured documents
    altered_documents: int
    separators_in_text: int  # ids within documents that equal the separator
    examples: tuple[str, ...] = ()  # some of the lost characters

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences that a user must read.

        Raises:
            InputError: more text is lost than `REFUSED_LOST_SHARE` allows.
        """
        said = []
        if problem := lost_text_problem(
            self.lost_characters, self.characters, self.unknown_share, self.examples
        ):
            if is_refused(self.lost_characters, self.characters):
                raise InputError(problem)
            said.append(problem)
        elif self.altered_documents:
            said.append(
                f"the tokenizer alters text: {self.altered_documents:,} documents do not decode "
                "back to themselves (case, accents or white space may be gone); bits per byte "
                "cannot be given"
            )
        if self.separators_in_text:
            said.append(
                f"the tokenizer makes its separator of {self.separators_in_text:,} places within "
                "documents: there a model is told that a document ends which goes on"
            )
        return tuple(said)


@dataclass(frozen=True)
class Contents:
    """The documents, bytes and tokens of a corpus by source and split.

    Attributes:
        split_rule: one sentence that says how the held-out split is made.
        sources: one entry per source and split.
        left_out: documents and files in neither split, counted by reason.
        remarks: sentences for the user.
        encoding: None if nothing has been encoded.
        estimated: tokens are extrapolated from a sample spread over each source.
    """

    split_rule: str
    sources: tuple[SourcePart, ...]
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...]
    encoding: Encoding | None = None
    estimated: bool = False

    def total(self, split: Split) -> SourcePart:
        """Return the sum over all sources of one split; its `source` is empty."""
        parts = [part for part in self.sources if part.split == split]
        return SourcePart(
            source="",
            split=split,
            documents=sum(part.documents for part in parts),
            bytes=sum(part.bytes for part in parts),
            tokens=sum(part.tokens for part in parts),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the form of `resolved.corpus` in sweep.yaml and in `widthlab plan --json`."""
        splits = {}
        for split in SPLITS:
            total = self.total(split)
            splits[split] = {
                "documents": total.documents, "bytes": total.bytes, "tokens": total.tokens
            }  # fmt: skip
        return {
            "split_rule": self.split_rule,
            "splits": splits,
            "sources": [asdict(part) for part in self.sources],
            "left_out": [asdict(left) for left in self.left_out],
            "remarks": list(self.remarks),
            "encoding": None if self.encoding is None else asdict(self.encoding),
            "estimated": self.estimated,
        }


def ordered(parts: Iterable[SourcePart]) -> tuple[SourcePart, ...]:
    """Sort parts by the first appearance of their source; the training split comes first."""
    found = list(parts)
    met = list(dict.fromkeys(part.source for part in found))
    return tuple(sorted(found, key=lambda part: (met.index(part.source), SPLITS.index(part.split))))


def added(part: SourcePart, documents: int = 0, text_bytes: int = 0, tokens: int = 0) -> SourcePart:
    """Return the part with these numbers of documents, UTF-8 bytes and tokens added."""
    return replace(
        part,
        documents=part.documents + documents,
        bytes=part.bytes + text_bytes,
        tokens=part.tokens + tokens,
    )
