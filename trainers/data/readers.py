"""Reading one file of text, whatever its kind.

A `.txt`, `.md` or `.py` file is one document; a line of `.jsonl` and a row of `.csv` or `.parquet`
is one, its text in a named column. Tables are streamed; a `.txt` file must fit in memory.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from analysis.errors import InputError
from trainers.data.documents import Document

PROSE = (".txt", ".md")
WHOLE = (*PROSE, ".py")
TABLES = (".jsonl", ".csv", ".parquet")

_LONGEST_CSV_FIELD = 2**31 - 1  # the largest that fits a C long everywhere


@dataclass(frozen=True)
class SourceFile:
    """A file, or a member of a zip: `name` as in the fingerprint, `place` as in messages."""

    name: str
    place: str
    open: Callable[[], BinaryIO]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


def read_file(file: SourceFile, column: str) -> Iterator[Document]:
    """The documents of one file that are not empty. Raises InputError naming file and place."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        if file.suffix in WHOLE:
            texts = iter([(file.name, _read_whole(file))])
        else:
            texts = readers[file.suffix](file, column)
        for name, text in texts:
            if text:
                yield Document(name, text)
    except OSError as error:
        raise InputError(f"{file.place}: cannot be read: {error}") from error


def _read_whole(file: SourceFile) -> str:
    with file.open() as stream:
        return _decode(stream.read(), file.place, 0)


def _read_jsonl(file: SourceFile, column: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(file), start=1):
        if line.isspace():
            continue
        place = f"{file.place}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: not JSON: {error}") from error
        except RecursionError as error:
            raise InputError(f"{place}: JSON nested too deeply to be read") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: a line must be a JSON object, not {type(row).__name__}")
        if column not in row:
            raise _no_column(place, column, list(row))
        yield f"{file.name}:{number}", checked_text(row[column], place, column)


def _read_csv(file: SourceFile, column: str) -> Iterator[tuple[str, str]]:
    csv.field_size_limit(_LONGEST_CSV_FIELD)  # the default, 128 KiB, is less than an article
    rows = csv.DictReader(_lines(file), strict=True)
    try:
        if column not in (rows.fieldnames or ()):
            raise _no_column(file.place, column, list(rows.fieldnames or ()))
        for row in rows:
            place = f"{file.place}:{rows.line_num}"
            yield f"{file.name}:{rows.line_num}", checked_text(row[column], place, column)
    except csv.Error as error:
        raise InputError(f"{file.place}:{rows.line_num}: not CSV: {error}") from error


def _read_parquet(file: SourceFile, column: str) -> Iterator[tuple[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open() as stream, pq.ParquetFile(stream) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise _no_column(file.place, column, names)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0):
                    place = f"{file.place}: row {number}"
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:
                        raise InputError(f"{place}: column {column!r} is not UTF-8") from error
                    yield f"{file.name}:{number}", checked_text(text, place, column)
                    number += 1
    except pa.ArrowInvalid as error:
        raise InputError(f"{file.place}: not Parquet: {error}") from error


def _lines(file: SourceFile) -> Iterator[str]:
    offset = 0
    with file.open() as stream:
        for line in stream:
            yield _decode(line, file.place, offset)
            offset += len(line)


def _decode(content: bytes, place: str, offset: int) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: byte {offset + error.start} (0x{content[error.start]:02x}) is not UTF-8; "
            "convert the file, for example with iconv"
        ) from error
    # A byte order mark says how to read the file and is no part of its text.
    return text.removeprefix("\ufeff") if offset == 0 else text


def checked_text(value: object, place: str, column: str) -> str:
    """The value if it is text that UTF-8 can hold. Raises InputError."""
    if not isinstance(value, str):
        raise InputError(
            f"{place}: column {column!r} holds {type(value).__name__}, not text; "
            "set the corpus's column to one that holds text"
        )
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
        raise InputError(
            f"{place}: column {column!r}: character {error.start} is half a surrogate pair, "
            "which is no text; repair or remove the document"
        ) from error
    return value


def _no_column(place: str, column: str, names: list[str]) -> InputError:
    return InputError(
        f"{place}: no column {column!r}; there are {', '.join(names) or 'none'}; "
        "set the corpus's column"
    )
