"""Shorten texts to MLflow's limits: cut after a whole element, and say how much is missing."""

import json
from collections.abc import Iterator, Mapping

#: Bytes of JSON in one call. MLflow's limit is 1e6 with names and punctuation
#: (mlflow.utils.validation).
CALL_BYTES = 900_000
#: Separators of elements, coarsest first, and the name of such elements.
ELEMENTS = (("\n", "lines"), (", ", "values"))


def storable(text: str, length: int) -> str:
    """Shorten a text to `length` characters, and replace surrogates and NUL.

    Databases reject these with errors that look as if the server did not answer.
    """
    return fitted(text, length).encode(errors="replace").decode().replace("\0", "?")


def fitted(text: str, length: int) -> str:
    """Shorten a text to `length` characters at the end of a line or value.

    Example:
        >>> fitted("1, 2, 3, " + "4" * 60, 45)
        '1, 2, 3, ... (1 more values are left out)'
    """
    if len(text) <= length:
        return text
    for between, what in ELEMENTS:
        elements = text.split(between)
        longest = f"{between}... ({len(elements):,} more {what} are left out)"
        kept = text[: length - len(longest) + len(between)].split(between)[:-1]
        if kept:
            left = len(elements) - len(kept)
            return between.join([*kept, f"... ({left:,} more {what} are left out)"])
    mark = f"... ({len(text):,} characters in all)"
    return text[: length - len(mark)] + mark


def calls(texts: Mapping[str, str], most: int) -> Iterator[dict[str, str]]:
    """Divide texts into calls of at most `most` texts and `CALL_BYTES` bytes."""
    call: dict[str, str] = {}
    size = 0
    for key, text in texts.items():
        nbytes = len(json.dumps(key)) + len(json.dumps(text))
        if call and (len(call) == most or size + nbytes > CALL_BYTES):
            yield call
            call, size = {}, 0
        call[key] = text
        size += nbytes
    if call:
        yield call
