"""Writing one split of a token store, in constant memory whatever its length."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainers.data.contents import Contents, Encoding, SourcePart, added
from trainers.data.documents import Corpus, Document, Split
from trainers.data.encoded import Encoded, is_refused, lost_text_problem
from trainers.data.shards import (
    TEXT_BYTES,
    TOKEN,
    ShardMeta,
    ShardWriter,
    shard_file,
    shard_number,
)
from trainers.data.tokenizer import Tokenizer
from trialstore.errors import InputError

log = logging.getLogger(__name__)

#: Characters of text encoded at a time, over as many documents as that takes.
_BATCH = 2**20
#: Lost characters that are shown.
EXAMPLES = 3
_REPORT_EVERY = 2**28  # bytes of text between two progress messages


@dataclass(frozen=True)
class SplitMeta:
    """The shards of a split, and what is in them: tokens with separators, documents, and the
    UTF-8 bytes behind them."""

    tokens: int
    documents: int
    text_bytes: int
    shards: tuple[ShardMeta, ...]


@dataclass
class Lost:
    """What encoding did to the text of a split, so far."""

    characters: int = 0  # of text that are no white space
    lost: int = 0  # of them
    altered_documents: int = 0
    unknown: int = 0  # ids
    ids: int = 0
    separators: int = 0  # ids within documents that are the separator between them
    examples: tuple[str, ...] = ()  # of lost characters

    def note(self, one: Encoded, unknown_id: int | None, is_document: bool = True) -> None:
        """Add a text. One that is an excerpt may decode otherwise for being cut."""
        self.characters += one.characters
        self.lost += one.lost_characters
        self.altered_documents += is_document and one.altered
        self.ids += len(one.ids)
        self.separators += one.separators
        if unknown_id is not None:
            self.unknown += int((one.ids == unknown_id).sum())
        if one.lost_example and len(self.examples) < EXAMPLES:
            self.examples = tuple(dict.fromkeys((*self.examples, one.lost_example)))


class SplitWriter:
    """Takes documents in order; `finish` leaves FOLDER/SPLIT/00000.arrow and so on."""

    def __init__(self, folder: Path, split: Split, tokenizer: Tokenizer) -> None:
        self.counts = np.zeros(tokenizer.vocab_size, np.int64)
        self.sources: dict[str, SourcePart] = {}
        self.lost = Lost()
        self._folder, self._split, self._tokenizer = folder, split, tokenizer
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._columns = [(TOKEN, dtype)]
        if split == "heldout":
            self._columns.append((TEXT_BYTES, np.dtype(np.uint32)))
        # Bytes of text behind ids are kept of the held-out split; what is lost is known of both.
        self._measured = split == "heldout" or not tokenizer.lossless
        self._text_bytes = 0
        self._documents = 0
        self._waiting: list[Document] = []  # of one shard
        self._waiting_length = 0
        self._number = 0
        self._shard: ShardWriter | None = None
        self._shards: list[ShardMeta] = []

    @property
    def documents(self) -> int:
        return self._documents

    def add(self, document: Document) -> None:
        """One document; the separator is put after it."""
        number = shard_number(self._text_bytes)
        if self._shard is None or number != self._number:
            self._end_shard()
            self._number = number
            self._shard = ShardWriter(self._folder, shard_file(self._split, number), self._columns)
        before, self._text_bytes = self._text_bytes, self._text_bytes + len(document.text.encode())
        self._documents += 1
        self._waiting.append(document)
        self._waiting_length += len(document.text)
        if self._waiting_length >= _BATCH:
            self._flush()
        if before // _REPORT_EVERY < self._text_bytes // _REPORT_EVERY:
            log.info("%s split: %d MB of text encoded", self._split, self._text_bytes // 10**6)

    def finish(self) -> SplitMeta:
        """Write what is left. At least one document was added."""
        self._end_shard()
        return SplitMeta(
            tokens=int(self.counts.sum()),
            documents=self._documents,
            text_bytes=self._text_bytes,
            shards=tuple(self._shards),
        )

    def close(self) -> None:
        """Close the files; more than once is no error."""
        if self._shard is not None:
            self._shard.close()

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._flush()
            self._shards.append(self._shard.finish())
            self._shard = None

    def _flush(self) -> None:
        if not self._waiting or self._shard is None:
            return
        texts = [document.text for document in self._waiting]
        if self._measured:
            measured = self._tokenizer.measure_batch(texts)
            encoded = [one.ids for one in measured]
            if not self._tokenizer.lossless:
                for one in measured:
                    self.lost.note(one, self._tokenizer.unknown_id)
        else:
            measured = None
            encoded = self._tokenizer.encode_batch(texts)
        separator = np.array([self._tokenizer.separator], np.uint32)
        ids = np.concatenate([part for one in encoded for part in (one, separator)])
        values = {TOKEN: ids}
        if measured is not None:
            none = np.zeros(1, np.uint32)
            values[TEXT_BYTES] = np.concatenate(
                [part for one in measured for part in (one.text_bytes, none)]
            )
        self.counts += np.bincount(ids, minlength=len(self.counts))
        for document, own in zip(self._waiting, encoded, strict=True):
            part = self.sources.setdefault(
                document.source, SourcePart(document.source, self._split, 0, 0, 0)
            )
            self.sources[document.source] = added(
                part, 1, len(document.text.encode()), len(own) + 1
            )
        self._shard.add(values)
        self._waiting, self._waiting_length = [], 0


def encoding_of(parts: Iterable[Lost], tokenizer: Tokenizer) -> Encoding:
    """What encoding did to the text of several splits together."""
    whole = Lost()
    for part in parts:
        whole.characters += part.characters
        whole.lost += part.lost
        whole.altered_documents += part.altered_documents
        whole.unknown += part.unknown
        whole.ids += part.ids
        whole.separators += part.separators
        whole.examples = tuple(dict.fromkeys((*whole.examples, *part.examples)))[:EXAMPLES]
    return Encoding(
        lossless=not (whole.altered_documents or whole.lost or whole.unknown),
        proven=tokenizer.lossless,
        unknown_share=whole.unknown / max(whole.ids, 1),
        lost_share=whole.lost / max(whole.characters, 1),
        lost_characters=whole.lost,
        characters=whole.characters,
        altered_documents=whole.altered_documents,
        separators_in_text=whole.separators,
        examples=whole.examples,
    )


def refuse_lost(parts: Mapping[Split, Lost]) -> None:
    """Raises InputError where one split alone loses more text than may be lost. The held-out one
    is small, and a sum over both would not show that all of it is unknown."""
    for split, lost in parts.items():
        if is_refused(lost.lost, lost.characters):
            problem = lost_text_problem(
                lost.lost,
                lost.characters,
                lost.unknown / max(lost.ids, 1),
                lost.examples,
                f"the characters of the {'held-out' if split == 'heldout' else 'training'} split",
            )
            assert problem is not None
            raise InputError(problem)


def with_remarks(contents: Contents, tokenizer: Tokenizer) -> Contents:
    """With what is to be said of the tokenizer. Raises InputError where it loses too much text."""
    said = () if contents.encoding is None else contents.encoding.remarks
    return replace(contents, remarks=(*contents.remarks, *tokenizer.remarks, *said))


def as_found(stored: Contents, corpus: Corpus, tokenizer: Tokenizer) -> Contents:
    """The contents of a store with what its corpus leaves out by now: the same documents may lie
    beside other files than when the store was made. What a stream leaves out is not known anew."""
    if corpus.total_bytes is None:
        return stored
    found = replace(
        stored,
        split_rule=corpus.split_rule,
        left_out=corpus.left_out,
        remarks=corpus.remarks,
    )
    return with_remarks(found, tokenizer)
