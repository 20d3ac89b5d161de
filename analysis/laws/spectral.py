"""The spectral evidence of one group: rank laws, their asymmetry, and the end of growth.

The laws rest on cells at fixed d_model (`match: none`), where only D changes, and on completed
runs: a collapsed layer follows no law, so it is counted instead.

The loss of the same cells has a law too, the width law: the gain from a wider FFN alone, with
parameters growing. It has no irreducible loss, so its exponent holds for the measured widths only.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.power_law import (
    LocalElasticity,
    PowerLaw,
    fit_asymmetry,
    fit_power_law,
    local_elasticity,
    per_width,
)
from analysis.laws.saturation import Saturation, judge_saturation
from analysis.refusal import Refusal
from analysis.tables.sweep_tables import matched
from analysis.wording import bracketed, multiple

#: Columns of `SweepTables.trials` that get a rank law, and their names in output. The hard rank is
#: the debiased one (`analysis.sampling_bias`); the recorded one stands beside it.
RANK_NAMES = {
    "soft_rank": "soft rank",
    "hard_rank_debiased": "hard rank",
    "edim": "eDim",
    "hard_rank": "raw hard rank",
}
RANKS = tuple(RANK_NAMES)
#: Of the two ranks as recorded, both too low: most of their biases cancels (docs/spectra.md).
ASYMMETRY_NAME = "soft / raw hard rank"
#: Growth counts as ended below this d ln eDim / d ln D: twice the width gives 19 % more eDim.
PLATEAU = 0.25
#: The spectral stop agrees with the recommended width within this factor.
AGREEMENT_FACTOR = 1.5


@dataclass(frozen=True)
class SpectralStop:
    """The smallest width beyond which neither eDim nor hard rank (debiased) grows.

    It vetoes nothing.
    """

    multiplier: float | None  # D / d_model; None: none is established within the grid
    sentence: str

    def agrees(self, multiplier: float) -> bool:
        """Return whether the stop is within AGREEMENT_FACTOR of a width chosen by the loss."""
        if self.multiplier is None:
            return False
        distance = abs(np.log(self.multiplier / multiplier))
        return bool(distance <= np.log(AGREEMENT_FACTOR) + 1e-9)


@dataclass(frozen=True)
class SpectralEvidence:
    """Laws and local elasticities over the cells of one group at fixed d_model."""

    used: pd.DataFrame  # rows of `SweepTables.trials` that the laws are fitted to
    left_out: pd.DataFrame  # the other cells at fixed d_model, with a column `why`
    laws: Mapping[str, PowerLaw | Refusal]  # by RANKS, and "asymmetry"
    width_law: PowerLaw | Refusal  # of the final held-out loss; its exponent is negative
    saturation: Mapping[str, Saturation | Refusal]  # by RANKS, and "val_loss"
    elasticity: Mapping[str, LocalElasticity | Refusal]  # by RANKS but soft_rank
    stop: SpectralStop | Refusal
    refused: Refusal | None = None  # why no law may be fitted, though there are cells

    @property
    def excluded(self) -> dict[str, int]:
        """Reason -> cells left out."""
        return dict(Counter(self.left_out["why"]))

    @property
    def no_cells(self) -> Refusal | None:
        """Why there is no law at all; None where there are cells that a law may be fitted to."""
        return _no_cells(self.used, self.left_out) or self.refused

    @property
    def utilisation(self) -> dict[str, PowerLaw | Refusal]:
        """The laws of soft rank / D, hard rank / D and raw hard rank / D."""
        laws = {name: self.laws[name] for name in RANKS if name != "edim"}
        return {
            name.replace("rank", "utilisation"): per_width(law)
            if isinstance(law, PowerLaw)
            else law
            for name, law in laws.items()
        }


def judge_spectra(
    trials: pd.DataFrame, compare: Callable[[pd.DataFrame], Refusal | None] = lambda used: None
) -> SpectralEvidence:
    """Fit the laws of one group.

    Args:
        trials: rows of `SweepTables.trials` of one group, whatever their cells hold equal.
        compare: refuses rows that differ in more than their width.

    Returns:
        The laws, each of them a refusal where the cells are too few.
    """
    fixed = matched(trials, "none")
    d_model = _d_model(fixed)
    fixed = fixed.assign(why=[_why_not(trial, d_model) for _, trial in fixed.iterrows()])
    used, left_out = fixed[fixed["why"] == ""], fixed[fixed["why"] != ""]
    refused = compare(used)
    missing = _no_cells(used, left_out) or refused
    width, replicate = used["D"], used["replicate"]
    laws: dict[str, PowerLaw | Refusal] = {
        name: missing or fit_power_law(width, used[name], replicate) for name in RANKS
    }
    laws["asymmetry"] = missing or fit_asymmetry(
        width, used["soft_rank"], used["hard_rank"], replicate
    )
    saturation = {
        name: missing or judge_saturation(width, used[name], replicate)
        for name in (*RANKS, "val_loss")
    }
    elasticity = {
        name: missing or local_elasticity(width, used[name], replicate)
        for name in RANKS
        if name != "soft_rank"
    }
    return SpectralEvidence(
        used=used,
        left_out=left_out,
        laws=laws,
        width_law=missing or fit_power_law(width, used["val_loss"], replicate),
        saturation=saturation,
        elasticity=elasticity,
        stop=_stop(elasticity, d_model),
        refused=refused,
    )


def _no_cells(used: pd.DataFrame, left_out: pd.DataFrame) -> Refusal | None:
    if len(used):
        return None
    if left_out.empty:
        return Refusal("the sweep has no cells at fixed d_model", "add `none` to `match`")
    counts = ", ".join(f"{count} {why}" for why, count in Counter(left_out["why"]).items())
    return Refusal(f"no cell at fixed d_model can be used ({counts})")


def _d_model(fixed: pd.DataFrame) -> float:
    """The d_model of most cells, the smallest where several are as frequent; NaN without cells."""
    usual = fixed["d_model"].mode()
    return float(usual.iloc[0]) if len(usual) else float("nan")


def _why_not(trial: "pd.Series[Any]", d_model: float) -> str:
    """Why a cell cannot enter a law; an empty string if it can."""
    if trial["state"] != "completed":
        return str(trial["state"])
    if not trial["uniform_width"]:
        return "layers of different width"
    if not trial["snapshots"]:
        return "no spectra"
    if trial["d_model"] != d_model:
        return f"d_model is not {d_model:g}"
    return ""


def _stop(
    elasticity: Mapping[str, LocalElasticity | Refusal], d_model: float
) -> SpectralStop | Refusal:
    edim, hard = elasticity["edim"], elasticity["hard_rank_debiased"]
    if isinstance(edim, Refusal):
        return edim
    if isinstance(hard, Refusal):
        return hard
    if edim.noise_from is None or hard.noise_from is None:
        return Refusal(
            "the growth of eDim has no interval", "run five widths, or more replicates of each"
        )
    if [step.low for step in edim.steps] != [step.low for step in hard.steps]:
        return Refusal("some width has an eDim and no debiased hard rank", "raise `spectra.tokens`")
    stop = None
    for wide, tall in zip(reversed(edim.steps), reversed(hard.steps), strict=True):
        assert wide.interval is not None
        assert tall.interval is not None
        if wide.interval[1] >= PLATEAU or tall.interval[1] >= PLATEAU:
            break
        stop = wide.low / d_model
    top = edim.top
    assert top.interval is not None
    growth = f"d ln eDim / d ln D at the largest width is {top.value:.2f} {bracketed(top.interval)}"
    if stop is None:
        return SpectralStop(None, f"no plateau of eDim and hard rank is established: {growth}")
    return SpectralStop(
        stop, f"eDim and hard rank are on a plateau from {multiple(stop)} up: {growth}"
    )
