"""Show dropped, merged and adjusted cells in few words.

Cells with the same reason often form a block of the grid: some values of some axes, and every value
of the others. One line describes the whole block.
"""

from math import prod
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from analysis.wording import plural
from orchestrator.grid.expand import Dropped, Merged
from orchestrator.grid.plan import Adjusted, OverrideUse, Plan

#: Cells shown under one reason if they do not form a block. The JSON has all.
SHOWN = 6

Axes = dict[str, Any]


def left_out(plan: Plan) -> list[RenderableType]:
    """Return the lines about overrides, dropped and merged cells, and adjusted values.

    Dropped and merged cells are listed under their common reason.
    """
    parts: list[RenderableType] = [Text(_override(override)) for override in plan.overrides]
    parts += _reasons(plan, "dropped", plan.dropped)
    parts += _reasons(plan, "merged", plan.merged)
    told = {cell.why for cell in plan.merged}
    parts += [
        Text.assemble(("adjusted", "bold"), f": {_adjusted(change)}")
        for change in plan.adjusted
        if change.why not in told
    ]
    return parts


def named(axes: Axes) -> str:
    """Return axes with their values: `architecture gpt2, depth 2`."""
    return ", ".join(f"{axis} {value_text(value)}" for axis, value in axes.items())


def value_text(value: object) -> str:
    """Return a value as a sweep file has it, floats to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _adjusted(change: Adjusted) -> str:
    before, where = value_text(change.before), plural(change.trials, "trial")
    if change.after is None:
        return f"{change.key} {before} has no effect in {where}: {change.why}"
    return f"{change.key} is {value_text(change.after)}, not {before}, in {where}: {change.why}"


def _override(override: OverrideUse) -> str:
    when = ", ".join(_values(axis, list(values)) for axis, values in override.when.items())
    return f"override: {when}: {named(override.set)} ({plural(override.trials, 'trial')})"


def _reasons(plan: Plan, what: str, cells: list[Dropped] | list[Merged]) -> list[RenderableType]:
    """Cells under their common reason."""
    by_reason: dict[str, list[Dropped | Merged]] = {}
    for cell in cells:
        by_reason.setdefault(cell.why, []).append(cell)
    return [
        Text.assemble((what, "bold"), f": {why}\n  ", "\n  ".join(_cells(plan, alike)))
        for why, alike in by_reason.items()
    ]


def _cells(plan: Plan, cells: list[Dropped | Merged]) -> list[str]:
    """One line if the cells form a block, otherwise a line for each of the first."""
    block = _block(plan, cells) if len(cells) > 1 else None
    if block is not None:
        return [f"{block} ({plural(len(cells), 'cell')})"]
    lines = [_cell(plan, cell) for cell in cells[:SHOWN]]
    more = [f"and {len(cells) - SHOWN} more"] if len(cells) > SHOWN else []
    return lines + more


def _cell(plan: Plan, cell: Dropped | Merged) -> str:
    into = f" into {cell.into}" if isinstance(cell, Merged) and plan.ids_known else ""
    return f"{named(cell.axes)}, match {cell.matching}{into}"


def _block(plan: Plan, cells: list[Dropped | Merged]) -> str | None:
    """Describe cells that are a product of values; None if they are not."""
    grid = {**plan.axes, "match": plan.matchings}
    rows = [{**cell.axes, "match": cell.matching} for cell in cells]
    found = {
        axis: [value for value in values if any(row[axis] == value for row in rows)]
        for axis, values in grid.items()
    }
    if prod(map(len, found.values())) != len(rows):
        return None
    whole = [axis for axis, values in found.items() if 1 < len(values) == len(grid[axis])]
    part = {axis: values for axis, values in found.items() if axis not in whole}
    told = [_values(axis, values) for axis, values in part.items() if len(grid[axis]) > 1]
    *others, last = whole or [""]
    told += [f"every {', '.join(others)}{' and ' if others else ''}{last}"] if whole else []
    return ", ".join(told)


def _values(axis: str, values: list[Any]) -> str:
    return f"{axis} {' or '.join(map(value_text, values))}"
