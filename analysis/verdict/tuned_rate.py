"""Tune the learning rate per width, where the rate is an axis of the sweep.

Per width, the mean loss over replicates selects the best rate of the grid. A parabola in ln lr
through this rate and its two neighbours gives the tuned rate, and each replicate's own parabola its
loss there. The mean selects the rate, so that the luck of one replicate does not. A width whose
best rate is the smallest or the largest enters with its loss there. It is flagged, because a rate
beyond the grid may be better, unless the width collapsed or diverged at a rate of the grid beyond.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.replicates import Floats
from analysis.settings import MINIMUM_RATES
from analysis.verdict.equal_budget import BUDGETS

AXIS = "learning_rate"
_CELL = ["D", "d_model", "base_d_model"]


@dataclass(frozen=True)
class TunedWidth:
    """The tuned learning rate of one width at an equal budget."""

    width_multiplier: float
    D: int
    d_model: int
    learning_rate: float  # tuned, between the rates of the grid
    edge: Literal["smallest", "largest"] | None  # set if the best rate is at this edge of the grid
    rates: tuple[float, ...]  # rates that every usable replicate completed
    left_out: int  # runs that did not complete, or whose rate another replicate lacks

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `learning_rates` in recommendation.json."""
        return asdict(self)


@dataclass(frozen=True)
class TunedTrials:
    """Trials of one group with every width at its tuned learning rate, for `judge_losses`."""

    trials: pd.DataFrame  # one row per width and replicate of equal budget; val_loss is tuned
    widths: tuple[TunedWidth, ...]
    common_rate: float  # rate of the grid nearest to the median tuned one, for the rank laws

    @property
    def edges(self) -> tuple[TunedWidth, ...]:
        """Widths whose best rate is at an edge of the grid."""
        return tuple(width for width in self.widths if width.edge is not None)


def is_tunable(trials: pd.DataFrame) -> bool:
    """Return whether trials have at least MINIMUM_RATES learning rates."""
    return AXIS in trials and trials[AXIS].nunique() >= MINIMUM_RATES


def tune(trials: pd.DataFrame, *, equal_budgets: bool = True) -> TunedTrials:
    """Tune the learning rate of every width of one group.

    Args:
        trials: rows of `SweepTables.trials` of the group, with several learning rates.
        equal_budgets: whether to tune only cells of equal budget.
    """
    held = trials
    if equal_budgets:
        held = trials[[any(own in BUDGETS for own in holds) for holds in trials["holds"]]]
    rows: list[pd.DataFrame] = []
    widths: list[TunedWidth] = []
    for _, cells in held.groupby(_CELL, sort=True):
        tuned, width = _tune_width(cells)
        rows.append(tuned)
        if width is not None:
            widths.append(width)
    every = pd.concat(rows, ignore_index=True) if rows else held
    return TunedTrials(every, tuple(widths), _common_rate(trials, widths))


def _tune_width(cells: pd.DataFrame) -> tuple[pd.DataFrame, TunedWidth | None]:
    """One row per replicate of a width, and its tuned rate; None if no run can be used."""
    usable = cells[(cells["state"] == "completed") & np.isfinite(cells["val_loss"])]
    if usable.empty:
        return cells.drop_duplicates("replicate"), None
    table = usable.pivot_table(index="replicate", columns=AXIS, values="val_loss")
    # Only rates that every replicate with a completed run has are comparable.
    table = table.sort_index(axis=1).dropna(axis="columns")
    if table.empty:  # no rate is common to all: use the replicate with the most rates
        table = usable.pivot_table(index="replicate", columns=AXIS, values="val_loss")
        fullest = table.notna().sum(axis=1).idxmax()
        table = table.loc[[fullest]].dropna(axis="columns")
    rates = table.columns.to_numpy(float)
    losses, rate, edge = _at_best(rates, table.to_numpy(float))
    if edge is not None and _breaks_beyond(cells, rate, edge):
        edge = None  # the grid covers rates beyond, and they fail
    nearest = rates[np.argmin(np.abs(np.log(rates / rate)))]
    like = usable[(usable[AXIS] == nearest) & usable["replicate"].isin(table.index)]
    like = like.drop_duplicates("replicate").set_index("replicate").loc[table.index]
    tuned = like.assign(val_loss=losses).reset_index()[list(cells.columns)]
    # Keep a row of every replicate without a completed run: its state can exclude the width.
    ended = cells.groupby("replicate")["state"].agg(lambda states: "completed" in set(states))
    lost = cells[~cells["replicate"].map(ended)].drop_duplicates("replicate")
    width = TunedWidth(
        width_multiplier=float(like["width_multiplier"].iloc[0]),
        D=int(like["D"].iloc[0]),
        d_model=int(like["d_model"].iloc[0]),
        learning_rate=rate,
        edge=edge,
        rates=tuple(float(value) for value in rates),
        left_out=len(cells) - table.size,
    )
    return pd.concat([tuned, lost]) if len(lost) else tuned, width


def _at_best(
    rates: Floats, losses: Floats
) -> tuple[Floats, float, Literal["smallest", "largest"] | None]:
    """Losses [R] at the tuned rate, that rate, and its edge; from [R, L] at ascending rates [L]."""
    mean = losses.mean(axis=0)
    best = int(np.argmin(mean))
    if best == 0:
        return losses[:, 0], float(rates[0]), "smallest"
    if best == len(rates) - 1:
        return losses[:, -1], float(rates[-1]), "largest"
    near = slice(best - 1, best + 2)
    x = np.log(rates[near] / rates[best])
    solve = np.linalg.inv(np.vander(x, 3))
    a, b, _ = solve @ mean[near]
    vertex = float(-b / (2 * a)) if a > 0 else 0.0  # a = 0: three equal losses
    each = losses[:, near] @ solve.T
    return each @ np.array([vertex**2, vertex, 1.0]), float(rates[best] * np.exp(vertex)), None


def _breaks_beyond(cells: pd.DataFrame, rate: float, edge: Literal["smallest", "largest"]) -> bool:
    """Whether a run at a rate beyond the best one collapsed or diverged."""
    beyond = cells[AXIS] > rate if edge == "largest" else cells[AXIS] < rate
    return bool(cells.loc[beyond, "state"].isin(["collapsed", "diverged"]).any())


def _common_rate(trials: pd.DataFrame, widths: Sequence[TunedWidth]) -> float:
    """The rate of the grid nearest to the median of the tuned ones."""
    rates = np.sort(trials[AXIS].dropna().astype(float).unique())
    if not widths:
        return float(rates[len(rates) // 2])
    middle = np.median(np.log([width.learning_rate for width in widths]))
    return float(rates[np.argmin(np.abs(np.log(rates) - middle))])
