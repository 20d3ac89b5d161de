"""What the spectra of one group say: the rank laws, their asymmetry, and where growth ends.

Only cells with nothing held equal enter (the same d_model, depth and settings while D grows),
and of these only runs that completed: a collapsed layer follows no law, and is counted instead.
The loss of the same cells has a law too, the width law: how much a model gains by its FFN alone,
parameters growing with it. It has no floor, so its exponent is that of the widths measured.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.power_law import (
    LocalElasticity,
    PowerLaw,
    Refusal,
    fit_asymmetry,
    fit_power_law,
    local_elasticity,
    per_width,
)
from analysis.laws.saturation import Saturation, Untestable, judge_saturation
from analysis.tables.sweep_tables import holding

#: Ranks with a law of their own.
RANKS = ("soft_rank", "hard_rank", "edim")
#: d ln eDim / d ln D below which widening is called over: twice the width for 19 % more eDim.
PLATEAU = 0.25
#: The stop and the headline agree when they lie within this factor of each other.
AGREEMENT_FACTOR = 1.5


@dataclass(frozen=True)
class SpectralStop:
    """The width from which on neither eDim nor hard rank grows. Beside the verdict, no veto."""

    multiplier: float | None  # None: not within the grid, or not measured
    measured: bool
    sentence: str

    def agrees(self, headline: float | None) -> bool | None:
        """Whether it is where the loss says; None where either is not known."""
        if headline is None or not self.measured:
            return None
        if self.multiplier is None:
            return False
        distance = abs(np.log(self.multiplier / headline))
        return bool(distance <= np.log(AGREEMENT_FACTOR) + 1e-9)


@dataclass(frozen=True)
class SpectralEvidence:
    """Laws and local elasticities over the cells of one group in which only D grows."""

    used: pd.DataFrame  # rows of `SweepTables.trials` that the laws rest on
    left_out: pd.DataFrame  # completed or not, with a column `why`
    laws: Mapping[str, PowerLaw | Refusal]  # by RANKS, and "asymmetry"
    width_law: PowerLaw | Refusal  # of the final held-out loss; its exponent is negative
    saturation: Mapping[str, Saturation | Untestable]  # by RANKS, and "val_loss"
    elasticity: Mapping[str, LocalElasticity | Refusal]  # of edim and hard_rank
    stop: SpectralStop

    @property
    def excluded(self) -> dict[str, int]:
        """Cells left out, by reason."""
        return dict(Counter(self.left_out["why"]))

    @property
    def utilisation(self) -> dict[str, PowerLaw | Refusal]:
        """The laws of soft and hard rank over D."""
        laws = {name: self.laws[name] for name in ("soft_rank", "hard_rank")}
        return {
            name.replace("rank", "utilisation"): per_width(law)
            if isinstance(law, PowerLaw)
            else law
            for name, law in laws.items()
        }


def judge_spectra(trials: pd.DataFrame) -> SpectralEvidence:
    """Fit the laws of one group of `SweepTables.trials`."""
    free = holding(trials, "none")
    d_model = _d_model(free)
    free = free.assign(why=[_why_not(trial, d_model) for _, trial in free.iterrows()])
    used, left_out = free[free["why"] == ""], free[free["why"] != ""]
    laws: dict[str, PowerLaw | Refusal] = {
        name: fit_power_law(used["D"], used[name], used["replicate"]) for name in RANKS
    }
    laws["asymmetry"] = fit_asymmetry(
        used["D"], used["soft_rank"], used["hard_rank"], used["replicate"]
    )
    saturation = {
        name: judge_saturation(used["D"], used[name], used["replicate"])
        for name in (*RANKS, "val_loss")
    }
    elasticity = {
        name: local_elasticity(used["D"], used[name], used["replicate"])
        for name in ("edim", "hard_rank")
    }
    return SpectralEvidence(
        used=used,
        left_out=left_out,
        laws=laws,
        width_law=fit_power_law(used["D"], used["val_loss"], used["replicate"]),
        saturation=saturation,
        elasticity=elasticity,
        stop=_stop(elasticity, d_model),
    )


def _d_model(free: pd.DataFrame) -> float:
    """The d_model that most of the cells have, the smallest of several; NaN without cells."""
    usual = free["d_model"].mode()
    return float(usual.iloc[0]) if len(usual) else float("nan")


def _why_not(trial: "pd.Series[Any]", d_model: float) -> str:
    """Why a cell cannot enter a law; empty where it does."""
    if trial["state"] != "completed":
        return str(trial["state"])
    if not trial["uniform_width"]:
        return "layers of different width"
    if not trial["snapshots"]:
        return "no spectra"
    if trial["d_model"] != d_model:
        return f"d_model is not {d_model:g}"
    return ""


def _stop(elasticity: Mapping[str, LocalElasticity | Refusal], d_model: float) -> SpectralStop:
    edim, hard = elasticity["edim"], elasticity["hard_rank"]
    if isinstance(edim, Refusal) or isinstance(hard, Refusal):
        return SpectralStop(None, False, "too few widths with spectra to see a plateau")
    if edim.noise_from is None or hard.noise_from is None:
        return SpectralStop(
            None, False, "too few widths and replicates to give the growth of eDim an interval"
        )
    stop = None
    for wide, tall in zip(reversed(edim.steps), reversed(hard.steps), strict=True):
        assert wide.interval is not None
        assert tall.interval is not None
        if wide.interval[1] >= PLATEAU or tall.interval[1] >= PLATEAU:
            break
        stop = wide.low / d_model
    top = edim.top
    assert top.interval is not None
    growth = (
        f"d ln eDim / d ln D at the widest layer is {top.value:.2f} "
        f"[{top.interval[0]:.2f}, {top.interval[1]:.2f}]"
    )
    if stop is None:
        return SpectralStop(
            None, True, f"no plateau of eDim and hard rank within the grid: {growth}"
        )
    return SpectralStop(
        stop, True, f"eDim and hard rank are on a plateau from {stop:.3g}x on: {growth}"
    )
