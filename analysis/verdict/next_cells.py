"""What to run next: the cells that would turn a refusal into a verdict, and their cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.refusal import Refusal
from analysis.settings import WIDTHS_WITH_ONE_REPLICATE
from analysis.verdict.differences import NotComparable
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.verdict.loss_over_width import EDGE_SHARE, LossCurve
from analysis.verdict.trained_enough import Training
from analysis.verdict.tuned_rate import AXIS, TunedTrials
from analysis.wording import axis_of, duration, flops, plural
from trialstore.trial_state import WITHOUT_RESULT

#: Replicates to run: with fewer, differing slopes of replicates are seen too rarely.
REPLICATES = 3
#: Lower learning rates to try where training is unstable, as shares of the rate that was run.
LOWER_RATES = (0.5, 0.25)


@dataclass(frozen=True)
class NextCells:
    """A grid to add to a sweep file, or that is in it already, and the cost of its new cells."""

    why: str  # a clause without a final full stop
    match: tuple[str, ...]
    grid: Mapping[str, list[Any]]  # axis -> values
    trials: int  # to be trained
    flops: float  # of all these trials
    seconds: float  # on one device, at the rate of the finished trials; NaN without any
    planned: bool = False  # whether the sweep file has these cells already

    def to_yaml(self) -> str:
        """Return the cells as a piece of a sweep file; empty if the sweep file has them already."""
        if self.planned:
            return ""
        content = {"match": list(self.match), "grid": dict(self.grid)}
        return str(yaml.safe_dump(content, default_flow_style=None, sort_keys=False, width=80))

    @property
    def cost(self) -> str:
        """The cost in a few words: `7 trials, 2.8e12 FLOPs, 26 min`."""
        time = duration(self.seconds) if np.isfinite(self.seconds) else "unknown time"
        return f"{plural(self.trials, 'trial')}, {flops(self.flops)}, {time}"

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `run_next` in recommendation.json."""
        return {
            "why": self.why,
            "hold": list(self.match),
            "grid": dict(self.grid),
            "trials": self.trials,
            "flops": self.flops,
            "seconds": self.seconds,
            "planned": self.planned,
        }


def missing_cells(trials: pd.DataFrame, group: Mapping[str, Any], rate: float) -> list[NextCells]:
    """Return the planned cells of a group without a result, if there are any.

    Args:
        trials: rows of `SweepTables.trials` of the group.
        group: axis -> value.
        rate: device seconds per FLOP.
    """
    missing = trials[trials["state"].isin(WITHOUT_RESULT)]
    if missing.empty:
        return []
    counts = missing["state"].value_counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    failed = " with --retry-failed" if "failed" in counts.index else ""
    why = (
        f"{plural(len(missing), 'planned cell')} without a result ({states}): repeat "
        f"`widthlab run`{failed}"
    )
    return [_in_the_file(why, missing, group, rate)]


def matched_cells(
    trials: pd.DataFrame, group: Mapping[str, Any], rate: float, reference: float
) -> list[NextCells]:
    """Return cells of equal budget for a group that has none, at enough widths for a verdict.

    Args:
        trials: rows of `SweepTables.trials` of the group.
        group: axis -> value.
        rate: device seconds per FLOP.
        reference: the multiplier whose budget the cells share, so each costs as much as its cell.
    """
    distance = np.abs(np.log(trials["width_multiplier"] / reference))
    widths, seeds = _typed(trials), sorted({int(r) for r in trials["replicate"]})
    widths += _between(widths, WIDTHS_WITH_ONE_REPLICATE - len(widths))
    return [
        _priced(
            "the loss optimum needs cells of equal budget: add `params` to `match`",
            ("params",),
            group,
            sorted(widths),
            seeds,
            trials[distance == distance.min()],
            rate,
        )
    ]


def for_refusal(evidence: BudgetEvidence, group: Mapping[str, Any], rate: float) -> list[NextCells]:
    """Return the widths, the replicates or both that could remove the obstacle to a verdict.

    Args:
        evidence: the deciding budget, at which no width is recommended.
        group: axis -> value, or a tuple of values.
        rate: device seconds per FLOP.
    """
    cells, optimum = evidence.planned, evidence.optimum
    widths, seeds = _typed(cells), sorted({int(r) for r in cells["replicate"]})
    more_seeds = _next_seeds(seeds)

    def add(why: str, at: Sequence[float], replicates: Sequence[int]) -> NextCells:
        return _priced(why, (evidence.matching,), group, at, replicates, cells, rate)

    narrower = _scaled(widths[0], (0.5, 0.75)) if widths else []
    if isinstance(optimum, Refusal):
        if evidence.planned.empty:  # every cell has layers of different width
            return []
        ended = cells["state"].isin(["collapsed", "diverged"]).groupby(cells["width_multiplier"])
        if ended.all().all():
            return [add("every width collapsed or diverged: try narrower ones", narrower, seeds)]
        wanted = WIDTHS_WITH_ONE_REPLICATE - len(widths) + int(ended.all().sum())
        if wanted <= 0:
            return []  # enough widths are planned, and `missing_cells` lists them
        return [
            add(
                f"a verdict with one replicate needs {WIDTHS_WITH_ONE_REPLICATE} widths",
                _between(widths, wanted),
                seeds,
            )
        ]
    asked = []
    beyond = _beyond(widths, optimum)
    if beyond:
        asked.append(add("the optimum may lie beyond the grid: extend it", beyond, seeds))
    more = {
        "uncertain": "the noise is too large",
        "one replicate": "one replicate does not show the noise of each width",
        "noise in doubt": "the noise is in doubt",
        "single runs": "the optimum rests on single runs",
        "many looks": "several looks or groups need more evidence",
    }
    if optimum.obstacle in more:
        why = f"{more[optimum.obstacle]}: add {plural(len(more_seeds), 'replicate')}"
        asked.append(add(why, widths, more_seeds))
    if optimum.obstacle == "nothing admissible":
        asked.append(add("every width collapsed or diverged: try narrower ones", narrower, seeds))
    return asked


def trained_anew(
    refused: NotComparable, trials: pd.DataFrame, group: Mapping[str, Any], rate: float
) -> list[NextCells]:
    """Return the cells whose trials differ from most others in more than their width.

    Args:
        refused: the refusal of the judgement.
        trials: rows of `SweepTables.trials` of the group.
        group: axis -> value, or a tuple of values.
        rate: device seconds per FLOP.
    """
    odd = trials[trials["id"].isin(refused.odd)].drop_duplicates("id")
    why = f"{plural(len(odd), 'trial')} must be trained anew to equal the others in {refused.names}"
    return [_in_the_file(why, odd, group, rate)]


def third_rate(trials: pd.DataFrame, group: Mapping[str, Any], rate: float) -> list[NextCells]:
    """Return a third learning rate beyond the better of two; nothing without equal budgets.

    Args:
        trials: rows of `SweepTables.trials` at both rates, and alike in all other axes.
        group: axis -> value.
        rate: device seconds per FLOP.
    """
    cells = trials[[any(own != "none" for own in holds) for holds in trials["holds"]]]
    if cells.empty:
        return []
    low, high = np.sort(trials[AXIS].dropna().astype(float).unique())
    completed = cells[cells["state"] == "completed"]
    losses = completed.pivot_table(
        index=["D", "d_model", "replicate"], columns=AXIS, values="val_loss"
    ).reindex(columns=[low, high])
    # Without losses to compare, the smaller one: a larger one is likelier to diverge.
    larger = bool((losses[high] - losses[low]).mean() < 0)
    beyond = float(f"{high**2 / low if larger else low**2 / high:.3g}")
    seeds = sorted({int(r) for r in cells["replicate"]})
    holds = tuple(dict.fromkeys(h for held in cells["holds"] for h in held if h != "none"))
    why = (
        "a third learning rate gives one verdict, with every width at its own best rate: add "
        f"{beyond:g}"
    )
    wider = {**group, AXIS: beyond}
    return [_priced(why, holds, wider, _typed(cells), seeds, cells[cells[AXIS] == low], rate)]


def more_rates(
    tuned: TunedTrials, trials: pd.DataFrame, group: Mapping[str, Any], rate: float
) -> list[NextCells]:
    """Return learning rates beyond the grid, for widths whose best rate is at its edge.

    Args:
        tuned: the tuned rates of the group.
        trials: rows of `SweepTables.trials` of the group.
        group: axis -> value.
        rate: device seconds per FLOP.
    """
    asked = []
    rates = np.sort(trials[AXIS].dropna().astype(float).unique())
    seeds = sorted({int(r) for r in trials["replicate"]})
    for edge, more, beyond in (
        ("smallest", "smaller", rates[0] ** 2 / rates[1]),
        ("largest", "larger", rates[-1] ** 2 / rates[-2]),
    ):
        at = {(width.D, width.d_model) for width in tuned.widths if width.edge == edge}
        if not at:
            continue
        here = [pair in at for pair in zip(trials["D"], trials["d_model"], strict=True)]
        cells = trials[np.array(here) & (trials[AXIS] == rates[0])]
        holds = tuple(dict.fromkeys(h for held in cells["holds"] for h in held if h != "none"))
        why = f"the best learning rate is the {edge} of the grid: add a {more} one"
        wider = {**group, AXIS: float(f"{beyond:.3g}")}
        asked.append(_priced(why, holds, wider, _typed(cells), seeds, cells, rate))
    return asked


def lower_rates(
    evidence: BudgetEvidence,
    trials: pd.DataFrame,
    group: Mapping[str, Any],
    rate: float,
    training: Training,
) -> list[NextCells]:
    """Return lower learning rates for a group whose training is unstable, with one replicate.

    One replicate shows whether the spikes are gone. Nothing is returned where the sweep has a
    lower rate already, or where the group has several rates: no grid can scale these.

    Args:
        evidence: the deciding budget.
        trials: rows of `SweepTables.trials` of the whole sweep.
        group: axis -> value, or a tuple of values.
        rate: device seconds per FLOP.
        training: how the trials of the group were trained.
    """
    if len(training.rates) != 1:
        return []
    cells, tried = evidence.planned, training.rates[0]
    on_grid = trials[AXIS].dropna().astype(float) if AXIS in trials else pd.Series(dtype=float)
    if (on_grid < tried).any():
        return []
    lower = tuple(float(f"{tried * share:.3g}") for share in LOWER_RATES)
    why = (
        f"the learning rate {tried:.3g} needs attention first: try "
        f"{' and '.join(f'{value:g}' for value in lower)}"
    )
    seed = min(int(r) for r in cells["replicate"])
    at = {**group, AXIS: lower}
    return [_priced(why, (evidence.matching,), at, _typed(cells), [seed], cells, rate)]


def seconds_per_flop(trials: pd.DataFrame) -> float:
    """Return device seconds per FLOP of the finished trials; NaN where none has finished."""
    ended = trials[trials["seconds_total"].notna() & (trials["flops"] > 0)]
    if ended.empty:
        return float("nan")
    return float(ended["seconds_total"].sum() / ended["flops"].sum())


def _in_the_file(why: str, cells: pd.DataFrame, group: Mapping[str, Any], rate: float) -> NextCells:
    """Cells that the sweep file has already, to be trained or trained anew."""
    total = float(cells["flops"].sum(skipna=False))
    holds = tuple(dict.fromkeys(own for held in cells["holds"] for own in held))
    seeds = sorted({int(r) for r in cells["replicate"]})
    grid = _grid(group, _typed(cells), seeds)
    return NextCells(why, holds, grid, len(cells), total, total * rate, planned=True)


def _beyond(widths: Sequence[float], curve: LossCurve) -> list[float]:
    """Multipliers to add beyond the edges at which the optimum may be."""
    added: list[float] = []
    if curve.obstacle == "lower edge" or curve.below > EDGE_SHARE:
        added += _scaled(widths[0], (0.5, 0.75))
    if curve.obstacle == "upper edge" or curve.above > EDGE_SHARE:
        added += _scaled(widths[-1], (1.5, 2.0))
    return added


def _scaled(multiplier: float, factors: Sequence[float]) -> list[float]:
    return [float(f"{multiplier * factor:.3g}") for factor in factors]


def _between(widths: Sequence[float], count: int) -> list[float]:
    """`count` new multipliers, each at the geometric middle of the widest remaining gap."""
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
    """New seeds: enough for REPLICATES replicates, or as many again as there are."""
    wanted = max(REPLICATES - len(seeds), len(seeds))
    start = max(seeds, default=-1) + 1
    return list(range(start, start + wanted))


def _priced(
    why: str,
    match: tuple[str, ...],
    group: Mapping[str, Any],
    widths: Sequence[float],
    seeds: Sequence[int],
    like: pd.DataFrame,
    rate: float,
) -> NextCells:
    """Cells priced by interpolation: at one budget the head's share still depends on d_model."""
    grid = _grid(group, widths, seeds)
    known = like.groupby("width_multiplier")["flops"].mean().sort_index()
    each = np.interp(np.log(widths), np.log(known.index), known) if len(known) else [np.nan]
    trials = prod(len(values) for values in grid.values())
    total = float(np.mean(each)) * trials
    return NextCells(why, match, grid, trials, total, total * rate)


def _typed(trials: pd.DataFrame) -> list[float]:
    """Multipliers as typed in the sweep file, so that equal cells get equal ids; else measured."""
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
