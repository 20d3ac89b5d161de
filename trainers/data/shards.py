"""One split of a token store: a list of Arrow shards, each one record batch of `token` ids.

A shard of the held-out split also has `text_bytes`: how many UTF-8 bytes of text each id stands
for, so that bits per byte can be taken over the very tokens that were measured. Which documents
lie in which shard depends on the corpus alone (`shard_number`): whoever writes them, one process
or many, writes the same files.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainers.data.documents import Split

Ids = NDArray[np.unsignedinteger[Any]]

TOKEN = "token"
TEXT_BYTES = "text_bytes"

#: Bytes of text behind a shard: some 120 MB of two-byte ids.
SHARD_TEXT_BYTES = 2**28
#: Tokens read at a time where a whole split is read: what was read of a map is not kept.
CHUNK = 2**24


@dataclass(frozen=True)
class ShardMeta:
    """One file below the store's folder: its tokens, its size in bytes, and the hash of its
    columns' values, however Arrow frames them."""

    file: str
    tokens: int
    file_bytes: int
    sha256: str


def shard_number(bytes_before: int) -> int:
    """The shard that a document lies in, by the bytes of its split's documents before it."""
    return bytes_before // SHARD_TEXT_BYTES


def shard_file(split: Split, number: int) -> str:
    return f"{split}/{number:05d}.arrow"


class ShardWriter:
    """Takes ids of one shard in order; `finish` leaves the Arrow file.

    Values go to plain files first: a memory map is one array only where the Arrow file is one
    record batch, and the length of that must be known before it is begun.
    """

    def __init__(self, folder: Path, file: str, columns: Sequence[tuple[str, np.dtype[Any]]]):
        self._file, self._path = file, folder / file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._columns = dict(columns)
        self._plain = {name: self._path.with_suffix(f".{name}") for name in self._columns}
        self._streams = {name: path.open("wb") for name, path in self._plain.items()}
        self._tokens = 0

    def add(self, values: dict[str, NDArray[np.unsignedinteger[Any]]]) -> None:
        """The next values of every column, equally many."""
        for name, stream in self._streams.items():
            stream.write(values[name].astype(self._columns[name]).tobytes())
        self._tokens += len(values[TOKEN])

    def finish(self) -> ShardMeta:
        """Write the Arrow file and remove the plain ones."""
        self.close()
        arrays = [
            np.memmap(path, self._columns[name], "r", shape=(self._tokens,))
            for name, path in self._plain.items()
        ]
        batch = pa.record_batch(
            [
                pa.Array.from_buffers(
                    pa.from_numpy_dtype(array.dtype), self._tokens, [None, pa.py_buffer(array)]
                )
                for array in arrays
            ],
            list(self._columns),
        )
        with self._path.open("wb") as stream:
            with pa.ipc.new_file(stream, batch.schema) as writer:
                writer.write_batch(batch)
            sync(stream)
        digest = _sha256(arrays)
        for path in self._plain.values():
            path.unlink()
        return ShardMeta(self._file, self._tokens, self._path.stat().st_size, digest)

    def close(self) -> None:
        """Close the files; more than once is no error."""
        for stream in self._streams.values():
            stream.close()


class ShardedTokens:
    """The tokens of one split, as if its shards were one array. A shard is mapped read-only when
    it is first touched; nothing is copied but what is asked for."""

    def __init__(self, folder: Path, shards: Sequence[ShardMeta]) -> None:
        self._paths = [folder / shard.file for shard in shards]
        self._shards = tuple(shards)
        self._ends = np.cumsum([shard.tokens for shard in shards])
        self._mapped: dict[tuple[int, str], Ids] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Ids of windows that begin at `starts` [n], as [n, length]; they may cross shards."""
        return self._gather(TOKEN, starts, length)

    def text_bytes(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """UTF-8 bytes of text that each id of these windows stands for, [n, length]; of the
        held-out split only. A separator stands for none."""
        return self._gather(TEXT_BYTES, starts, length)

    def chunks(self) -> Iterator[Ids]:
        """All ids in order, at most `CHUNK` at a time."""
        for number in range(len(self._shards)):
            ids = self._column(number, TOKEN)
            for start in range(0, len(ids), CHUNK):
                yield ids[start : start + CHUNK]

    def check(self, is_verified: Callable[[Path, str, Callable[[], str]], bool]) -> None:
        """Compare every shard with its description.

        `is_verified` is given path, hash and a function that reads the file's own hash. Raises
        ValueError for a file that is not as described, and what pyarrow and the system raise.
        """
        for number, (path, shard) in enumerate(zip(self._paths, self._shards, strict=True)):
            if path.stat().st_size != shard.file_bytes:
                raise ValueError(
                    f"{shard.file} has {path.stat().st_size} bytes, not {shard.file_bytes}"
                )
            if not is_verified(path, shard.sha256, lambda n=number: self._digest(n)):  # type: ignore[misc]
                raise ValueError(f"the ids in {shard.file} do not match their hash")

    def _digest(self, number: int) -> str:
        return _sha256([self._column(number, name) for name in self._names(number)])

    def _names(self, number: int) -> list[str]:
        return list(pa.ipc.open_file(pa.memory_map(str(self._paths[number]))).schema.names)

    def _column(self, number: int, name: str) -> Ids:
        if (number, name) not in self._mapped:
            batch = pa.ipc.open_file(pa.memory_map(str(self._paths[number]))).get_batch(0)
            values: Ids = batch.column(name).to_numpy(zero_copy_only=True)
            if len(values) != self._shards[number].tokens:
                raise ValueError(
                    f"{self._paths[number]} has {len(values)} tokens, "
                    f"not {self._shards[number].tokens}"
                )
            self._mapped[number, name] = values
        return self._mapped[number, name]

    def _gather(self, name: str, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        first, last = (
            np.searchsorted(self._ends, places, side="right")
            for places in (starts, starts + length - 1)
        )
        found = np.empty((len(starts), length), np.int64)
        offsets = np.arange(length)
        for number in np.unique(first):
            column = self._column(int(number), name)
            begin = self._ends[number] - len(column)
            whole = (first == number) & (last == number)
            found[whole] = column[starts[whole, None] - begin + offsets]
        for row in np.flatnonzero(first != last):
            found[row] = self._across(name, int(starts[row]), length)
        return found

    def _across(self, name: str, start: int, length: int) -> NDArray[np.int64]:
        """One window that begins in one shard and ends in another."""
        parts: list[NDArray[Any]] = []
        at, left = start, length
        while left:
            number = int(np.searchsorted(self._ends, at, side="right"))
            column = self._column(number, name)
            within = at - int(self._ends[number] - len(column))
            parts.append(column[within : within + left])
            at, left = at + len(parts[-1]), left - len(parts[-1])
        return np.concatenate(parts).astype(np.int64)

    @cached_property
    def digest(self) -> str:
        """The hash of the shards' hashes."""
        return hashlib.sha256("".join(s.sha256 for s in self._shards).encode()).hexdigest()


def _sha256(columns: Sequence[NDArray[Any]]) -> str:
    whole = hashlib.sha256()
    for column in columns:
        whole.update(column.data)
    return whole.hexdigest()


def sync(stream: IO[Any]) -> None:
    """Push a file to the disk, so that no rename is durable before what it names."""
    stream.flush()
    os.fsync(stream.fileno())
