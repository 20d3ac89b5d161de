"""Write one split of a token store, in constant memory."""

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

#: Characters of text per call of the tokenizer, over several documents.
_BATCH = 2**20
#: Most lost characters that are shown.
EXAMPLES = 3
_REPORT_EVERY = 2**28  # bytes of text between two progress messages


@dataclass(frozen=True)
class SplitMeta:
    """The shards of a split, and its tokens with separators, documents and UTF-8 bytes of text."""

    tokens: int
    documents: int
    text_bytes: int
    shards: tuple[ShardMeta, ...]


@dataclass
class Lost:
    """Counts of the text that encoding lost or altered in one split."""

    characters: int = 0  # white space excepted
    lost: int = 0  # characters
    altered_documents: int = 0
    unknown: int = 0  # ids that are the unknown id
    ids: int = 0
    separators: int = 0  # ids within documents that equal the separator
    examples: tuple[str, ...] = ()  # some of the lost characters

    def note(self, one: Encoded, unknown_id: int | None, is_document: bool = True) -> None:
        """Add a text; an excerpt never counts as altered, because cutting alters decoding."""
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
    """Encodes documents in order and writes FOLDER/SPLIT/00000.arrow and the following shards.

    Attributes:
        counts: occurrences of each id so far, [vocab_size].
        sources: documents, bytes and tokens by source.
        lost: text that encoding lost or altered.
    """

    def __init__(self, folder: Path, split: Split, tokenizer: Tokenizer) -> None:
        self.counts = np.zeros(tokenizer.vocab_size, np.int64)
        self.sources: dict[str, SourcePart] = {}
        self.lost = Lost()
        self._folder, self._split, self._tokenizer = folder, split, tokenizer
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._columns = [(TOKEN, dtype)]
        if split == "heldout":
            self._columns.append((TEXT_BYTES, np.dtype(np.uint32)))
        # Text bytes are stored for the held-out split; lost text is counted for both.
        self._measured = split == "heldout" or not tokenizer.lossless
        self._text_bytes = 0
        self._documents = 0
        self._waiting: list[Document] = []  # all in the current shard
        self._waiting_length = 0
        self._number = 0
        self._shard: ShardWriter | None = None
        self._shards: list[ShardMeta] = []

    @property
    def documents(self) -> int:
        """The number of documents added."""
        return self._documents

    def add(self, document: Document) -> None:
        """Append a document and a separator."""
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
        """Write the rest and return the totals; at least one document must have been added."""
        self._end_shard()
        return SplitMeta(
            tokens=int(self.counts.sum()),
            documents=self._documents,
            text_bytes=self._text_bytes,
            shards=tuple(self._shards),
        )

    def close(self) -> None:
        """Close the files; may be called again."""
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
    """Summarise the encoding of several splits."""
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
    """Refuse a corpus if one split alone loses too much text.

    The held-out split is small: a sum over both splits could hide that all of it is unknown.

    Raises:
        InputError: more than `REFUSED_LOST_SHARE` of a split's characters are lost.
    """
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
    """Add the remarks about tokenizer and encoding.

    Raises:
        InputError: the tokenizer loses too much text.
    """
    said = () if contents.encoding is None else contents.encoding.remarks
    return replace(contents, remarks=(*contents.remarks, *tokenizer.remarks, *said))


def as_found(stored: Contents, corpus: Corpus, tokenizer: Tokenizer) -> Contents:
    """Update the contents of a store with what its corpus leaves out now.

    The files next to the documents may have changed since the store was made. For a stream the
    stored contents are returned: what it leaves out would need another pass.
    """
    if corpus.total_bytes is None:
        return stored
    found = replace(
        stored,
        split_rule=corpus.split_rule,
        left_out=corpus.left_out,
        remarks=corpus.remarks,
    )
    return with_remarks(found, tokenizer)
