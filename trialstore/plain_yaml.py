"""Read YAML that this project wrote: fast, and safe for a file that somebody else has changed."""

import re
from typing import Any

import yaml

from trialstore.errors import InputError

#: libyaml, if present, is ten times faster. It crashes on deep nesting, so the depth is checked
#: first.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: Limits. A file that this project writes is ten deep and has some forty values per trial.
DEEPEST = 100
MOST_VALUES = 10_000_000

_BRACKETS = re.compile(rb"[\[{]|[\]}]")
#: The characters that open a block: indentation, and consecutive marks of lists and keys.
_LEADING = re.compile(rb"^[ \t\-?:]+", re.MULTILINE)


def load_plain_yaml(data: bytes, place: str) -> Any:
    """Parse one YAML document into dictionaries, lists and scalars.

    Args:
        data: The file's bytes.
        place: The file's URL, for messages.

    Raises:
        InputError: The data are not YAML, are nested more than DEEPEST deep, contain themselves,
            or have aliases that expand to more than MOST_VALUES values.
    """
    if _depth(data) > DEEPEST:
        raise InputError(f"{place} is nested more than {DEEPEST} deep")
    try:
        content = yaml.load(data, Loader=_LOADER)
        values = count_values(content)
    except RecursionError as error:  # by aliases, which the text does not show
        raise InputError(f"{place} is nested more than {DEEPEST} deep") from error
    # PyYAML passes on the errors of int(), float() and date() for an odd scalar.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{place} is not YAML: {reason}") from error
    if values > MOST_VALUES:
        raise InputError(f"{place} has aliases that expand to more than {MOST_VALUES:,} values")
    return content


def count_values(content: Any) -> float:
    """Count the values of a document with every alias expanded; infinity if it contains itself."""
    known: dict[int, float] = {}

    def count(value: Any) -> float:
        if not isinstance(value, dict | list | set | tuple):
            return 1
        if id(value) not in known:
            known[id(value)] = float("inf")  # until all values inside are counted
            inside = value.values() if isinstance(value, dict) else value
            known[id(value)] = 1 + sum(map(count, inside))
        return known[id(value)]

    return count(content)


def _depth(data: bytes) -> int:
    """An upper bound on the nesting depth: brackets within text count too."""
    depth = deepest = 0
    for mark in _BRACKETS.findall(data):
        depth += 1 if mark in b"[{" else -1
        deepest = max(deepest, depth)
    block = max((len(found) for found in _LEADING.findall(data)), default=0)
    return deepest + block
