"""Texts as MLflow takes them: what is too long is cut after a whole element, and says so."""

import json
from collections.abc import Iterator, Mapping

#: Of one call, in bytes of JSON: MLflow takes less than 1e6 (mlflow.utils.validation), names and
#: punctuation among them.
CALL_BYTES = 900_000
#: What stands between the elements of a text, the widest first, and what they are called.
ELEMENTS = (("\n", "lines"), (", ", "values"))


def storable(text: str, length: int) -> str:
    """At most `length` characters, and without what a database answers to as if it were away:
    half pairs and NUL."""
    return fitted(text, length).encode(errors="replace").decode().replace("\0", "?")


def fitted(text: str, length: int) -> str:
    """The text, or as many of its elements as `length` characters hold with a mark that says how
    many are left out."""
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
    """The texts in calls of at most `most`, none of them larger than MLflow takes."""
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
