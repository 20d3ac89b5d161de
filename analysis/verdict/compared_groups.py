"""Find the groups of a sweep to compare: those that differ in one axis of the grid.

An axis that follows from another one does not count: nGPT has a norm placement of its own, and
`mix_alpha` is null without Mix-LN. With three or more learning rates on the grid, the groups are
also compared with every width at its own rate.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.settings import TUNED
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.tuned_rate import AXIS as RATE_AXIS
from analysis.verdict.tuned_rate import is_tunable, tune
from analysis.wording import axis_of, group_label
from trialstore.sweep_file import section

#: Axis of the model's size. Sizes are what a transfer is fitted to, not alternatives.
SIZE = "base_d_model"

Group = dict[str, Any]


@dataclass(frozen=True)
class ComparedGroups:
    """Two groups that differ in one axis."""

    axis: str  # column of `SweepTables.trials`
    baseline: str  # the value that the sweep file names first, with what follows from it
    other: str
    where: Mapping[str, Any]  # values of the axes that both groups share
    place: str  # of these, the ones that vary in the sweep, in a few words
    tuned: bool  # every width at its own learning rate
    settings: tuple[str, ...]  # what the sweep file's overrides set differently, in words
    of_baseline: pd.DataFrame  # rows of `SweepTables.trials`
    of_other: pd.DataFrame
    nodes: tuple[int, int]  # numbers of the two groups, the same in all comparisons


def compared_groups(tables: SweepTables) -> list[ComparedGroups]:
    """Return all pairs of groups that differ in one axis, by axis, tuned rates first."""
    axes, trials = tables.group_axes, tables.trials
    found: list[ComparedGroups] = []
    count = 0
    if is_tunable(trials):
        untuned = tuple(axis for axis in axes if axis != RATE_AXIS)
        tuned = [
            (group, _tuned(members))
            for group, members in _groups(trials, untuned)
            if is_tunable(members)
        ]
        found += _pairs(tuned, untuned, tables, tuned=True, first=count)
        count += len(tuned)
    found += _pairs(_groups(trials, axes), axes, tables, tuned=False, first=count)
    order = {axis: place for place, axis in enumerate(axes)}
    return sorted(found, key=lambda pair: (order[pair.axis], not pair.tuned))


def _tuned(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per width and replicate at the width's own rate: of the cells of equal budget, or of
    all cells where there are none."""
    held = [tuple(hold for hold in holds if hold != "none") for holds in trials["holds"]]
    if any(held):
        return tune(trials.assign(holds=pd.Series(held, index=trials.index))).trials
    # `tune` looks at cells of equal budget only; at one d_model a width is a cell as well.
    as_held = tune(_holding(trials, "params")).trials
    return _holding(as_held, "none")


def _holding(trials: pd.DataFrame, cells: str) -> pd.DataFrame:
    return trials.assign(holds=pd.Series([(cells,) for _ in trials.index], index=trials.index))


def _groups(trials: pd.DataFrame, axes: Sequence[str]) -> list[tuple[Group, pd.DataFrame]]:
    if not axes:
        return []
    return [
        ({axis: _plain(members[axis].iloc[0]) for axis in axes}, members)
        for _, members in trials.groupby(list(axes), sort=True, dropna=False)
    ]


def _pairs(
    groups: Sequence[tuple[Group, pd.DataFrame]],
    axes: Sequence[str],
    tables: SweepTables,
    *,
    tuned: bool,
    first: int,
) -> Iterator[ComparedGroups]:
    known = [group for group, _ in groups]
    numbered = list(enumerate(groups, first))
    for one, two in itertools.combinations(numbered, 2):
        axis = _one_axis(one[1][0], two[1][0], axes, known)
        if axis is None or axis == SIZE:
            continue
        (low, (base, trials)), (high, (other, others)) = sorted(
            (one, two), key=lambda item: _rank(item[1][0][axis], axis, tables.config)
        )
        differing = [name for name in axes if base[name] != other[name]]
        shared = {name: value for name, value in base.items() if other[name] == value}
        shared |= {RATE_AXIS: TUNED} if tuned else {}
        yield ComparedGroups(
            axis=axis,
            baseline=group_label({name: base[name] for name in differing}),
            other=group_label({name: other[name] for name in differing}),
            where=shared,
            place=_place(shared, tables.trials),
            tuned=tuned,
            settings=tuple(_settings(base, other, tables.config)),
            of_baseline=trials,
            of_other=others,
            nodes=(low, high),
        )


def _one_axis(one: Group, two: Group, axes: Sequence[str], groups: Sequence[Group]) -> str | None:
    """The one axis in which two groups differ; None where they differ in none or in several."""
    differing = [axis for axis in axes if one[axis] != two[axis]]
    while len(differing) > 1:
        # The last axes first: of two that follow from each other the first one counts.
        for axis in reversed(differing):
            leaders = [leader for leader in differing if leader != axis]
            if any(
                _follows(axis, leader, side, groups) for leader in leaders for side in (one, two)
            ):
                differing.remove(axis)
                break
        else:
            return None
    return differing[0] if differing else None


def _follows(axis: str, leader: str, side: Group, groups: Sequence[Group]) -> bool:
    """Whether a group's value of `axis` follows from its value of `leader`: it has no other value
    there, and the value is null or occurs nowhere else."""
    for group in groups:
        same = group[axis] == side[axis]
        if group[leader] == side[leader]:
            if not same:
                return False
        elif same and side[axis] is not None:
            return False
    return True


def _place(shared: Mapping[str, Any], trials: pd.DataFrame) -> str:
    varying = {
        axis: value
        for axis, value in shared.items()
        if value is not None and trials[axis].nunique(dropna=False) > 1
    }
    return group_label(varying) if varying else ""


def _rank(value: Any, axis: str, config: Mapping[str, Any]) -> tuple[int, float, str]:
    """Sorts values in the order of the sweep file, others behind them by size and name."""
    listed = section(config, "grid").get(axis_of(axis))
    known = list(listed) if isinstance(listed, list) else []
    place = known.index(value) if value in known else len(known)
    size = float(value) if isinstance(value, int | float) else np.inf
    return place, size, str(value)


def _settings(base: Group, other: Group, config: Mapping[str, Any]) -> Iterator[str]:
    """Name every key that the sweep file's overrides set for one of the groups or differently."""
    ours, theirs = _overridden(base, config), _overridden(other, config)
    for key in dict.fromkeys([*ours, *theirs]):
        one, two = (own[key] if key in own else _of_base(key, config) for own in (ours, theirs))
        if one != two:
            yield f"{key} {one} and {two}"


def _overridden(group: Group, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the overrides set for the cells of a group. Axes within the group, such as the width,
    are not looked at: they are alike on both sides of a comparison."""
    named = {axis_of(column): value for column, value in group.items() if column != SIZE}
    found: dict[str, Any] = {}
    listed = config.get("overrides")
    for override in listed if isinstance(listed, list) else []:
        if not isinstance(override, Mapping):
            continue
        when = section(override, "when")
        asked = {axis: values for axis, values in when.items() if axis in named}
        if all(named[axis] in np.atleast_1d(values).tolist() for axis, values in asked.items()):
            found |= section(override, "set")
    return found


def _of_base(key: str, config: Mapping[str, Any]) -> Any:
    for part in ("training", "model", "evaluation", "spectra", "resources"):
        if key in section(config, part):
            return section(config, part)[key]
    return "the default"


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python one; NaN as None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
