"""Compare all groups of a sweep that differ in one axis, at every basis that their trials allow."""

import numpy as np

from analysis.refusal import Refusal
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.compared_groups import SIZE, ComparedGroups, compared_groups
from analysis.verdict.comparisons import Comparison, Comparisons
from analysis.verdict.equal_cost_pairs import pair_at_equal_cost
from analysis.verdict.paired_cells import (
    CELLS,
    COSTS,
    NO_CELLS,
    GroupCells,
    PairedCells,
    group_cells,
    pair_cells,
)
from analysis.verdict.paired_differences import paired_difference
from analysis.verdict.simultaneous import Contrast, Design, holm, simultaneous_limits

#: Costs at equal width that differ by more (in the logarithm) are also compared at equal cost.
#: Measured times scatter by less.
WORTH_MATCHING = 0.05


def compare(tables: SweepTables) -> Comparisons:
    """Compare all groups of a sweep that differ in one axis.

    Args:
        tables: the sweep, as `load_sweep` returns it.
    """
    known: dict[tuple[int, str], GroupCells] = {}
    raw = [found for groups in compared_groups(tables) for found in _paired(groups, known)]
    contrasts = {
        place: Contrast(_design(found, found.difference.replicates), found.difference.variance)
        for place, found in enumerate(raw)
        if found.difference is not None and found.difference.variance is not None
    }
    limits = dict(zip(contrasts, simultaneous_limits(list(contrasts.values())), strict=True))
    tested = [found.difference.width_p if found.difference is not None else None for found in raw]
    adjusted = holm(tested)
    return Comparisons(
        tuple(
            Comparison(
                found.groups,
                found.cells,
                found.primary,
                found.paired,
                found.difference,
                limits.get(place),
                adjusted[place],
            )
            for place, found in enumerate(raw)
        ),
        sizes=SIZE in tables.group_axes,
    )


def _design(found: Comparison, replicates: tuple[int, ...]) -> Design:
    one, two = found.groups.nodes
    pool = (found.groups.axis, found.groups.tuned, found.cells)
    return Design(((found.cells, one), (found.cells, two)), replicates, pool)


def _paired(groups: ComparedGroups, known: dict[tuple[int, str], GroupCells]) -> list[Comparison]:
    """The comparison at every matching with pairs; one refusal where no matching has any.

    `known` has the cells of the groups that were seen before, by their number and the matching.
    """

    def sides(cells: str) -> tuple[GroupCells, GroupCells]:
        for node, trials in zip(groups.nodes, (groups.of_baseline, groups.of_other), strict=True):
            if (node, cells) not in known:
                known[node, cells] = group_cells(trials, cells)
        one, two = groups.nodes
        return known[one, cells], known[two, cells]

    each = {cells: pair_cells(*sides(cells), cells) for cells in CELLS}
    made = {cells: found for cells, found in each.items() if isinstance(found, PairedCells)}
    if not made:
        refusals = {cells: found for cells, found in each.items() if isinstance(found, Refusal)}
        planned = {cells: own for cells, own in refusals.items() if own.reason != NO_CELLS}
        cells, refusal = next(iter((planned or refusals).items()))
        return [Comparison(groups, cells, True, refusal, None, None)]
    # Cells matched to budgets that differ between the groups are no better than equal widths.
    own = {"params": "parameters", "flops": "flops", "none": ""}
    first = next(
        (name for name, found in made.items() if not own[name] or own[name] in found.equal),
        next(iter(made)),
    )
    at_width = made.get("none")
    for cost in COSTS if at_width is not None else ():
        apart = abs(np.log(at_width.ratios.get(cost, (1.0, 1.0, 1.0))[1])) if at_width else 0.0
        if apart > WORTH_MATCHING and not any(cost in found.equal for found in made.values()):
            interpolated = pair_at_equal_cost(*sides("none"), cost)
            if isinstance(interpolated, PairedCells):
                made[cost] = interpolated
    ordered = [first, *(cells for cells in made if cells != first)]
    return [
        Comparison(
            groups,
            cells,
            cells == first,
            made[cells],
            paired_difference(made[cells].widths, made[cells].replicates, made[cells].differences),
            None,
        )
        for cells in ordered
    ]
