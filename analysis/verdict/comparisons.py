"""Which group of a sweep has the lower loss: differences of paired trials, with intervals.

Two groups that differ in one axis are compared at the same widths and replicates. The intervals are
simultaneous over all comparisons of the sweep (`simultaneous`). A trial that collapsed makes no
pair; it is counted and named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from analysis.refusal import Refusal
from analysis.replicates import CONFIDENCE, Interval
from analysis.verdict.compared_groups import ComparedGroups
from analysis.verdict.next_cells import REPLICATES
from analysis.verdict.paired_cells import COSTS, PairedCells
from analysis.verdict.paired_differences import PairedDifference
from analysis.verdict.simultaneous import POWER, Limit
from analysis.wording import axis_of, bracketed, multiple, percent, plural

Outcome = Literal["told", "not told", "no interval", "refused"]

#: Names of the cells that were paired.
CELL_NAMES = {
    "params": "cells of equal parameters",
    "flops": "cells of equal training FLOPs",
    "none": "cells at fixed d_model",
    **{cost: f"interpolated to equal {name}" for cost, (_, name) in COSTS.items()},
}


@dataclass(frozen=True)
class Comparison:
    """One comparison: the loss of `other` less that of `baseline`, in nats per token."""

    groups: ComparedGroups
    cells: str  # a key of CELL_NAMES: the cells that were paired
    primary: bool  # the first matching in which these groups were paired
    paired: PairedCells | Refusal
    difference: PairedDifference | None  # None where refused
    limit: Limit | None  # None with one replicate, and where refused
    width_p: float | None = None  # that the difference is the same at all widths, Holm-adjusted

    @property
    def label(self) -> str:
        """The two groups: `lns - pre`."""
        return f"{self.groups.other} - {self.groups.baseline}"

    @property
    def place(self) -> str:
        """The axes that both groups share and that vary in the sweep: `llama, depth 12`."""
        return self.groups.place

    @property
    def outcome(self) -> Outcome:
        """Whether a difference is told; `no interval` where its error cannot be known."""
        if self.difference is None:
            return "refused"
        if self.interval is None:
            return "no interval"
        return "told" if self.interval[0] > 0 or self.interval[1] < 0 else "not told"

    @property
    def interval(self) -> Interval | None:
        """The simultaneous 90 % interval of the mean difference."""
        if self.difference is None or self.limit is None:
            return None
        mean, half = self.difference.mean, self.limit.half_width
        return mean - half, mean + half

    @property
    def ahead(self) -> tuple[int, int]:
        """Pairs in which `other` has the lower loss, and all pairs."""
        if isinstance(self.paired, Refusal):
            return 0, 0
        apart = self.paired.differences
        return sum(difference < 0 for difference in apart), len(apart)

    @property
    def depends_on_width(self) -> bool:
        """Whether the difference is shown to depend on the width."""
        return self.width_p is not None and self.width_p < 1 - CONFIDENCE

    @property
    def turns(self) -> tuple[list[str], list[str]]:
        """Widths at which `other` is ahead, and at which it is behind, each by its own interval;
        both empty unless the difference depends on the width and has both signs."""
        if self.difference is None or not self.depends_on_width:
            return [], []
        low, high = self.difference.intervals.T
        names = np.array([multiple(width) for width in self.difference.widths])
        ahead, behind = names[high < 0].tolist(), names[low > 0].tolist()
        return (ahead, behind) if ahead and behind else ([], [])

    @property
    def basis(self) -> str:
        """What is equal in every pair, and the ratio of what is not: `equal width, parameters
        x1.33, training FLOPs x1.25`."""
        if isinstance(self.paired, Refusal):
            return ""
        equal = [COSTS[name][1] for name in self.paired.equal]
        width = {"none": ["width"], "params": ["width multiplier"], "flops": ["width multiplier"]}
        held = _joined([*width.get(self.cells, []), *equal] or [COSTS[self.cells][1]])
        apart = [
            f"{COSTS[name][1]} {_ratio(*ratio)}"
            for name, ratio in self.paired.ratios.items()
            if name not in self.paired.equal
        ]
        how = " (interpolated over the widths)" if self.paired.interpolated else ""
        return ", ".join([f"equal {held}{how}", *apart])

    @property
    def broken(self) -> str:
        """The collapsed and diverged trials, in words; empty without any."""
        if isinstance(self.paired, Refusal) or not any(self.paired.broken):
            return ""
        sides = (self.groups.baseline, self.groups.other)
        counts = [
            f"{name} in {count} of {plural(self.paired.planned, 'cell')}"
            for name, count in zip(sides, self.paired.broken, strict=True)
            if count
        ]
        return f"collapsed or diverged: {', '.join(counts)}"

    @property
    def sentence(self) -> str:
        """The comparison in words, without a final full stop."""
        return f"{self.label}: {self.finding}"

    @property
    def finding(self) -> str:
        """What was found, without the names of the groups."""
        told = self._difference()
        if isinstance(self.paired, Refusal) or self.difference is None:
            return told
        return "; ".join([told, *self.remarks])

    @property
    def remarks(self) -> list[str]:
        """What to know beside the difference: widths, collapsed trials, gaps, other settings."""
        if isinstance(self.paired, Refusal):
            return []
        parts = [self._width(), self.broken]
        gaps = {k: n for k, n in self.paired.missing.items() if k not in ("collapsed", "diverged")}
        if gaps:
            listed = ", ".join(f"{count} {why}" for why, count in gaps.items())
            parts.append(f"pairs missing: {listed}")
        if self.groups.settings:
            parts.append(f"they also differ in {_joined(self.groups.settings)}")
        return [part for part in parts if part]

    def _difference(self) -> str:
        if isinstance(self.paired, Refusal):
            return f"not compared, {self.paired.reason}"
        assert self.difference is not None
        ahead, pairs = self.ahead
        mean = self.difference.mean
        count = f"lower in {ahead} of {plural(pairs, 'pair')}"
        if self.interval is None:
            why = (
                f"one replicate has no interval, run {REPLICATES}"
                if len(self.difference.replicates) == 1
                else "no replicate links the widths, so there is no interval"
            )
            return f"{mean:+.4f} nats, {count} ({why})"
        own = f"{mean:+.4f} nats {bracketed(self.interval, 4)}, {count}"
        if self.outcome == "told":
            return own
        assert self.limit is not None
        return (
            f"no difference can be told, {own}; one of {self.limit.smallest_told:.2g} nats would "
            f"be told in {percent(POWER)} of such sweeps"
        )

    def _width(self) -> str:
        if not self.depends_on_width:
            return ""
        ahead, behind = self.turns
        text = f"it depends on the width (p = {self.width_p:.2g})"
        if ahead:
            text += f" and changes sign: lower at {', '.join(ahead)}, higher at {', '.join(behind)}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `comparisons.pairs` in recommendation.json."""
        known: dict[str, Any] = {
            "axis": axis_of(self.groups.axis),
            "baseline": self.groups.baseline,
            "other": self.groups.other,
            "where": {axis_of(axis): value for axis, value in self.groups.where.items()},
            "cells": self.cells,
            "primary": self.primary,
            "outcome": self.outcome,
            "sentence": self.sentence,
            "settings": list(self.groups.settings),
            "difference": None,
            "interval": None,
        }
        if isinstance(self.paired, Refusal) or self.difference is None:
            return known
        ahead, pairs = self.ahead
        broken = zip(("baseline", "other"), self.paired.broken, strict=True)
        return known | {
            "difference": self.difference.mean,
            "interval": self.interval,
            "error": None if self.limit is None else self.limit.error,
            "smallest_told": None if self.limit is None else self.limit.smallest_told,
            "pairs": pairs,
            "ahead": ahead,
            "replicates": len(self.difference.replicates),
            "planned": self.paired.planned,
            "missing": dict(self.paired.missing),
            "broken": dict(broken),
            "basis": self.basis,
            "equal": list(self.paired.equal),
            "ratios": dict(self.paired.ratios),
            "width_p": self.width_p,
            "depends_on_width": self.depends_on_width,
            "changes_sign": bool(self.turns[0]),
            "widths": self._widths(),
        }

    def _widths(self) -> list[dict[str, Any]]:
        assert self.difference is not None
        found = self.difference
        return [
            {
                "width_multiplier": float(width),
                "difference": float(mean),
                "interval": None if np.isnan(bounds).any() else tuple(map(float, bounds)),
            }
            for width, mean, bounds in zip(
                found.widths, found.by_width, found.intervals, strict=True
            )
        ]


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a sweep: by axis, those at tuned rates first."""

    pairs: tuple[Comparison, ...] = ()
    sizes: bool = False  # whether the sweep has several model sizes, which are not compared

    @property
    def notes(self) -> list[str]:
        """What is not compared, and what the comparisons hold for, in sentences."""
        told = []
        if self.pairs and not all(pair.groups.tuned for pair in self.pairs):
            told.append(
                "A comparison holds for the learning rate at which it was run, unless the rates "
                "are tuned: another group may have another best rate."
            )
        if self.pairs and self.sizes:
            told.append("Groups that differ in their model size, d_model, are not compared.")
        return told

    @property
    def judged(self) -> int:
        """How many comparisons have an interval: the family that the rate of 10 % is shared by."""
        return sum(pair.interval is not None for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return `comparisons` of recommendation.json."""
        return {
            "confidence": CONFIDENCE,
            "simultaneous_over": self.judged,
            "notes": self.notes,
            "pairs": [pair.to_dict() for pair in self.pairs],
        }


def _ratio(low: float, middle: float, high: float) -> str:
    """`x1.33`, or `x1.21 to x1.33` where the pairs differ."""
    ends = f"x{low:.2f}", f"x{high:.2f}"
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _joined(words: Sequence[str] | Mapping[str, Any]) -> str:
    """`a, b and c`."""
    listed = list(words)
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
