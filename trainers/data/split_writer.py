"""Writing one split of a token store, in constant memory whatever its length."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainers.data.documents import Split
from trainers.data.tokenizer import Tokenizer, pieces

log = logging.getLogger(__name__)

#: Characters of text encoded at a time, over as many documents as that takes.
_BATCH = 2**20
_REPORT_EVERY = 2**28  # bytes of text between two progress messages


@dataclass(frozen=True)
class SplitMeta:
    """One Arrow file: its tokens, the documents and UTF-8 bytes behind them, the file's size, and
    the hash of the ids, however Arrow frames them."""

    tokens: int
    documents: int
    text_bytes: int
    file_bytes: int
    sha256: str


class SplitWriter:
    """Takes documents in order; `finish` leaves FOLDER/SPLIT.arrow.

    Ids go to a plain file first: a memory map is one array only where the Arrow file is one
    record batch, and the length of that must be known before it is begun.
    """

    def __init__(self, folder: Path, split: Split, tokenizer: Tokenizer) -> None:
        self.counts = np.zeros(tokenizer.vocab_size, np.int64)
        self.documents = 0
        self._split = split
        self._tokenizer = tokenizer
        self._dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._arrow = folder / f"{split}.arrow"
        self._plain = folder / f"{split}.ids"
        self._stream = self._plain.open("wb")
        self._hash = hashlib.sha256()
        self._text_bytes = 0
        self._waiting: list[tuple[str, bool]] = []  # pieces, and whether each ends its document
        self._waiting_length = 0

    def add(self, text: str) -> None:
        """One document; the separator is put after it."""
        *inner, last = pieces(text)
        self._waiting += [(piece, False) for piece in inner] + [(last, True)]
        self._waiting_length += len(text)
        self.documents += 1
        before, self._text_bytes = self._text_bytes, self._text_bytes + len(text.encode())
        if self._waiting_length >= _BATCH:
            self._flush()
        if before // _REPORT_EVERY < self._text_bytes // _REPORT_EVERY:
            log.info("%s split: %d MB of text encoded", self._split, self._text_bytes // 10**6)

    def finish(self) -> SplitMeta:
        """Write the Arrow file and remove the plain one. At least one document was added."""
        self._flush()
        self.close()
        tokens = int(self.counts.sum())
        ids = np.memmap(self._plain, self._dtype, "r", shape=(tokens,))
        batch = pa.record_batch(
            [
                pa.Array.from_buffers(
                    pa.from_numpy_dtype(self._dtype), tokens, [None, pa.py_buffer(ids)]
                )
            ],
            ["token"],
        )
        with self._arrow.open("wb") as stream:
            with pa.ipc.new_file(stream, batch.schema) as writer:
                writer.write_batch(batch)
            sync(stream)
        self._plain.unlink()
        return SplitMeta(
            tokens=tokens,
            documents=self.documents,
            text_bytes=self._text_bytes,
            file_bytes=self._arrow.stat().st_size,
            sha256=self._hash.hexdigest(),
        )

    def close(self) -> None:
        """Close the file; more than once is no error."""
        self._stream.close()

    def _flush(self) -> None:
        texts = [text for text, _ in self._waiting]
        separator = np.array([self._tokenizer.separator], np.uint32)
        parts: list[NDArray[np.uint32]] = []
        encoded = self._tokenizer.encode_batch(texts)
        for (_, ends), ids in zip(self._waiting, encoded, strict=True):
            parts += [ids, separator] if ends else [ids]
        if parts:
            joined = np.concatenate(parts)
            self.counts += np.bincount(joined, minlength=len(self.counts))
            data = joined.astype(self._dtype).tobytes()
            self._hash.update(data)
            self._stream.write(data)
        self._waiting, self._waiting_length = [], 0


def entropy(counts: NDArray[np.int64]) -> float:
    """-sum p ln p in nats, p = counts / sum(counts); counts of 0 contribute 0."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def sync(stream: IO[Any]) -> None:
    """Push a file to the disk, so that no rename is durable before what it names."""
    stream.flush()
    os.fsync(stream.fileno())
