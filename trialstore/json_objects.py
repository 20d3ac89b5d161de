"""Read and write JSON objects in a storage that other people may write too.

Readers name the fields that they need. An object that is too large, is not JSON, lacks a field or
has a field of the wrong kind raises BrokenRecordError, with its place and value.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from trialstore.errors import InputError
from trialstore.storage import Storage

#: The largest double. JSON allows larger integers, which would overflow in a computation.
MAX_NUMBER = sys.float_info.max
#: Bytes. No JSON of a trial comes near this; a larger object is not read into memory.
MAX_JSON = 2**26


class BrokenRecordError(InputError):
    """A record that cannot be read: it is cut short, overwritten or not what its name says."""


class Kind(NamedTuple):
    """A kind of value: a test, and its name for messages."""

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
    """Read the JSON object under a key.

    Args:
        trial: A storage; usually a trial's directory.
        key: The object's key.
        needs: The fields that it must have, with their kinds if this is a mapping.

    Returns:
        The object, or None if there is none under the key.

    Raises:
        BrokenRecordError: The object is too large, is not a JSON object, lacks a field of `needs`
            or has a value of another kind there.
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
                    f"{place} has {name} {short(value[name])}; it should be {kind.name}"
                )
    return value


def small_object(trial: Storage, key: str) -> bytes:
    """Return the bytes of an object of at most MAX_JSON bytes.

    Raises:
        BrokenRecordError: The object is larger.
        FileNotFoundError: There is none under the key.
    """
    with trial.open(key) as stream:
        data = stream.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise BrokenRecordError(f"{trial.url_of(key)} is larger than {MAX_JSON:,} bytes")
    return data


def short(value: Any) -> str:
    """Return a value as JSON, cut to 60 characters, for an error message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def encode_json(value: Any) -> bytes:
    """Encode a value as indented JSON with sorted keys. NaN and infinity, which JSON lacks, become
    null."""
    return (json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
