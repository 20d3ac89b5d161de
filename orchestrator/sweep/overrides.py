"""Read the section `overrides` of a sweep file: other values of the base for some cells.

An architecture can have its own recipe, a norm placement its own learning rate:

    overrides:
      - when: {architecture: ngpt}
        set: {weight_decay: 0, warmup_fraction: 0, final_fraction: 0}

An override that matches no cell, and two that set one key of the same cell, are errors.
"""

from typing import Any

from pydantic import ValidationError

from orchestrator.sweep.cell import combinations, overrides_for
from orchestrator.sweep.config import (
    AXES,
    GRID_ONLY,
    SETTABLE,
    SweepConfig,
    axis_name,
    axis_type,
    settable_name,
)
from orchestrator.sweep.errors import File, nearest, short, wrong
from orchestrator.sweep.strict_yaml import Path

#: Axes that normalising looks at: the values of other axes may depend on them.
DECISIVE = frozenset(
    {
        *("architecture", "norm", "mix_alpha", "depth", "d_model", "head_dim", "activation"),
        *("kv_heads", "optimizer", "schedule", "warmup_steps"),
    }
)


def read_overrides(file: File) -> None:
    """Validate the section and give it canonical names, in place.

    The grid must have its canonical names already.

    Raises:
        InputError: Something is wrong in an override; names the key and its line.
    """
    listed = file.content.get("overrides", [])
    if not isinstance(listed, list):
        raise file.error(
            ("overrides",),
            f"{short(listed)} is not a list of {{when: {{axis: value}}, set: {{key: value}}}}",
        )
    file.content["overrides"] = [_read(file, number, item) for number, item in enumerate(listed)]


def check_overrides(file: File, config: SweepConfig) -> None:
    """Check the overrides against every cell of the grid.

    Raises:
        InputError: An override matches no cell, or two set the same key of one cell.
    """
    if not config.overrides:
        return
    asked = {axis for override in config.overrides for axis in override.when}
    grid = {
        axis: values if axis in asked or axis in DECISIVE else values[:1]
        for axis, values in config.grid.items()
    }
    used: set[int] = set()
    for cell in combinations(grid):
        numbers = overrides_for(config, cell)
        _check_cell(file, config, cell, numbers)
        used |= set(numbers)
    for number, override in enumerate(config.overrides):
        if number not in used:
            raise file.error(
                ("overrides", number),
                f"matches no cell: after normalising, no cell has {_named(override.when)}; remove "
                "this override",
            )


def _read(file: File, number: int, item: Any) -> dict[str, Any]:
    """One override with canonical names."""
    path: Path = ("overrides", number)
    if not isinstance(item, dict):
        raise file.error(path, f"{short(item)} is not a mapping; its keys are when, set")
    for key in item:
        if key not in ("when", "set"):
            raise file.error((*path, key), "unknown key; known are when, set")
    for part in ("when", "set"):
        if not isinstance(item.get(part), dict) or not item[part]:
            raise file.error(
                (*path, part),
                f"{short(item.get(part))} is not a mapping with at least one "
                f"{'axis: value' if part == 'when' else 'key: value'}",
            )
    when: dict[str, tuple[Any, ...]] = {}
    for key, values in item["when"].items():
        axis = _axis_on_grid(file, (*path, "when", key), key)
        _once(file, (*path, "when", key), axis, when)
        when[axis] = tuple(_values_on_grid(file, (*path, "when", key), axis, values))
    settings: dict[str, Any] = {}
    for key, value in item["set"].items():
        axis = _settable(file, (*path, "set", key), key)
        _once(file, (*path, "set", key), axis, settings)
        settings[axis] = _valid(file, (*path, "set", key), axis, value)
    return {"when": when, "set": settings}


def _once(file: File, path: Path, axis: str, known: dict[str, Any]) -> None:
    if axis in known:
        raise file.error(path, f"{axis} is given twice here; remove one")


def _axis_on_grid(file: File, path: Path, key: object) -> str:
    grid = file.content["grid"]
    axis = axis_name(key)
    if axis is None:
        raise file.error(path, f"unknown axis; {nearest(key, [*grid])}")
    if axis == "seed":
        raise file.error(path, "replicates may differ only in their seed; remove it")
    if axis not in grid:
        raise file.error(path, f"is not an axis of this grid, whose axes are {', '.join(grid)}")
    return axis


def _values_on_grid(file: File, path: Path, axis: str, values: Any) -> list[Any]:
    listed = values if isinstance(values, list) else [values]
    if not listed:
        raise file.error(path, "has no values; give at least one")
    valid = [_valid(file, path, axis, value) for value in listed]
    on_grid = file.content["grid"][axis]
    for value in valid:
        if value not in on_grid:
            raise file.error(
                path,
                f"{short(value)} is not one of the grid's values "
                f"({', '.join(map(short, on_grid))}); add it there, or remove it here",
            )
    return valid


def _settable(file: File, path: Path, key: object) -> str:
    axis = settable_name(key)
    if axis is None:
        shared = [name for name in AXES if name.endswith(f".{key}")]
        hint = f"write {' or '.join(shared)}" if shared else nearest(key, [*SETTABLE])
        raise file.error(path, f"an override cannot set this key; {hint}")
    if axis in GRID_ONLY or axis in file.content["grid"]:
        raise file.error(path, "is an axis of the grid, which sets its values; remove it here")
    return axis


def _valid(file: File, path: Path, axis: str, value: Any) -> Any:
    try:
        return axis_type(axis).validate_python(value, strict=True)
    except ValidationError as error:
        raise file.error(path, wrong(error.errors()[0])) from error


# --- two overrides of one cell -------------------------------------------------------------


def _check_cell(file: File, config: SweepConfig, cell: dict[str, Any], numbers: list[int]) -> None:
    """Refuse a key that is set twice, and both lengths of the warm-up."""
    set_by: dict[str, int] = {}
    for number in numbers:
        for key, value in config.overrides[number].set.items():
            if key in set_by:
                raise file.error(
                    ("overrides", number, "set", key),
                    f"{short(value)}, but override {set_by[key] + 1} of the list sets it to "
                    f"{short(config.overrides[set_by[key]].set[key])} for the same cells, such as "
                    + _named({axis: (cell[axis],) for axis in cell}),
                )
            set_by[key] = number
    steps = cell.get("warmup_steps", config.training.warmup_steps)
    if "warmup_steps" in set_by:
        steps = config.overrides[set_by["warmup_steps"]].set["warmup_steps"]
    if "warmup_fraction" in set_by and steps is not None:
        raise file.error(
            ("overrides", set_by["warmup_fraction"], "set", "warmup_fraction"),
            f"these cells have warmup_steps {steps}, which also sets the length of the warm-up; "
            "set warmup_steps instead, or add warmup_steps: null",
        )


def _named(when: dict[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{axis} {' or '.join(map(str, values))}" for axis, values in when.items())
