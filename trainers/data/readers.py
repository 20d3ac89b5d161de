"""Read the documents of one file of any kind.

A `.txt`, `.md` or `.py` file is one document, or several if it holds the separator. A line of
`.jsonl` and a row of `.csv` or `.parquet` is one document, with its text in a named column. Tables,
and documents between separators, are streamed. A file of one document must fit in memory, and so
must a Parquet file that is compressed as a whole or is in a zip.
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
from trialstore.storage import unreadable

WHOLE = (".txt", ".md", ".py")
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (*JSON_LINES, ".csv", ".parquet")

_CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class SourceFile:
    """A file, or a member of a zip.

    Attributes:
        name: the name in the fingerprint, without a compression suffix.
        place: the name in messages.
        path: the file on disk: the zip for a member.
        root: the folder that the user gave.
        kind: the suffix of the decompressed content, such as ".jsonl".
        compression: such as ".gz", or "".
        source: the group that its documents are counted under.
        open: opens the file for reading, still compressed.
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
        """Kind and compression: ".jsonl.gz"."""
        return self.kind + self.compression

    def content(self) -> BinaryIO:
        """Open the decompressed content. Raises OSError."""
        stream = self.open()
        if self.compression:
            return decompressed(stream, self.compression, self.place)
        return stream


class Reader:
    """Reads the files of one corpus, and counts what it leaves out.

    Attributes:
        omissions: rows, documents and files left out so far.
        separated: text files that hold the separator.
        whole: text files that do not, when a separator is set.
    """

    def __init__(
        self, column: str, separator: str | None, skip: bool, marks: Marks | None = None
    ) -> None:
        """Configure the reader.

        Args:
            column: the text column of tables.
            separator: the mark between documents in text files; None if a file is one document.
            skip: leave out bad rows instead of refusing them.
            marks: collects possible document marks, if given.
        """
        self.omissions = Omissions()
        self._marks = marks
        self._column, self._skip = column, skip
        self._separator = separator
        self.separated = 0  # files that hold the separator
        self.whole = 0  # files that do not

    def documents(self, file: SourceFile) -> Iterator[Document]:
        """Yield the documents of a file that are not empty, in order.

        Raises:
            InputError: the file cannot be read, or holds a bad row; the message names file and row.
        """
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
            raise unreadable(
                f"{file.place}: cannot be read: {error}; make it readable, or take it out of paths",
                error,
            ) from error
        if not met and self.omissions.total == left_out:  # no bad row either
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
                yield from read_parquet(rows, stream if stream.seekable() else _in_memory(stream))
            return
        with file.content() as stream:
            yield from (read_csv if file.kind == ".csv" else read_jsonl)(rows, stream)

    def _parts(
        self, file: SourceFile, stream: BinaryIO, separator: str
    ) -> Iterator[tuple[str, str]]:
        """Yield the documents between separators, without the line ends next to a separator."""
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
            # Nothing after the last separator is the end of the file, not an empty document.
            if not (at_end and is_empty(text)):
                yield f"{file.name}:{number}", text
            offset += len(part) + len(mark)
        self.separated += 1


def _split(stream: BinaryIO, mark: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the bytes between marks, and whether they are the last."""
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


def _in_memory(stream: BinaryIO) -> BinaryIO:
    # Parquet is read from its end, but a decompressed stream is not seekable.
    return io.BytesIO(stream.read())
