"""Tables of a made-up sweep, straight as a frame of trials, for comparisons between groups."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables.aggregation import Aggregation
from analysis.tables.sweep_tables import SweepTables

Loss = Callable[[Mapping[str, Any], np.random.Generator], float]
WIDTHS = (1.0, 2.0, 4.0, 8.0)


def noisy(effects: Mapping[Any, float], noise: float = 0.003) -> Loss:
    """A loss that falls with the width; seeds have luck, and some values of axes an effect."""

    def loss(cell: Mapping[str, Any], rng: np.random.Generator) -> float:
        own = sum(effects.get(value, 0.0) for value in cell.values() if isinstance(value, str))
        luck = 0.05 * np.sin(10.0 * cell["replicate"])
        return float(3.5 - 0.1 * np.log(cell["m"]) + luck + own + noise * rng.standard_normal())

    return loss


def tables(
    loss: Loss,
    axes: Mapping[str, Sequence[Any]],
    *,
    widths: Sequence[float] = WIDTHS,
    seeds: int = 3,
    holds: tuple[str, ...] = ("none",),
    config: Mapping[str, Any] | None = None,
    change: Callable[[dict[str, Any]], Mapping[str, Any] | None] = lambda row: {},
) -> SweepTables:
    """A sweep over `axes`. `change` returns what is different in a trial; None leaves it out."""
    rng, rows = np.random.default_rng(7), []
    for values in itertools.product(*axes.values(), widths, range(seeds)):
        *own, m, seed = values
        cell = {**dict(zip(axes, own, strict=True)), "m": m, "replicate": seed}
        row = {
            **cell,
            "id": "-".join(map(str, values)),
            "state": "completed",
            "holds": holds,
            "D": 64 * m,
            "d_model": 64.0,
            "base_d_model": 64.0,
            "uniform_width": True,
            "width_multiplier": m,
            "typed_multiplier": m,
            "val_loss": loss(cell, rng),
            "tokens": 1e6,
            "flops": 1e12 * m,
            "parameters_non_embedding": 1e5 * m,
            "seconds_training": 10.0 * m,
            "layout": '{"device": "cpu"}',
        }
        changed = change(row)
        if changed is not None:
            rows.append(row | dict(changed))
    return SweepTables(
        name="made-up",
        url="nowhere",
        config={"grid": {name: list(values) for name, values in axes.items()}, **(config or {})},
        group_axes=tuple(axes),
        aggregation=Aggregation.of({}),
        trials=pd.DataFrame(rows),
        spectra=pd.DataFrame(),
        curves=pd.DataFrame(),
        eigenvalues=pd.DataFrame(),
        versions={},
    )


PLACEMENTS = {"norm": ["pre", "lns"]}
LNS_AHEAD = noisy({"lns": -0.03})
