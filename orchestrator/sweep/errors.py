"""Error messages about a sweep file: the file, the line, the key, the value and the way out."""

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from orchestrator.sweep import strict_yaml
from orchestrator.sweep.config import (
    AXIS_OF,
    GRID_ONLY,
    OLD_KEYS,
    SECTIONS,
    SweepConfig,
    keys_of,
)
from trialstore.errors import InputError


@dataclass(frozen=True)
class File:
    """A sweep file while it is being read.

    Attributes:
        place: Name of the file in messages.
        content: Plain values by section and key. Reading changes them in place.
        origins: For each key, the line or the `--set` that gave its value.
        written: Keys of today -> the older name that the user wrote, such as match -> hold.
    """

    place: str
    content: dict[str, Any]
    origins: dict[strict_yaml.Path, str]
    written: dict[str, str] = field(default_factory=dict)

    def error(self, path: strict_yaml.Path, what: str) -> InputError:
        """Make an InputError about a key, with its line or `--set` and the user's name for it."""
        origin = self.origins.get(path) or self.origins.get(path[:-1])
        where = f"{self.place}, {origin}" if origin else self.place
        named = (self.written.get(str(path[0]), path[0]), *path[1:]) if path else ()
        key = ".".join(map(str, named))
        return InputError(f"{where}: {key}: {what}" if key else f"{where}: {what}")


def explained(file: File, error: ValidationError) -> InputError:
    """Turn the errors of pydantic into one InputError, with a line for each of the first five."""
    items = error.errors()
    # Pydantic counts only the valid items of a list, and calls a list of invalid ones too short.
    wrong_within = {item["loc"][:-1] for item in items if item["loc"]}
    told = [i for i in items if i["type"] != "too_short" or i["loc"] not in wrong_within]
    lines = [str(_explained_one(file, dict(item))) for item in told]
    more = [f"and {len(lines) - 5} more"] if len(lines) > 5 else []
    return InputError("\n".join(lines[:5] + more))


def _explained_one(file: File, item: dict[str, Any]) -> InputError:
    path = tuple(item["loc"])
    if len(path) > 1 and path[0] in ("corpus", "tokenizer"):
        path = (path[0], *path[2:])  # pydantic names the kind between section and key
    section, key = str(path[0]) if path else "", path[-1] if path else ""
    axis = AXIS_OF.get((section, str(key)))
    if item["type"] == "extra_forbidden":
        kind = file.content[section].get("kind")
        known = keys_of(section, kind)
        if key in keys_of(section):
            return file.error(path, f"kind {kind} has no such key; known are {', '.join(known)}")
        return file.error(path, f"unknown key; {elsewhere(key) or nearest(key, known)}")
    if item["type"] == "missing":
        return file.error(
            path, f"is missing; give it, or the axis grid.{axis}" if axis else "is missing"
        )
    if item["type"] in ("union_tag_not_found", "union_tag_invalid"):
        kinds = ", ".join(str(model.model_fields["kind"].default) for model in SECTIONS[section])
        given = file.content[section].get("kind")
        if given is None:
            return file.error((section, "kind"), f"is missing; give one of {kinds}")
        return file.error((section, "kind"), f"{short(given)} should be one of {kinds}")
    several = isinstance(item["input"], list) and axis
    hint = f"; for several values use grid.{axis}" if several else ""
    return file.error(path, wrong(item) + hint)


def wrong(item: Any) -> str:
    """Phrase one error of pydantic as `VALUE should be ...`."""
    message = str(item["msg"])
    if item["type"] == "value_error":
        return message.removeprefix("Value error, ")
    message = message.replace("a valid tuple", "a list").replace(" after validation", "")
    return f"{short(item['input'])} {re.sub(r'^[A-Z][a-z]+ (?=should)', '', message)}"


def short(value: object) -> str:
    """Return a value as messages show it, cut if it is long."""
    return "null" if value is None else reprlib.repr(value)


def nearest(key: object, known: Sequence[str]) -> str:
    """Return a hint for an unknown key: similar known keys, or else all known keys."""
    return _did_you_mean(key, known) or f"known are {', '.join(known)}"


def nearest_or_section(key: object, known: Sequence[str]) -> str:
    """Return a hint for an unknown key: similar known keys, or else how to write a key."""
    return _did_you_mean(key, known) or (
        f"write SECTION.KEY, such as training.steps; sections are {', '.join(SECTIONS)} and grid"
    )


def _did_you_mean(key: object, known: Sequence[str]) -> str:
    """Known keys with a similar spelling or these initials: lr is learning_rate."""
    section, _, name = str(key).rpartition(".")
    initials = [one for one in known if _initials(one) == name and one.startswith(section)]
    close = initials or get_close_matches(str(key), known, 3, 0.6)
    return f"did you mean {' or '.join(close)}?" if close else ""


def _initials(key: str) -> str:
    words = key.rpartition(".")[2].split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def elsewhere(key: object) -> str:
    """Return a hint for a key in the wrong section: where it belongs; empty if it is unknown."""
    homes = [f"{section}.{key}" for section in SECTIONS if key in keys_of(section)]
    homes += [f"grid.{key}"] if key in GRID_ONLY else []
    top = OLD_KEYS.get(str(key), str(key))
    homes += [top] if top in SweepConfig.model_fields else []
    return f"it belongs at {' or '.join(homes)}" if homes else ""
