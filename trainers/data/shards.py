"""Read and write one split of a token store: Arrow shards, each one record batch of `token` ids.

A shard of the held-out split also has the column `text_bytes`: the UTF-8 bytes of text behind each
id, so that bits per byte can be computed over exactly the measured tokens. The shard of a document
depends on the corpus alone (`shard_number`), so one writer or many produce the same files.
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

#: Bytes of text per shard: about 120 MB of two-byte ids.
SHARD_TEXT_BYTES = 2**28
#: Tokens per step when a whole split is read.
CHUNK = 2**24


@dataclass(frozen=True)
class ShardMeta:
    """One shard.

    Attributes:
        file: the path below the store's folder.
        tokens: ids in the file.
        file_bytes: the size of the file.
        sha256: the hash of the columns' values, independent of Arrow's framing.
    """

    file: str
    tokens: int
    file_bytes: int
    sha256: str


def shard_number(bytes_before: int) -> int:
    """Return the shard of a document, given the text bytes of its split before it."""
    return bytes_before // SHARD_TEXT_BYTES


def shard_file(split: Split, number: int) -> str:
    """Return the path of a shard below the store's folder."""
    return f"{split}/{number:05d}.arrow"


class ShardWriter:
    """Writes the ids of one shard in order; `finish` produces the Arrow file.

    The values go to plain files first. Memory-mapping a column as one array needs a single record
    batch, and Arrow needs the length of a batch before its first value.
    """

    def __init__(self, folder: Path, file: str, columns: Sequence[tuple[str, np.dtype[Any]]]):
        self._file, self._path = file, folder / file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._columns = dict(columns)
        self._plain = {name: self._path.with_suffix(f".{name}") for name in self._columns}
        self._streams = {name: path.open("wb") for name, path in self._plain.items()}
        self._tokens = 0

    def add(self, values: dict[str, NDArray[np.unsignedinteger[Any]]]) -> None:
        """Append values to every column; all columns get equally many."""
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
        """Close the files; may be called again."""
        for stream in self._streams.values():
            stream.close()


class ShardedTokens:
    """The tokens of one split as one array over its shards.

    A shard is memory-mapped read-only at first use. Only requested values are copied.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardMeta]) -> None:
        self._paths = [folder / shard.file for shard in shards]
        self._shards = tuple(shards)
        self._ends = np.cumsum([shard.tokens for shard in shards])
        self._mapped: dict[tuple[int, str], Ids] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Return the ids of the windows that begin at `starts` [n], as [n, length].

        A window may cross shards.
        """
        return self._gather(TOKEN, starts, length)

    def text_bytes(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Return the UTF-8 bytes of text behind each id of these windows, [n, length].

        Only the held-out split has them. A separator stands for 0 bytes.
        """
        return self._gather(TEXT_BYTES, starts, length)

    def chunks(self) -> Iterator[Ids]:
        """Yield all ids in order, at most `CHUNK` at a time."""
        for number in range(len(self._shards)):
            ids = self._column(number, TOKEN)
            for start in range(0, len(ids), CHUNK):
                yield ids[start : start + CHUNK]

    def check(self, is_verified: Callable[[Path, str, Callable[[], str]], bool]) -> None:
        """Compare the size and hash of every shard with its description.

        Args:
            is_verified: gets the path, the expected hash, and a function that computes the file's
                hash; returns whether the content matches.

        Raises:
            ValueError: a file differs from its description.
            OSError, pyarrow.ArrowException: a file cannot be read.
        """
        for number, (path, shard) in enumerate(zip(self._paths, self._shards, strict=True)):
            if path.stat().st_size != shard.file_bytes:
                raise ValueError(
                    f"{shard.file} has {path.stat().st_size} bytes instead of {shard.file_bytes}"
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
        """Return one window that begins in one shard and ends in another."""
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
    """Flush a file to disk, so that a later rename cannot become durable before the content."""
    stream.flush()
    os.fsync(stream.fileno())
