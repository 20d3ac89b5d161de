"""Reading the text column of a table: JSON lines, CSV, or Parquet.

A row that has no text is refused, or skipped and counted by its reason, as the user chose; a file
that cannot be read as what it is, or names a column twice, is refused in any case.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from trainers.data.documents import Omissions
from trialstore.errors import InputError

_LONGEST_CSV_FIELD = 2**31 - 1  # the largest that fits a C long everywhere
_ROWS = 1024  # of Parquet that are decoded at a time

Texts = Iterator[tuple[str, str]]


class BadRowError(Exception):
    """A row without a text: `reason` in a few words, the message for a user who refuses it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def refused(self) -> InputError:
        """The same as an error, with both ways out."""
        return InputError(
            f"{self}; or leave such rows out, counted, with the corpus's on_bad_row: skip"
        )


@dataclass(frozen=True)
class Rows:
    """Where rows are read from, and what becomes of bad ones."""

    name: str
    place: str
    suffix: str
    column: str
    skip: bool
    omissions: Omissions

    def text(self, value: object, number: int, place: str) -> Texts:
        """The row's name and text, where the value is one; nothing where it is skipped."""
        try:
            yield f"{self.name}:{number}", checked_text(value, place, self.column)
        except BadRowError as error:
            self.bad(error, number)

    def bad(self, error: BadRowError, number: int) -> None:
        """Counts a bad row where such are skipped. Raises InputError where they are refused."""
        if not self.skip:
            raise error.refused() from error
        self.omissions.add(error.reason, self.suffix, "rows", f"{self.name}:{number}")

    def check_columns(self, names: list[str]) -> None:
        """Raises InputError where the column is not there, or a name is there twice."""
        twice = [name for number, name in enumerate(names) if name in names[:number]]
        if twice:
            raise InputError(
                f"{self.place}: the column {twice[0]!r} is there more than once, and which of "
                "them is meant cannot be known; rename one"
            )
        if self.column not in names:
            raise InputError(no_column(self.place, self.column, names))


def read_jsonl(rows: Rows, stream: BinaryIO) -> Texts:
    """The text of every line that is not blank."""
    objects = _Objects()
    offset = 0
    for number, line in enumerate(stream, start=1):
        place = f"{rows.place}:{number}"
        begin, offset = offset, offset + len(line)
        try:
            content = decoded(line, rows.place, begin)
            if not content or content.isspace():
                continue
            row = objects.read(content, place)
            if rows.column not in row:
                raise BadRowError("no such column", no_column(place, rows.column, list(row)))
            value = row[rows.column]
        except UndecodedError as error:
            rows.bad(BadRowError("not UTF-8", str(error)), number)
        except BadRowError as error:
            rows.bad(error, number)
        else:
            yield from rows.text(value, number, place)


class _Objects:
    """Reads JSON objects, and notices keys that stand twice in one."""

    def __init__(self) -> None:
        self._twice = False
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def read(self, line: str, place: str) -> dict[str, Any]:
        try:
            row = self._decoder.decode(line)
        except ValueError as error:
            raise BadRowError("not JSON", f"{place}: not JSON: {error}") from error
        except RecursionError as error:
            raise BadRowError("not JSON", f"{place}: JSON nested too deeply to be read") from error
        if not isinstance(row, dict):
            raise BadRowError(
                "not an object",
                f"{place}: a line must be a JSON object, not {type(row).__name__}",
            )
        if self._twice:
            raise BadRowError(
                "a key twice",
                f"{place}: a key of the JSON object is there more than once, and which of them "
                f"is meant cannot be known: {self._named_twice}; rename one",
            )
        return row

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Called for inner objects first: after a line, it is the line's own that was last seen.
        row = dict(pairs)
        self._twice = len(row) != len(pairs)
        if self._twice:
            names = [name for name, _ in pairs]
            self._named_twice = next(name for name in names if names.count(name) > 1)
        return row


def read_csv(rows: Rows, stream: BinaryIO) -> Texts:
    """The text of every row after the header; blank lines are no rows."""
    csv.field_size_limit(_LONGEST_CSV_FIELD)  # the default, 128 KiB, is less than an article
    table = csv.reader(_lines(rows.place, stream), strict=True)
    try:
        header = next(table, [])
        rows.check_columns(header)
        at = header.index(rows.column)
        for cells in table:
            if not cells:
                continue
            number, place = table.line_num, f"{rows.place}:{table.line_num}"
            if len(cells) == len(header):
                yield from rows.text(cells[at], number, place)
                continue
            few = "too few" if len(cells) < len(header) else "too many"
            missing = f": column {rows.column!r} holds NoneType, not text" * (len(cells) <= at)
            rows.bad(
                BadRowError(
                    f"{few} cells",
                    f"{place}{missing}: the row has {len(cells)} cells, and the header "
                    f"{len(header)}; put text that holds commas or line ends in quotes",
                ),
                number,
            )
    except csv.Error as error:
        raise InputError(f"{rows.place}:{table.line_num}: not CSV: {error}") from error


def read_parquet(rows: Rows, stream: BinaryIO) -> Texts:
    """The text of every row; `stream` can be read from any place."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(stream) as table:
            rows.check_columns(table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(batch_size=_ROWS, columns=[rows.column]):
                for value in batch.column(0):
                    place = f"{rows.place}: row {number}"
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError:
                        message = f"{place}: column {rows.column!r} is not UTF-8"
                        rows.bad(BadRowError("not UTF-8", message), number)
                    else:
                        yield from rows.text(text, number, place)
                    number += 1
    except pa.ArrowInvalid as error:
        raise InputError(f"{rows.place}: not Parquet: {error}") from error


class UndecodedError(InputError):
    """Bytes that are not UTF-8."""


def decoded(content: bytes, place: str, offset: int) -> str:
    """The text of bytes that begin at an offset of a file. Raises UndecodedError."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UndecodedError(
            f"{place}: byte {offset + error.start} (0x{content[error.start]:02x}) is not UTF-8; "
            "convert the file, for example with iconv"
        ) from error
    # A byte order mark says how to read the file and is no part of its text.
    return text.removeprefix("\ufeff") if offset == 0 else text


def _lines(place: str, stream: BinaryIO) -> Iterator[str]:
    offset = 0
    for line in stream:
        yield decoded(line, place, offset)
        offset += len(line)


def checked_text(value: object, place: str, column: str) -> str:
    """The value if it is text that UTF-8 can hold. Raises BadRowError."""
    if not isinstance(value, str):
        raise BadRowError(
            "null row" if value is None else "not text",
            f"{place}: column {column!r} holds {type(value).__name__}, not text; "
            "set the corpus's column to one that holds text",
        )
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
        raise BadRowError(
            "half a surrogate pair",
            f"{place}: column {column!r}: character {error.start} is half a surrogate pair, "
            "which is no text; repair or remove the document",
        ) from error
    return value


def no_column(place: str, column: str, names: list[str]) -> str:
    """Says that a column is not there, and which are."""
    return (
        f"{place}: no column {column!r}; there are {', '.join(names) or 'none'}; "
        "set the corpus's column"
    )
