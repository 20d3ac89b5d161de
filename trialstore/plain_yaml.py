"""YAML that this project wrote, read back fast, and safely where somebody else has written it."""

import re
from typing import Any

import yaml

from trialstore.errors import InputError

#: libyaml, where present, reads ten times faster; it needs the depth checked first, for it falls
#: over what is nested too deeply.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: What we write is ten deep, and has some forty values a trial.
DEEPEST = 100
MOST_VALUES = 10_000_000

_BRACKETS = re.compile(rb"[\[{]|[\]}]")
#: What opens a block: indentation, and the marks of lists and keys behind one another.
_LEADING = re.compile(rb"^[ \t\-?:]+", re.MULTILINE)


def load_plain_yaml(data: bytes, place: str) -> Any:
    """The one document in `data`, as dictionaries, lists and scalars.

    Raises InputError for anything but YAML, for what is nested more than a hundred deep or holds
    itself, and for a few aliases that stand for millions of values.
    """
    if _depth(data) > DEEPEST:
        raise InputError(f"{place}: nested too deeply to be read")
    try:
        content = yaml.load(data, Loader=_LOADER)
        values = count_values(content)
    except RecursionError as error:  # aliases nest what the text does not
        raise InputError(f"{place}: nested too deeply to be read") from error
    # PyYAML lets through what int(), float() and date() make of an odd scalar.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{place} is not YAML: {reason}") from error
    if values > MOST_VALUES:
        raise InputError(f"{place}: its aliases stand for more than {MOST_VALUES:,} values")
    return content


def count_values(content: Any) -> float:
    """How many values there are where each is written out as often as it is referred to;
    infinitely many in what holds itself."""
    known: dict[int, float] = {}

    def count(value: Any) -> float:
        if not isinstance(value, dict | list | set | tuple):
            return 1
        if id(value) not in known:
            known[id(value)] = float("inf")  # until it is known not to hold itself
            inside = value.values() if isinstance(value, dict) else value
            known[id(value)] = 1 + sum(map(count, inside))
        return known[id(value)]

    return count(content)


def _depth(data: bytes) -> int:
    """At least how deep the document is nested; more where text has brackets in it."""
    depth = deepest = 0
    for mark in _BRACKETS.findall(data):
        depth += 1 if mark in b"[{" else -1
        deepest = max(deepest, depth)
    block = max((len(found) for found in _LEADING.findall(data)), default=0)
    return deepest + block
