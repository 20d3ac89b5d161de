"""What a corpus holds, what was left out of it, and what encoding did to it: for people and
records. The same for a plan, which knows tokens from a sample, and for a token store."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainers.data.documents import LeftOut, Split
from trainers.data.encoded import is_refused, lost_text_problem
from trialstore.errors import InputError

SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class SourcePart:
    """What one source gives to one split. `bytes` are UTF-8 bytes of text; `tokens` include the
    separator after each document."""

    source: str
    split: Split
    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class Encoding:
    """What the tokenizer does to the text.

    `lossless`: every document decodes back to itself; `proven` says that this follows from the
    tokenizer's parts for any text, and otherwise the documents were tried. Characters are those
    that are no white space; lost are those that no id stands for, or the unknown id alone.
    """

    lossless: bool
    proven: bool
    unknown_share: float  # of all ids
    lost_share: float  # of all characters
    lost_characters: int
    characters: int  # of the documents that were measured
    altered_documents: int
    separators_in_text: int  # ids within documents that are the one between documents
    examples: tuple[str, ...] = ()  # of lost characters

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user must know of it, a sentence each. Raises InputError where more text is lost
        than a loss can bear that is compared at a hundredth of a nat."""
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
    """`encoding` is None where nothing has been encoded; `estimated` says that tokens are
    extrapolated from a sample spread over each source."""

    split_rule: str
    sources: tuple[SourcePart, ...]
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...]
    encoding: Encoding | None = None
    estimated: bool = False

    def total(self, split: Split) -> SourcePart:
        """The sum over the sources of one split, under an empty name."""
        parts = [part for part in self.sources if part.split == split]
        return SourcePart(
            source="",
            split=split,
            documents=sum(part.documents for part in parts),
            bytes=sum(part.bytes for part in parts),
            tokens=sum(part.tokens for part in parts),
        )

    def to_dict(self) -> dict[str, Any]:
        """As `resolved.corpus` of sweep.yaml and `widthlab plan --json` have it."""
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
    """The parts by source, as sources were met; of each the training split first."""
    found = list(parts)
    met = list(dict.fromkeys(part.source for part in found))
    return tuple(sorted(found, key=lambda part: (met.index(part.source), SPLITS.index(part.split))))


def added(part: SourcePart, documents: int = 0, text_bytes: int = 0, tokens: int = 0) -> SourcePart:
    return replace(
        part,
        documents=part.documents + documents,
        bytes=part.bytes + text_bytes,
        tokens=part.tokens + tokens,
    )
