"""Read a sweep file: one strict YAML file with the models, training, measurements and grid.

A sweep is a base (model, training, evaluation, spectra), a grid of axes over it, and overrides of
the base for some cells of the grid. Any scalar of the base can be an axis; it is then given on the
grid only. An unknown key, a wrong type or a value out of range raises an `InputError` that names
the file, the line, the key, the value and the allowed values.
"""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.sweep import strict_yaml
from orchestrator.sweep.config import (
    AXES,
    AXIS_OF,
    GRID_ONLY,
    OLD_KEYS,
    SECTIONS,
    SweepConfig,
    axis_name,
    axis_type,
    keys_of,
)
from orchestrator.sweep.errors import (
    File,
    elsewhere,
    explained,
    nearest,
    nearest_or_section,
    short,
    wrong,
)
from orchestrator.sweep.overrides import check_overrides, read_overrides
from orchestrator.sweep.paths import resolved
from trialstore.errors import InputError

#: Environment variable with the storage of commands that are given no `--storage`.
STORAGE_VARIABLE = "WIDTHLAB_STORAGE"
#: The storage where neither says one: a folder of the working directory.
DEFAULT_STORAGE = "widthlab-runs"

__all__ = ["SweepConfig", "load_sweep", "parse_sweep"]

#: Section of a resolved sweep.yaml with the trials that the file expands to. Not read back.
RESOLVED = "resolved"
#: Most cells of a grid. Planning thousands takes seconds.
MOST_CELLS = 20_000
#: Keys that exclude each other: `--set` of one removes the other.
OTHER_WAY = {
    "width_multiplier": "ffn_width",
    "ffn_width": "width_multiplier",
    "warmup_steps": "warmup_fraction",
    "warmup_fraction": "warmup_steps",
}


def load_sweep(
    path: str | Path, settings: Sequence[str] = (), *, as_typed: bool = False
) -> SweepConfig:
    """Read a sweep file, or the resolved sweep.yaml of a sweep's directory.

    Args:
        path: The YAML file.
        settings: `key=value` strings, the value in YAML, the key dotted (`training.steps`) or bare
            if only one section has it. A setting replaces the file's value of that key, on the
            grid and in its section.
        as_typed: Leave relative paths as they are. By default those of the file become absolute
            from the file's folder, and those of `settings` from the current folder.

    Raises:
        InputError: The file cannot be read, or something in it is wrong.

    Example:
        >>> load_sweep("orchestrator/sweeps/tiny.yaml", ["steps=40"]).training.steps
        40
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"sweep file {str(path)!r} cannot be read: {error.strerror}; "
            "give the path of a YAML file"
        ) from error
    folder = None if as_typed else Path(path).resolve().parent
    return parse_sweep(text, str(path), settings, folder)


def parse_sweep(
    text: str | bytes, place: str, settings: Sequence[str] = (), folder: Path | None = None
) -> SweepConfig:
    """Read a sweep file from text; see `load_sweep`.

    Args:
        text: The YAML text.
        place: Name of the text in messages.
        settings: As in `load_sweep`.
        folder: Folder that relative paths start from; None leaves them as they are.

    Raises:
        InputError: Something in the text or the settings is wrong.
    """
    document = strict_yaml.read(text, place)
    origins = {path: f"line {line}" for path, line in document.lines.items()}
    file = File(place, document.content, origins)
    _check_sections(file)
    given: dict[tuple[str, ...], str] = {}
    for setting in settings:
        _set(file, setting, given)
    _spread_grid(file)
    read_overrides(file)
    try:
        config = SweepConfig.model_validate(file.content)
    except ValidationError as error:
        raise explained(file, error) from error
    _check_match(file, config)
    check_overrides(file, config)
    return config if folder is None else resolved(file, config, folder)


def _check_sections(file: File) -> None:
    """Check that the file is a mapping of known sections and that sections are mappings."""
    if not isinstance(file.content, dict):
        raise InputError(
            f"{file.place}: a sweep file is a mapping of keys such as name, model, grid and "
            f"training, not {short(file.content)}"
        )
    known = list(SweepConfig.model_fields)
    file.content.pop(RESOLVED, None)
    _rename_old_keys(file)
    for key, value in file.content.items():
        if key not in known:
            hint = elsewhere(key) or nearest(key, known)
            raise file.error((key,), f"unknown key; {hint}")
        if isinstance(value, dict):
            file.content[key] = dict(value)  # YAML aliases share one dict; --set changes one
        elif key in SECTIONS or key == "grid":
            inside = keys_of(key) if key in SECTIONS else [*GRID_ONLY, *AXES]
            raise file.error(
                (key,), f"{short(value)} is not a mapping; its keys are {', '.join(inside)}"
            )


def _rename_old_keys(file: File) -> None:
    """Move values under older keys to the keys of today; remember what the user wrote."""
    for old, key in OLD_KEYS.items():
        if old not in file.content:
            continue
        if key in file.content:
            raise file.error(
                (old,), f"{key} is also given, and {old} is its older name; remove one of the two"
            )
        file.content[key] = file.content.pop(old)
        file.written[key] = old
        for path in [path for path in file.origins if path[:1] == (old,)]:
            file.origins[(key, *path[1:])] = file.origins.pop(path)


def _check_match(file: File, config: SweepConfig) -> None:
    if "ffn_width" in config.grid and config.match != ("none",):
        key = file.written.get("match", "match")
        raise file.error(
            ("match",),
            f"{list(config.match)} chooses d_model for each width, but grid.ffn_width fixes D at "
            f"the d_model of the file; use grid.width_multiplier, or {key}: none",
        )


def _set(file: File, text: str, given: dict[tuple[str, ...], str]) -> None:
    """Put one `key=value` into the file's content; `given` has the earlier ones by their path."""
    place = f"--set {text}"
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{place}: write key=value, such as training.steps=100")
    if not value.strip():
        raise InputError(f"{place}: the value is missing; write key=value, or key=null for none")
    value = strict_yaml.read(value, place).content
    path = _path_of(file, key.strip(), place)
    # An axis and the key of its section are the same setting.
    same = AXES.get(path[1], path) if path[0] == "grid" and len(path) > 1 else path
    if same in given:
        raise InputError(f"{place}: the same key as --set {given[same]}; remove one")
    given[same] = text
    if len(path) == 1:
        file.content[path[0]] = value
        file.written.pop(path[0], None)
        if key.strip() in OLD_KEYS:
            file.written[path[0]] = key.strip()
    else:
        axis = path[1] if path[0] == "grid" else AXIS_OF.get((path[0], path[1]))
        other = OTHER_WAY.get(axis or "")
        _take_away(file, axis)
        if value is not None and AXES.get(other or "", ("grid", other)) not in given:
            _take_away(file, other)
        file.content.setdefault(path[0], {})[path[1]] = value
    for known in [known for known in file.origins if known[: len(path)] == path]:
        del file.origins[known]
    file.origins[path] = place
    _check_sections(file)


def _take_away(file: File, axis: str | None) -> None:
    """Remove an axis from the grid and from its section."""
    if axis is None:
        return
    grid = file.content.setdefault("grid", {})
    for key in [key for key in grid if axis_name(key) == axis]:
        del grid[key]
    section, field = AXES.get(axis, ("grid", axis))
    file.content.get(section, {}).pop(field, None)


def _path_of(file: File, key: str, place: str) -> tuple[str, ...]:
    """Path of a key given with `--set`: (key,), (section, key) or ("grid", axis)."""
    section, _, rest = key.partition(".")
    if not rest:
        if key in SweepConfig.model_fields or key in OLD_KEYS:
            return (OLD_KEYS.get(key, key),)
        axis = axis_name(key)
        if axis in GRID_ONLY or (axis and axis in map(axis_name, file.content.get("grid", {}))):
            return ("grid", axis)
        homes = [name for name in SECTIONS if key in keys_of(name)]
        if len(homes) == 1:
            return (homes[0], key)
        if homes:
            ways = " or ".join(f"{home}.{key}" for home in homes)
            raise InputError(f"{place}: several sections have the key {key}; write {ways}")
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
    hint = nearest(key, known) if section in (*SECTIONS, "grid") else nearest_or_section(key, known)
    raise InputError(f"{place}: unknown key {key}; {hint}")


def _spread_grid(file: File) -> None:
    """Give the grid canonical names and tuples of values, and sections the first values."""
    grid = file.content.get("grid", {})
    axes: dict[str, tuple[Any, ...]] = {}
    for key, values in grid.items():
        axis = axis_name(key)
        if axis is None:
            raise file.error(("grid", key), _not_an_axis(key))
        if axis in axes:
            raise file.error(("grid", key), f"the axis {axis} is on the grid twice; remove one")
        axes[axis] = tuple(_axis_values(file, key, axis, values))
        if axis in AXES:
            section, field = AXES[axis]
            base = file.content.setdefault(section, {})
            if field in base:
                raise file.error(
                    ("grid", key),
                    f"{section}.{field} is also given, as {short(base[field])}; remove one",
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
    _check_warm_up(file, axes)
    model = file.content.get("model", {})
    if "norm" not in model and axes.get("architecture", (model.get("architecture"),)) == ("ngpt",):
        file.content["model"] = {**model, "norm": "ngpt"}  # its only norm placement
    file.content["grid"] = axes if "seed" in axes else {**axes, "seed": (0,)}
    _check_size(file, axes)


def _check_size(file: File, axes: dict[str, tuple[Any, ...]]) -> None:
    """Refuse a grid that is too large to plan: every cell is checked before anything runs."""
    cells = prod(map(len, axes.values()))
    if cells > MOST_CELLS:
        sizes = " x ".join(f"{axis} {len(values):,}" for axis, values in axes.items())
        raise file.error(
            ("grid",),
            f"{sizes} are {cells:,} cells, more than the {MOST_CELLS:,} that one sweep may have; "
            "split it into several sweeps",
        )


def _check_warm_up(file: File, axes: dict[str, tuple[Any, ...]]) -> None:
    """Refuse both lengths of the warm-up, in steps and as a fraction; null steps do not count."""
    training = file.content.get("training", {})
    steps = axes.get("warmup_steps", (training.get("warmup_steps"),))
    if "warmup_fraction" in training and any(value is not None for value in steps):
        key = ("grid", "warmup_steps") if "warmup_steps" in axes else ("training", "warmup_steps")
        raise file.error(
            key, "warmup_fraction is also given; both set the length of the warm-up, remove one"
        )


def _not_an_axis(key: object) -> str:
    section, _, field = str(key).rpartition(".")
    if key in ("sites", "spectra.sites"):
        return "is a list and cannot be an axis; give spectra.sites"
    for name in ("corpus", "tokenizer", "resources", "analysis"):
        if field in keys_of(name) and section in ("", name):
            return f"{name}.{field} applies to the whole sweep and cannot be an axis"
    shared = [axis for axis in AXES if axis.endswith(f".{key}")]
    if shared:
        return f"several sections have this key; write {' or '.join(shared)}"
    return f"unknown axis; {nearest(key, [*GRID_ONLY, *AXES])}"


def _axis_values(file: File, key: str, axis: str, values: Any) -> Iterator[Any]:
    """Validate the values of an axis; a scalar is a list of one."""
    listed = values if isinstance(values, list) else [values]
    if not listed:
        raise file.error(("grid", key), "has no values; give at least one, or remove the axis")
    for index, value in enumerate(listed):
        try:
            yield axis_type(axis).validate_python(value, strict=True)
        except ValidationError as error:
            path = ("grid", key, index) if isinstance(values, list) else ("grid", key)
            # For a type "number or list of numbers", pydantic puts the errors of the list last.
            told = error.errors()[-1 if isinstance(value, list) else 0]
            raise file.error(path, wrong(told)) from error
