"""Reading a sweep file: one strict YAML file that says what is trained, measured and compared.

A sweep is a base (model, training, evaluation, spectra) and a grid of axes over it. Any scalar of
the base can be an axis; it then stands on the grid only. An unknown key, a wrong type or a value
out of range is an `InputError` that names the file, the line, the key, the value and what is
allowed.
"""

import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from analysis.errors import InputError
from orchestrator import strict_yaml
from orchestrator.sweep_config import (
    AXES,
    AXIS_OF,
    GRID_ONLY,
    SECTIONS,
    SweepConfig,
    axis_name,
    axis_type,
    keys_of,
)

__all__ = ["SweepConfig", "load_sweep", "parse_sweep"]

#: The section of a resolved sweep.yaml that says what the file came to. Not read back.
RESOLVED = "resolved"


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep file, or the resolved sweep.yaml of a sweep's directory.

    `overrides` are `key=value`, the value in YAML, the key dotted (`training.steps`) or bare
    where only one place has it; an override takes the place of what the file says of that key,
    be it on the grid or in its section. Raises InputError.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"sweep file {str(path)!r} cannot be read: {error.strerror}; "
            "give the path of a YAML file"
        ) from error
    return parse_sweep(text, str(path), overrides)


def parse_sweep(text: str | bytes, place: str, overrides: Sequence[str] = ()) -> SweepConfig:
    """`load_sweep` of text; `place` is what errors call it."""
    document = strict_yaml.read(text, place)
    origins = {path: f"line {line}" for path, line in document.lines.items()}
    file = _File(place, document.content, origins)
    _check_sections(file)
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        _override(file, override, given)
    _spread_grid(file)
    try:
        return SweepConfig.model_validate(file.content)
    except ValidationError as error:
        raise _explained(file, error) from error


@dataclass(frozen=True)
class _File:
    """A sweep file on its way to a config: plain values, and where each came from."""

    place: str
    content: dict[str, Any]
    origins: dict[strict_yaml.Path, str]

    def error(self, path: strict_yaml.Path, what: str) -> InputError:
        origin = self.origins.get(path) or self.origins.get(path[:-1])
        where = f"{self.place}, {origin}" if origin else self.place
        key = ".".join(map(str, path))
        return InputError(f"{where}: {key}: {what}" if key else f"{where}: {what}")


def _check_sections(file: _File) -> None:
    """The file is a mapping of known sections, each of them a mapping where it must be."""
    if not isinstance(file.content, dict):
        raise InputError(
            f"{file.place}: a sweep file is a mapping of keys such as name, model, grid and "
            f"training, not {_short(file.content)}"
        )
    known = list(SweepConfig.model_fields)
    file.content.pop(RESOLVED, None)
    for key, value in file.content.items():
        if key not in known:
            hint = _elsewhere(key) or _nearest(key, known)
            raise file.error((key,), f"unknown key; {hint}")
        if isinstance(value, dict):
            file.content[key] = dict(value)  # an alias is the same dict; overrides change one
        elif key in SECTIONS or key == "grid":
            inside = keys_of(key) if key in SECTIONS else [*GRID_ONLY, *AXES]
            raise file.error(
                (key,), f"{_short(value)} is not a mapping; its keys are {', '.join(inside)}"
            )


def _override(file: _File, text: str, given: dict[tuple[str, ...], str]) -> None:
    """Put one `key=value` into the file's content; `given` are the keys of those before."""
    place = f"--set {text}"
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{place}: write key=value, such as training.steps=100")
    if not value.strip():
        raise InputError(f"{place}: the value is missing; write key=value, or key=null for none")
    value = strict_yaml.read(value, place).content
    path = _override_path(file, key.strip(), place)
    # An axis and the key of a section that it varies are one and the same.
    same = AXES.get(path[1], path) if path[0] == "grid" and len(path) > 1 else path
    if same in given:
        raise InputError(f"{place}: the same key as --set {given[same]}; remove one")
    given[same] = text
    grid = file.content.setdefault("grid", {})
    if len(path) == 1:
        file.content[path[0]] = value
    elif path[0] == "grid":
        axis = path[1]
        _take_off_grid(grid, axis)
        if axis in ("width_multiplier", "ffn_width"):  # two ways of saying D
            _take_off_grid(grid, "ffn_width" if axis == "width_multiplier" else "width_multiplier")
        if axis in AXES:
            section, field = AXES[axis]
            file.content.get(section, {}).pop(field, None)
        grid[axis] = value
    else:
        _take_off_grid(grid, AXIS_OF.get((path[0], path[1])))
        file.content.setdefault(path[0], {})[path[1]] = value
    for known in [known for known in file.origins if known[: len(path)] == path]:
        del file.origins[known]
    file.origins[path] = place
    _check_sections(file)


def _take_off_grid(grid: dict[str, Any], axis: str | None) -> None:
    for key in [key for key in grid if axis is not None and axis_name(key) == axis]:
        del grid[key]


def _override_path(file: _File, key: str, place: str) -> tuple[str, ...]:
    """Where an override's key lies: (key,), (section, key) or ("grid", axis)."""
    section, _, rest = key.partition(".")
    if not rest:
        if key in SweepConfig.model_fields:
            return (key,)
        axis = axis_name(key)
        if axis in GRID_ONLY or (axis and axis in map(axis_name, file.content.get("grid", {}))):
            return ("grid", axis)
        homes = [name for name in SECTIONS if key in keys_of(name)]
        if len(homes) == 1:
            return (homes[0], key)
        if homes:
            ways = " or ".join(f"{home}.{key}" for home in homes)
            raise InputError(f"{place}: the key {key} is in several places; write {ways}")
        bare = [name for section in SECTIONS for name in keys_of(section)]
        known = list(dict.fromkeys([*SweepConfig.model_fields, *GRID_ONLY, *bare]))
    elif section == "grid":
        axis = axis_name(rest)
        if axis:
            return ("grid", axis)
        known = [f"grid.{name}" for name in (*GRID_ONLY, *AXES)]
    elif section in SECTIONS:
        if rest in keys_of(section):
            return (section, rest)
        known = [f"{section}.{name}" for name in keys_of(section)]
    else:
        known = [f"{name}.{field}" for name in SECTIONS for field in keys_of(name)]
    hint = (
        _nearest(key, known) if section in (*SECTIONS, "grid") else _nearest_or_section(key, known)
    )
    raise InputError(f"{place}: unknown key {key}; {hint}")


def _spread_grid(file: _File) -> None:
    """Check the axes; put canonical names and tuples on the grid, first values in sections."""
    grid = file.content.get("grid", {})
    axes: dict[str, tuple[Any, ...]] = {}
    for key, values in grid.items():
        axis = axis_name(key)
        if axis is None:
            raise file.error(("grid", key), _not_an_axis(key))
        if axis in axes:
            raise file.error(("grid", key), f"the axis {axis} stands on the grid twice; remove one")
        axes[axis] = tuple(_axis_values(file, key, axis, values))
        if axis in AXES:
            section, field = AXES[axis]
            base = file.content.setdefault(section, {})
            if field in base:
                raise file.error(
                    ("grid", key),
                    f"{section}.{field} is also given, as {_short(base[field])}; remove one",
                )
            base[field] = axes[axis][0]
    named = [name for name in ("width_multiplier", "ffn_width") if name in axes]
    if len(named) != 1:
        which = "both are given" if named else "neither is given"
        raise file.error(
            ("grid",),
            f"needs exactly one of width_multiplier (D = multiplier x d_model) and ffn_width "
            f"(D itself): {which}",
        )
    file.content["grid"] = axes if "seed" in axes else {**axes, "seed": (0,)}


def _not_an_axis(key: object) -> str:
    section, _, field = str(key).rpartition(".")
    if key in ("sites", "spectra.sites"):
        return "is a list and cannot be an axis; give spectra.sites"
    for name in ("corpus", "tokenizer", "resources", "analysis"):
        if field in keys_of(name) and section in ("", name):
            return f"{name}.{field} is one for the whole sweep and cannot be an axis"
    shared = [axis for axis in AXES if axis.endswith(f".{key}")]
    if shared:
        return f"is in several places; write {' or '.join(shared)}"
    return f"unknown axis; {_nearest(key, [*GRID_ONLY, *AXES])}"


def _axis_values(file: _File, key: str, axis: str, values: Any) -> Iterator[Any]:
    """The values of an axis, each validated as its section would; a scalar is one value."""
    listed = values if isinstance(values, list) else [values]
    if not listed:
        raise file.error(("grid", key), "has no values; give at least one, or remove the axis")
    for index, value in enumerate(listed):
        try:
            yield axis_type(axis).validate_python(value, strict=True)
        except ValidationError as error:
            path = ("grid", key, index) if isinstance(values, list) else ("grid", key)
            # Where one number or a list of them may stand, the errors of the list come last.
            told = error.errors()[-1 if isinstance(value, list) else 0]
            raise file.error(path, _wrong(told)) from error


# --- saying what is wrong ------------------------------------------------------------------


def _explained(file: _File, error: ValidationError) -> InputError:
    """One line per thing that pydantic found wrong, the first five."""
    items = error.errors()
    # A list whose items are wrong is not also too short: pydantic counts the right ones only.
    wrong_within = {item["loc"][:-1] for item in items if item["loc"]}
    told = [i for i in items if i["type"] != "too_short" or i["loc"] not in wrong_within]
    lines = [str(_explained_one(file, dict(item))) for item in told]
    more = [f"and {len(lines) - 5} more"] if len(lines) > 5 else []
    return InputError("\n".join(lines[:5] + more))


def _explained_one(file: _File, item: dict[str, Any]) -> InputError:
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
        return file.error(path, f"unknown key; {_elsewhere(key) or _nearest(key, known)}")
    if item["type"] == "missing":
        return file.error(
            path, f"is missing; give it, or the axis grid.{axis}" if axis else "is missing"
        )
    if item["type"] in ("union_tag_not_found", "union_tag_invalid"):
        kinds = [str(model.model_fields["kind"].default) for model in SECTIONS[section]]
        given = file.content[section].get("kind")
        return file.error((section, "kind"), f"{_short(given)} should be one of {', '.join(kinds)}")
    several = isinstance(item["input"], list) and axis
    hint = f"; for several values use grid.{axis}" if several else ""
    return file.error(path, _wrong(item) + hint)


def _wrong(item: Any) -> str:
    """A pydantic error as `VALUE should be ...`."""
    message = str(item["msg"])
    if item["type"] == "value_error":
        return message.removeprefix("Value error, ")
    message = message.replace("a valid tuple", "a list").replace(" after validation", "")
    return f"{_short(item['input'])} {re.sub(r'^[A-Z][a-z]+ (?=should)', '', message)}"


def _short(value: object) -> str:
    return "nothing" if value is None else reprlib.repr(value)


def _nearest(key: object, known: Sequence[str]) -> str:
    return _did_you_mean(key, known) or f"known are {', '.join(known)}"


def _nearest_or_section(key: object, known: Sequence[str]) -> str:
    """As `_nearest`, where all that is known is too much for a message."""
    return _did_you_mean(key, known) or (
        f"write SECTION.KEY, such as training.steps; sections are {', '.join(SECTIONS)} and grid"
    )


def _did_you_mean(key: object, known: Sequence[str]) -> str:
    """Known keys that are spelt nearly so or have these initials: lr is learning_rate."""
    section, _, name = str(key).rpartition(".")
    short = [one for one in known if _initials(one) == name and one.startswith(section)]
    close = short or get_close_matches(str(key), known, 3, 0.6)
    return f"did you mean {' or '.join(close)}?" if close else ""


def _initials(key: str) -> str:
    words = key.rpartition(".")[2].split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def _elsewhere(key: object) -> str:
    """Where a key that is unknown here belongs, if anywhere."""
    homes = [f"{section}.{key}" for section in SECTIONS if key in keys_of(section)]
    homes += [f"grid.{key}"] if key in GRID_ONLY else []
    homes += [str(key)] if key in SweepConfig.model_fields else []
    return f"it belongs at {' or '.join(homes)}" if homes else ""
