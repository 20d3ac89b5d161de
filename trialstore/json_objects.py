"""JSON objects in a storage that may be anybody's to write: read within limits, by what they need.

What is no JSON object, or says something of another kind than it should, is a broken record with
its place and value, never a surprise further on.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from trialstore.errors import InputError
from trialstore.storage import Storage

#: The largest double: an integer beyond it is no number that anything can be computed with.
MAX_NUMBER = sys.float_info.max
#: No JSON of a sweep's trials comes near this, in bytes; a larger one is not taken into memory.
MAX_JSON = 2**26


class BrokenRecordError(InputError):
    """A record that nobody can read: cut short, overwritten, or not what its name says."""


class Kind(NamedTuple):
    """What a value of a record must be. A storage may be anybody's to write."""

    name: str
    holds: Callable[[Any], bool]


COUNT = Kind("a count", lambda value: type(value) is int and 0 <= value < 2**63)
NUMBER = Kind(
    "a number or null",
    lambda value: value is None or (type(value) in (int, float) and abs(value) <= MAX_NUMBER),
)
TEXT = Kind("a text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def get_json(
    trial: Storage, key: str, needs: Iterable[str] | Mapping[str, Kind] = ()
) -> dict[str, Any] | None:
    """The JSON object under a key, or None where there is none.

    Raises BrokenRecordError for anything that is no JSON object, or lacks a key of `needs`, or
    has something else than its kind there.
    """
    place = trial.url_of(key)
    try:
        value = json.loads(small_object(trial, key))
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise BrokenRecordError(f"{place} is a folder and should be a file") from error
    except BrokenRecordError:
        raise
    except (ValueError, RecursionError) as error:
        raise BrokenRecordError(f"{place} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BrokenRecordError(f"{place} is not a JSON object")
    missing = [name for name in needs if name not in value]
    if missing:
        raise BrokenRecordError(f"{place} lacks {', '.join(missing)}")
    if isinstance(needs, Mapping):
        for name, kind in needs.items():
            if not kind.holds(value[name]):
                raise BrokenRecordError(
                    f"{place} says {name} {short(value[name])}; it should be {kind.name}"
                )
    return value


def small_object(trial: Storage, key: str) -> bytes:
    """The bytes of an object that holds JSON. Raises BrokenRecordError for one that is too large,
    and FileNotFoundError."""
    with trial.open(key) as stream:
        data = stream.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise BrokenRecordError(f"{trial.url_of(key)} is larger than {MAX_JSON:,} bytes")
    return data


def short(value: Any) -> str:
    """A value as an error message has room for."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def encode_json(value: Any) -> bytes:
    """Indented, sorted JSON; NaN and infinity become null, for JSON has neither."""
    return (json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
