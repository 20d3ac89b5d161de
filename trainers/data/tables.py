"""Read the text column of a table: JSON lines, CSV or Parquet.

A row without text is refused, or skipped and counted by its reason, as the user chose. A file that
is not of its kind, or names a column twice, is always refused.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from trainers.data.documents import Omissions
from trialstore.errors import InputError

_LONGEST_CSV_FIELD = 2**31 - 1  # the largest C long on every platform
_ROWS = 1024  # Parquet rows decoded per step

Texts = Iterator[tuple[str, str]]


class BadRowError(Exception):
    """A row without text: `reason` in a few words, and a message for a user who refuses it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def refused(self) -> InputError:
        """Return the InputError to raise, which also names the option to skip such rows."""
        return InputError(f"{self}; or set on_bad_row: skip to leave out and count such rows")


@dataclass(frozen=True)
class Rows:
    """The table being read, and the treatment of bad rows.

    Attributes:
        name: the file's name in document names.
        place: the file's name in messages.
        suffix: the file's kind and compression.
        column: the text column.
        skip: whether bad rows are skipped and counted.
        omissions: receives the skipped rows.
    """

    name: str
    place: str
    suffix: str
    column: str
    skip: bool
    omissions: Omissions

    def text(self, value: object, number: int, place: str) -> Texts:
        """Yield the row's name and text if the value is text; handle it as a bad row otherwise."""
        try:
            yield f"{self.name}:{number}", checked_text(value, place, self.column)
        except BadRowError as error:
            self.bad(error, number)

    def bad(self, error: BadRowError, number: int) -> None:
        """Count a bad row if such rows are skipped.

        Raises:
            InputError: bad rows are refused.
        """
        if not self.skip:
            raise error.refused() from error
        self.omissions.add(error.reason, self.suffix, "rows", f"{self.name}:{number}")

    def check_columns(self, names: list[str]) -> None:
        """Check the column names.

        Raises:
            InputError: the text column is missing, or a name occurs twice.
        """
        twice = [name for number, name in enumerate(names) if name in names[:number]]
        if twice:
            raise InputError(
                f"{self.place}: the column {twice[0]!r} occurs more than once; rename one of them"
            )
        if self.column not in names:
            raise InputError(no_column(self.place, self.column, names))


def read_jsonl(rows: Rows, stream: BinaryIO) -> Texts:
    """Yield name and text of every line that is not blank.

    Raises:
        InputError: a line is bad, and bad rows are refused.
    """
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
    """Parses JSON objects and detects duplicate keys."""

    def __init__(self) -> None:
        self._twice = False
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def read(self, line: str, place: str) -> dict[str, Any]:
        try:
            row = self._decoder.decode(line)
        except ValueError as error:
            raise BadRowError("not JSON", f"{place}: not JSON: {error}; repair it") from error
        except RecursionError as error:
            message = f"{place}: JSON nested too deeply to be read; remove the line"
            raise BadRowError("not JSON", message) from error
        if not isinstance(row, dict):
            raise BadRowError(
                "not an object",
                f"{place}: the line holds {type(row).__name__}; it must be a JSON object",
            )
        if self._twice:
            raise BadRowError(
                "a key twice",
                f"{place}: the key {self._named_twice!r} occurs more than once in the JSON "
                "object; rename one of them",
            )
        return row

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Inner objects come first, so the last call is for the object of the whole line.
        row = dict(pairs)
        self._twice = len(row) != len(pairs)
        if self._twice:
            names = [name for name, _ in pairs]
            self._named_twice = next(name for name in names if names.count(name) > 1)
        return row


def read_csv(rows: Rows, stream: BinaryIO) -> Texts:
    """Yield name and text of every row after the header, except blank lines.

    Raises:
        InputError: the file is not CSV, or a row is bad and bad rows are refused.
    """
    csv.field_size_limit(_LONGEST_CSV_FIELD)  # the default, 128 KiB, is too short for an article
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
                    f"{place}{missing}: the row has {len(cells)} cells, but the header has "
                    f"{len(header)}; quote text that holds commas or line ends",
                ),
                number,
            )
    except csv.Error as error:
        raise InputError(
            f"{rows.place}:{table.line_num}: not CSV: {error}; repair or convert the file"
        ) from error


def read_parquet(rows: Rows, stream: BinaryIO) -> Texts:
    """Yield name and text of every row; `stream` must be seekable.

    Raises:
        InputError: the file is not Parquet, or a row is bad and bad rows are refused.
    """
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
                        message = (
                            f"{place}: column {rows.column!r} is not UTF-8; write the file again"
                        )
                        rows.bad(BadRowError("not UTF-8", message), number)
                    else:
                        yield from rows.text(text, number, place)
                    number += 1
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{rows.place}: not Parquet: {error}; write or download the file again"
        ) from error


class UndecodedError(InputError):
    """Bytes that are not UTF-8."""


def decoded(content: bytes, place: str, offset: int) -> str:
    """Decode UTF-8 bytes; at the start of a file, drop the byte order mark.

    Args:
        content: bytes of a file.
        place: the file's name in messages.
        offset: where in the file the bytes begin.

    Raises:
        UndecodedError: the bytes are not UTF-8; the message names the byte.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UndecodedError(
            f"{place}: byte {offset + error.start} (0x{content[error.start]:02x}) is not UTF-8; "
            "convert the file, for example with iconv"
        ) from error
    # A byte order mark at the start is not part of the text.
    return text.removeprefix("\ufeff") if offset == 0 else text


def _lines(place: str, stream: BinaryIO) -> Iterator[str]:
    offset = 0
    for line in stream:
        yield decoded(line, place, offset)
        offset += len(line)


def checked_text(value: object, place: str, column: str) -> str:
    """Return the value if it is text that UTF-8 can represent.

    Raises:
        BadRowError: the value is not a string, or holds half a surrogate pair.
    """
    if not isinstance(value, str):
        raise BadRowError(
            "null row" if value is None else "not text",
            f"{place}: column {column!r} holds {type(value).__name__}, not text; set column in "
            "the corpus section to one that holds text",
        )
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
        raise BadRowError(
            "half a surrogate pair",
            f"{place}: column {column!r}: character {error.start} is half a surrogate pair, "
            "which UTF-8 cannot represent; repair or remove the document",
        ) from error
    return value


def no_column(place: str, column: str, names: list[str]) -> str:
    """Return the message for a missing column.

    Args:
        place: The file or dataset that lacks it.
        column: The column that was asked for.
        names: The columns that exist; may be empty.
    """
    return (
        f"{place}: no column {column!r}; its columns are {', '.join(names) or '(none)'}; set "
        "column in the corpus section"
    )
