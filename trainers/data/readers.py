"""Reading one file of text, whatever its kind.

A `.txt`, `.md` or `.py` file is one document, or several where it holds the separator; a line of
`.jsonl` and a row of `.csv` or `.parquet` is one, its text in a named column. Tables are
streamed, and so are the documents between separators; a file of one document, and a Parquet file
that is compressed as a whole or lies in a zip, must fit in memory.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainers.data.compressed import decompressed
from trainers.data.documents import Document, Omissions, is_empty
from trainers.data.marks import Marks
from trainers.data.tables import Rows, decoded, read_csv, read_jsonl, read_parquet
from trialstore.errors import InputError

WHOLE = (".txt", ".md", ".py")
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (*JSON_LINES, ".csv", ".parquet")

_CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class SourceFile:
    """A file, or a member of a zip.

    `name` is as in the fingerprint, where a compressed file has the name of its content; `place`
    as in messages; `path` is the file that it lies in, and `root` the folder that the user
    pointed at.
    """

    name: str
    place: str
    path: Path
    root: Path
    kind: str  # ".jsonl", of what a compressed file holds
    compression: str  # ".gz", or empty
    source: str
    open: Callable[[], io.BufferedReader]

    @property
    def suffix(self) -> str:
        return self.kind + self.compression

    def content(self) -> BinaryIO:
        """What the file holds, decompressed. Raises OSError."""
        stream = self.open()
        if self.compression:
            return decompressed(stream, self.compression, self.place)
        return stream


class Reader:
    """Reads the files of one corpus, and knows what was left out and what was seen on the way."""

    def __init__(
        self, column: str, separator: str | None, skip: bool, marks: Marks | None = None
    ) -> None:
        """`skip` is whether bad rows are left out instead of refused; `marks`, where given, takes
        what looks like a mark between documents."""
        self.omissions = Omissions()
        self._marks = marks
        self._column, self._skip = column, skip
        self._separator = separator
        self.separated = 0  # files that hold the separator
        self.whole = 0  # files that do not

    def documents(self, file: SourceFile) -> Iterator[Document]:
        """Those that are not empty, in order. Raises InputError naming file and place."""
        left_out, met = self.omissions.total, False
        try:
            for name, text in self._texts(file):
                met = True
                if is_empty(text):
                    self.omissions.add("empty document", file.suffix, "documents", name)
                else:
                    if self._marks is not None:
                        self._marks.look(text, file.name, lines=file.kind == ".txt")
                    yield Document(name, text, file.source)
        except OSError as error:
            raise InputError(f"{file.place}: cannot be read: {error}") from error
        if not met and self.omissions.total == left_out:  # nor a bad row
            self.omissions.add("no rows", file.suffix, "files", file.name)

    def _texts(self, file: SourceFile) -> Iterator[tuple[str, str]]:
        if file.kind in WHOLE:
            with file.content() as stream:
                if self._separator is None:
                    yield file.name, decoded(stream.read(), file.place, 0)
                else:
                    yield from self._parts(file, stream, self._separator)
            return
        rows = Rows(file.name, file.place, file.suffix, self._column, self._skip, self.omissions)
        if file.kind == ".parquet":
            with file.content() as stream:
                yield from read_parquet(rows, stream if stream.seekable() else _held(stream))
            return
        with file.content() as stream:
            yield from (read_csv if file.kind == ".csv" else read_jsonl)(rows, stream)

    def _parts(
        self, file: SourceFile, stream: BinaryIO, separator: str
    ) -> Iterator[tuple[str, str]]:
        """The documents between separators, without the line end beside one."""
        offset = 0
        mark = separator.encode()
        for number, (part, at_end) in enumerate(_split(stream, mark)):
            if number == 0 and at_end:
                self.whole += 1
                yield file.name, decoded(part, file.place, 0)
                return
            text = decoded(part, file.place, offset)
            if number > 0:
                text = text.removeprefix("\r\n" if text.startswith("\r\n") else "\n")
            if not at_end:
                text = text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")
            # What follows the last separator is no document that somebody left empty.
            if not (at_end and is_empty(text)):
                yield f"{file.name}:{number}", text
            offset += len(part) + len(mark)
        self.separated += 1


def _split(stream: BinaryIO, mark: bytes) -> Iterator[tuple[bytes, bool]]:
    """The bytes between marks, and whether they are the last."""
    pending, searched = bytearray(), 0
    while chunk := stream.read(_CHUNK):
        pending += chunk
        start = 0
        at = pending.find(mark, max(0, searched - len(mark) + 1))
        while at >= 0:
            yield bytes(pending[start:at]), False
            start = at + len(mark)
            at = pending.find(mark, start)
        del pending[:start]
        searched = len(pending)
    yield bytes(pending), True


def _held(stream: BinaryIO) -> BinaryIO:
    # Parquet is read from its end, and what is compressed cannot be read backwards.
    return io.BytesIO(stream.read())
