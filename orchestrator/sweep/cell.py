"""One cell of a grid: the sections of the sweep with the cell's values, normalised."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from orchestrator.sweep.canonical import Change, canonical
from orchestrator.sweep.config import SETTABLE, SweepConfig

Axes = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A cell before its d_model and FFN widths are chosen.

    Attributes:
        typed: Axis -> value as the grid has it.
        axes: Axis -> normalised value.
        base: The sweep with the normalised values of this cell in its sections, after overrides.
        post_layers: Number of Post-LN layers under Mix-LN, otherwise 0.
        changes: Values that normalising changed.
    """

    typed: Axes
    axes: Axes
    base: SweepConfig
    post_layers: int
    changes: tuple[Change, ...]


def cells(config: SweepConfig) -> Iterator[Axes]:
    """Yield axis -> value for every cell of the grid; the last axis of the file varies fastest."""
    return combinations(config.grid)


def combinations(grid: Mapping[str, Iterable[Any]]) -> Iterator[Axes]:
    """Yield axis -> value for every combination of the values of these axes."""
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def resolved(config: SweepConfig, typed: Axes) -> Cell:
    """Make a cell from the values on the grid: apply the overrides for it, then normalise."""
    base = _with_values(config, typed)
    for number in overrides_for(config, typed):
        base = _with_values(base, config.overrides[number].set)
    found = canonical(base.model, base.training, config.grid)
    base = base.model_copy(update={"model": found.model, "training": found.training})
    return Cell(typed, found.named(typed), base, found.post_layers, found.changes)


def overrides_for(config: SweepConfig, typed: Axes) -> list[int]:
    """Return the indices of the overrides in `config` that match a cell, in the file's order.

    `typed` are the cell's values as the grid has them.

    Overrides are compared with the normalised values of the cell before any override: an nGPT cell
    has the norm `ngpt`, whatever `norm` is on the grid.
    """
    if not config.overrides:
        return []
    base = _with_values(config, typed)
    found = canonical(base.model, base.training, config.grid)
    normalised = found.named(typed)
    return [
        number
        for number, override in enumerate(config.overrides)
        if all(
            normalised[axis] in [found.name_of(axis, value) for value in values]
            for axis, values in override.when.items()
        )
    ]


def _with_values(config: SweepConfig, values: Mapping[str, Any]) -> SweepConfig:
    """The config with the values of axes put into its sections."""
    updates: dict[str, dict[str, Any]] = {}
    for axis in values.keys() & SETTABLE.keys():
        section, key = SETTABLE[axis]
        updates.setdefault(section, {})[key] = values[axis]
    # Values were validated when the file was read. The trial's spec validates their combination.
    sections = {
        section: getattr(config, section).model_copy(update=update)
        for section, update in updates.items()
    }
    return config.model_copy(update=sections)
