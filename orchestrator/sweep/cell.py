"""One cell of a grid: the sections of the sweep with the cell's own values, in one spelling."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from orchestrator.sweep.canonical import Change, canonical
from orchestrator.sweep.config import SETTABLE, SweepConfig

Axes = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A cell before hold and widths are settled.

    `typed` are its values as they stand on the grid, `axes` what they came to; `base` is the
    sweep with the values, the overrides and the one spelling of this cell in its sections.
    """

    typed: Axes
    axes: Axes
    base: SweepConfig
    post_layers: int
    changes: tuple[Change, ...]


def cells(config: SweepConfig) -> Iterator[Axes]:
    """Axis -> value for every combination, the last axis of the file turning fastest."""
    return combinations(config.grid)


def combinations(grid: Mapping[str, Iterable[Any]]) -> Iterator[Axes]:
    """Every combination of the values of these axes."""
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def resolved(config: SweepConfig, typed: Axes) -> Cell:
    """A cell with its values, its overrides, and its one spelling."""
    base = _with_values(config, typed)
    for number in matching(config, typed):
        base = _with_values(base, config.overrides[number].set)
    found = canonical(base.model, base.training, config.grid)
    base = base.model_copy(update={"model": found.model, "training": found.training})
    return Cell(typed, found.named(typed), base, found.post_layers, found.changes)


def matching(config: SweepConfig, typed: Axes) -> list[int]:
    """Which overrides are for a cell, by what its values come to without any: nGPT has the norm
    ngpt, whatever stands beside it on the grid."""
    if not config.overrides:
        return []
    base = _with_values(config, typed)
    found = canonical(base.model, base.training, config.grid)
    came_to = found.named(typed)
    return [
        number
        for number, override in enumerate(config.overrides)
        if all(
            came_to[axis] in [found.name_of(axis, value) for value in values]
            for axis, values in override.when.items()
        )
    ]


def _with_values(config: SweepConfig, values: Mapping[str, Any]) -> SweepConfig:
    """The config with values of axes in its sections."""
    updates: dict[str, dict[str, Any]] = {}
    for axis in values.keys() & SETTABLE.keys():
        section, key = SETTABLE[axis]
        updates.setdefault(section, {})[key] = values[axis]
    # Each value was validated when the file was read; how they fit together is the spec's to say.
    sections = {
        section: getattr(config, section).model_copy(update=update)
        for section, update in updates.items()
    }
    return config.model_copy(update=sections)
