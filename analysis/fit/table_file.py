"""Read a table of observations from a text or Parquet file."""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trialstore.errors import InputError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SEPARATOR_NAMES = {";": "semicolons", ",": "commas", "\t": "tabs"}


def read_table(path: Path) -> pd.DataFrame:
    """Read a table from a .csv, .tsv or .parquet file.

    Args:
        path: a file whose name ends in .csv, .tsv, .parquet or .pq. Text is UTF-8, with or without
            a byte-order mark, and begins with a row of column names.

    Raises:
        InputError: the file is missing, unreadable, empty, of another kind, or has a column twice.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; name one .csv, .tsv or .parquet file")
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    kind = path.suffix.lower()
    try:
        if kind in _SEPARATORS:
            return _read_text(path, _SEPARATORS[kind])
        if kind in (".parquet", ".pq"):
            check_headers(path, pq.read_schema(path).names)
            # pandas metadata in the file could turn a column into the index.
            frame: pd.DataFrame = pq.read_table(path).to_pandas(ignore_metadata=True)
            return frame
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (pa.ArrowInvalid, pd.errors.ParserError, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise InputError(f"{path} is not a table: {reason}") from error
    raise InputError(f"{path} is not a .csv, .tsv or .parquet file")


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next((row for row in csv.reader(file, delimiter=separator) if row), [])
    if not any(name.strip() for name in header):
        raise InputError(f"{path} is empty: its first row must hold column names")
    for other, kind in _SEPARATOR_NAMES.items():
        if len(header) == 1 and other != separator and other in header[0]:
            raise InputError(
                f"{path} separates its columns by {kind}; a {path.suffix} file uses "
                f"{_SEPARATOR_NAMES[separator]}"
            )
    check_headers(path, header)
    with warnings.catch_warnings():
        # pandas drops the fields beyond the header with only a warning.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(
                path, sep=separator, encoding="utf-8-sig", index_col=False, low_memory=False
            )
        except pd.errors.ParserWarning as error:
            raise InputError(f"{path}: a row has more fields than the header") from error


def check_headers(table: Path | str, names: Sequence[str]) -> None:
    """Raise InputError if a name stands twice. `table` names the table in the message."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError(f"{table} has column {twice[0]!r} more than once; rename one of them")
