"""What to run next: the cells that would settle what could not be said, and their cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.settings import WIDTHS_WITH_ONE_REPLICATE
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.verdict.loss_optimum import LossCurve, Unfitted
from analysis.verdict.tuned_rate import AXIS, TunedTrials
from analysis.wording import axis_of, duration, flops, plural
from trialstore.trial_state import WITHOUT_RESULT

#: Replicates worth having: with fewer there is no interval over replicates.
REPLICATES = 3
#: Share of resamples at an edge of the grid from which on the grid should be extended there.
EDGE_SHARE = 0.10


@dataclass(frozen=True)
class NextCells:
    """A grid that can be pasted into a sweep file, or is in it, and what its new cells cost."""

    why: str
    hold: tuple[str, ...]
    grid: Mapping[str, list[Any]]
    trials: int  # that do not exist yet
    flops: float  # of all of them
    seconds: float  # of one device, at the rate of the trials that have finished; NaN if none has
    planned: bool = False  # the sweep file has them: nothing is to be added to it

    def to_yaml(self) -> str:
        """What is to be added, as a piece of a sweep file; empty for cells that it has."""
        if self.planned:
            return ""
        content = {"hold": list(self.hold), "grid": dict(self.grid)}
        return str(yaml.safe_dump(content, default_flow_style=None, sort_keys=False, width=80))

    @property
    def cost(self) -> str:
        """Size and time in a few words."""
        time = duration(self.seconds) if np.isfinite(self.seconds) else "time unknown"
        return f"{plural(self.trials, 'trial')}, {flops(self.flops)}, {time}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "why": self.why,
            "hold": list(self.hold),
            "grid": dict(self.grid),
            "trials": self.trials,
            "flops": self.flops,
            "seconds": self.seconds,
            "planned": self.planned,
        }


def missing_cells(trials: pd.DataFrame, group: Mapping[str, Any], rate: float) -> list[NextCells]:
    """The cells of a group that are planned and have no result. `rate` in seconds per FLOP."""
    missing = trials[trials["state"].isin(WITHOUT_RESULT)]
    if missing.empty:
        return []
    counts = missing["state"].value_counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    failed = " (failed ones with --retry-failed)" if "failed" in counts.index else ""
    total = float(missing["flops"].sum(skipna=False))
    holds = tuple(dict.fromkeys(hold for holds in missing["holds"] for hold in holds))
    return [
        NextCells(
            f"{plural(len(missing), 'planned cell')} without a result ({states}): run the sweep "
            f"again{failed}",
            holds,
            _grid(group, _typed(missing), sorted({int(r) for r in missing["replicate"]})),
            len(missing),
            total,
            total * rate,
            planned=True,
        )
    ]


def equal_budget_half(
    trials: pd.DataFrame, group: Mapping[str, Any], rate: float, reference: float
) -> list[NextCells]:
    """The half of the grid that the loss needs, for a group that has none of it, at no fewer widths
    than a verdict takes.

    Its cells cost what the cell of the `reference` multiplier costs, whose budget they share.
    """
    distance = np.abs(np.log(trials["width_multiplier"] / reference))
    widths, seeds = _typed(trials), sorted({int(r) for r in trials["replicate"]})
    widths += _between(widths, WIDTHS_WITH_ONE_REPLICATE - len(widths))
    return [
        _priced(
            "the loss optimum needs cells of equal budget: add params to hold",
            ("params",),
            group,
            sorted(widths),
            seeds,
            trials[distance == distance.min()],
            rate,
        )
    ]


def for_refusal(evidence: BudgetEvidence, group: Mapping[str, Any], rate: float) -> list[NextCells]:
    """More widths, more replicates, or both: what the obstacle calls for."""
    cells, optimum = evidence.planned, evidence.optimum
    widths, seeds = _typed(cells), sorted({int(r) for r in cells["replicate"]})
    more_seeds = _next_seeds(seeds)

    def add(why: str, at: Sequence[float], replicates: Sequence[int]) -> NextCells:
        return _priced(why, (evidence.hold,), group, at, replicates, cells, rate)

    narrower = _scaled(widths[0], (0.5, 0.75)) if widths else []
    if isinstance(optimum, Unfitted):
        if evidence.planned.empty:  # its layers differ in width in every cell
            return []
        ended = cells["state"].isin(["collapsed", "diverged"]).groupby(cells["width_multiplier"])
        if ended.all().all():
            return [add("every width broke down: try narrower ones", narrower, seeds)]
        wanted = WIDTHS_WITH_ONE_REPLICATE - len(widths) + int(ended.all().sum())
        if wanted <= 0:
            return []  # the widths are planned: what is missing is their results
        return [
            add(
                f"{WIDTHS_WITH_ONE_REPLICATE} widths allow a verdict with one replicate",
                _between(widths, wanted),
                seeds,
            )
        ]
    asked = []
    beyond = _beyond(widths, optimum)
    if beyond:
        asked.append(add("the optimum may lie beyond the grid: extend it", beyond, seeds))
    if optimum.obstacle == "uncertain":
        asked.append(
            add(
                f"the noise is too large: add {plural(len(more_seeds), 'replicate')}",
                widths,
                more_seeds,
            )
        )
    if optimum.obstacle == "all within tolerance" and not beyond:
        asked.append(
            add(
                f"widths within {optimum.tolerance:g} nats of each other are told apart by "
                f"{plural(len(more_seeds), 'replicate')} more, if at all",
                widths,
                more_seeds,
            )
        )
    if optimum.obstacle == "nothing admissible":
        asked.append(add("every width broke down: try narrower ones", narrower, seeds))
    return asked


def more_rates(
    tuned: TunedTrials, trials: pd.DataFrame, group: Mapping[str, Any], rate: float
) -> list[NextCells]:
    """Learning rates beyond the grid, for the widths whose best one is at its edge."""
    asked = []
    rates = np.sort(trials[AXIS].dropna().astype(float).unique())
    seeds = sorted({int(r) for r in trials["replicate"]})
    for edge, beyond in (
        ("smallest", rates[0] ** 2 / rates[1]),
        ("largest", rates[-1] ** 2 / rates[-2]),
    ):
        at = {(width.D, width.d_model) for width in tuned.widths if width.edge == edge}
        if not at:
            continue
        here = [pair in at for pair in zip(trials["D"], trials["d_model"], strict=True)]
        cells = trials[np.array(here) & (trials[AXIS] == rates[0])]
        holds = tuple(dict.fromkeys(h for held in cells["holds"] for h in held if h != "none"))
        why = f"the best learning rate is the {edge} of the grid: add one beyond it"
        wider = {**group, AXIS: float(f"{beyond:.3g}")}
        asked.append(_priced(why, holds, wider, _typed(cells), seeds, cells, rate))
    return asked


def seconds_per_flop(trials: pd.DataFrame) -> float:
    """Of the trials that have finished, device seconds over FLOPs; NaN where none has."""
    ended = trials[trials["seconds_total"].notna() & (trials["flops"] > 0)]
    if ended.empty:
        return float("nan")
    return float(ended["seconds_total"].sum() / ended["flops"].sum())


def _beyond(widths: Sequence[float], curve: LossCurve) -> list[float]:
    """Multipliers to add at the edges where the optimum may be."""
    added: list[float] = []
    if curve.obstacle == "lower edge" or curve.below > EDGE_SHARE:
        added += _scaled(widths[0], (0.5, 0.75))
    if curve.obstacle == "upper edge" or curve.above > EDGE_SHARE:
        added += _scaled(widths[-1], (1.5, 2.0))
    return added


def _scaled(multiplier: float, factors: Sequence[float]) -> list[float]:
    return [float(f"{multiplier * factor:.3g}") for factor in factors]


def _between(widths: Sequence[float], count: int) -> list[float]:
    """New multipliers, each in the middle (of the logarithm) of the widest gap left."""
    known = sorted(widths)
    if len(known) == 1:
        known = [known[0] / 2, known[0], known[0] * 2]
    added: list[float] = [m for m in known if m not in widths][:count]
    while len(added) < count:
        gap = int(np.argmax(np.diff(np.log(known))))
        middle = float(f"{np.sqrt(known[gap] * known[gap + 1]):.3g}")
        known.insert(gap + 1, middle)
        added.append(middle)
    return sorted(added)


def _next_seeds(seeds: Sequence[int]) -> list[int]:
    """Enough to reach three replicates, or to double those there are."""
    wanted = max(REPLICATES - len(seeds), len(seeds))
    start = max(seeds, default=-1) + 1
    return list(range(start, start + wanted))


def _priced(
    why: str,
    hold: tuple[str, ...],
    group: Mapping[str, Any],
    widths: Sequence[float],
    seeds: Sequence[int],
    like: pd.DataFrame,
    rate: float,
) -> NextCells:
    """Cost from cells of the same budget; the head's share of it still varies with d_model."""
    grid = _grid(group, widths, seeds)
    known = like.groupby("width_multiplier")["flops"].mean().sort_index()
    each = np.interp(np.log(widths), np.log(known.index), known) if len(known) else [np.nan]
    trials = prod(len(values) for values in grid.values())
    total = float(np.mean(each)) * trials
    return NextCells(why, hold, grid, trials, total, total * rate)


def _typed(trials: pd.DataFrame) -> list[float]:
    """Multipliers as the sweep file has them, so that the same cells get the same ids; achieved
    ones where it has none."""
    typed = trials["typed_multiplier"].fillna(trials["width_multiplier"].round(4))
    return sorted({float(m) for m in typed.dropna()})


def _grid(
    group: Mapping[str, Any], widths: Sequence[float], seeds: Sequence[int]
) -> dict[str, list[Any]]:
    axes = {
        axis_of(name): list(value) if isinstance(value, tuple) else [value]
        for name, value in group.items()
        if value is not None
    }
    return {**axes, "width_multiplier": list(widths), "seed": list(seeds)}
