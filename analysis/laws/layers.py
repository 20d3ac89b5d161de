"""Which layers deserve width: how fast the eDim of each grows with D, and a list of widths.

Each layer has a power law of its own, eDim_l ~ D^e_l, over the uniform widths of one group. Its
elasticity e_l is compared with that of all layers through the law of eDim_l over their geometric
mean, paired within trials. "widen" and "narrow" need two intervals of that difference to exclude
zero: the layer's own at 90 %, and one at 90 % for all layers together (Bonferroni) whose error is
pooled over the layers, for a single layer has too few degrees of freedom to be sure of its tail.
Otherwise nothing can be told, and with one replicate never: what its data and initialisation do to
a layer looks just like the layer's own growth.

The widths follow from a purpose: of all lists with the same sum, D_l proportional to e_l makes the
product of the layers' eDim largest (prod D_l^e_l under sum D_l fixed). Layers that show no
difference count with the mean elasticity. No layer moves by more than a factor of 1.5, or out of
the widths that were measured. FFN parameters are proportional to sum D_l, so they stay.

It rests on an extrapolation that only a run can check: elasticities are of layers that all grew
together, eDim is not the loss, and the layers with the most extreme estimates owe some of it to
luck. Train the list beside the uniform width before believing it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from analysis.laws.law_errors import ErrorTerm
from analysis.laws.power_law import PowerLaw, Refusal, fit_power_law
from analysis.replicates import CONFIDENCE, Floats, Interval
from analysis.settings import AGGREGATE_LAST
from analysis.tables.sweep_tables import LAW_SITE

#: No layer gets more than this times the uniform width, or less than its inverse.
LARGEST_SHIFT = 1.5

Advice = Literal["widen", "narrow", "keep"]


@dataclass(frozen=True)
class LayerGrowth:
    """How one layer's eDim grows with D."""

    layer: int
    elasticity: PowerLaw  # d ln eDim / d ln D is its exponent, with a 90 % interval of its own
    relative: PowerLaw  # the same less that of the geometric mean over layers
    relative_interval: Interval  # 90 % for all layers together, errors pooled over layers
    advice: Advice


@dataclass(frozen=True)
class LayerAdvice:
    """The layers of one group, in order of depth."""

    layers: tuple[LayerGrowth, ...]
    mean: PowerLaw  # of the geometric mean of the layers' eDim
    trials: int
    left_out: Mapping[str, int]  # what -> how many

    @property
    def widen(self) -> tuple[int, ...]:
        return tuple(grown.layer for grown in self.layers if grown.advice == "widen")

    @property
    def narrow(self) -> tuple[int, ...]:
        return tuple(grown.layer for grown in self.layers if grown.advice == "narrow")

    @property
    def sentence(self) -> str:
        """What can be said, in words."""
        low, high = self.mean.beta_interval
        mean = f"eDim grows as D^{self.mean.beta:.2f} [{low:.2f}, {high:.2f}] over all layers"
        if self.mean.replicate_error is None:
            return f"{mean}; layers can be compared only with two or more paired replicates"
        if not self.widen and not self.narrow:
            return f"{mean}; no layer is known to grow faster or slower than the others"
        said = [
            f"{_named(layers)} {'grow' if len(layers) > 1 else 'grows'} {how}"
            for layers, how in (
                (self.widen, "faster and can use more width"),
                (self.narrow, "slower and can do with less"),
            )
            if layers
        ]
        return f"{mean}; {', '.join(said)}"

    def ffn_width(self, width: int, multiple: int) -> list[int] | None:
        """One D per layer in place of the uniform `width`, each a multiple of `multiple`.

        Their sum is that of the uniform layers, to the nearest multiple; as one value of a sweep
        file's `grid.ffn_width` it has the same FFN parameters. None where no layer stands out, or
        where rounding leaves every layer as it was.
        """
        if not self.widen and not self.narrow:
            return None
        share = np.array(
            [
                1.0 if grown.advice == "keep" else 1 + grown.relative.beta / self.mean.beta
                for grown in self.layers
            ]
        )
        smallest, largest = self.mean.x_range
        low = min(max(width / LARGEST_SHIFT, smallest, multiple), width)
        high = max(min(width * LARGEST_SHIFT, largest), width)
        units = _rounded(_shared(share, low, high, width) / multiple, width, multiple)
        listed = [int(unit) * multiple for unit in units]
        return None if len(set(listed)) == 1 else listed


def advise_layers(
    spectra: pd.DataFrame, used: pd.DataFrame, last: int = AGGREGATE_LAST
) -> LayerAdvice | Refusal:
    """Judge the layers of one group.

    `used` are the trials that its rank laws rest on, `spectra` rows of `SweepTables.spectra`; a
    layer's eDim is the median over the `last` snapshots after step 0 at the site of the laws.
    Trials that have not every layer's eDim are left out and counted.
    """
    trials = used.drop_duplicates("id").set_index("id")
    edim, left_out = _edim(spectra[spectra["id"].isin(trials.index)], trials.index, last)
    if edim.shape[1] < 2:
        return Refusal("layers can be compared from two on with spectra", left_out)
    width, replicate = trials.loc[edim.index, "D"], trials.loc[edim.index, "replicate"]
    typical = np.exp(np.log(edim).mean(axis=1))
    mean = fit_power_law(width, typical, replicate)
    if isinstance(mean, Refusal):
        return Refusal(mean.reason, left_out)
    if mean.beta_interval[0] <= 0:
        return Refusal("eDim is not known to grow with D at all", left_out)
    own = {layer: _law(width, edim[layer], replicate) for layer in edim.columns}
    relative = {layer: _law(width, edim[layer] / typical, replicate) for layer in edim.columns}
    half = _together([*relative.values()])
    replicated = mean.replicate_error is not None
    layers = []
    for layer, law in relative.items():
        together = (law.beta - half, law.beta + half)
        low, high = np.sort([together, law.beta_interval], axis=0)[[0, 1], [0, 1]]
        advice: Advice = "keep"
        if replicated and (low > 0 or high < 0):
            advice = "widen" if low > 0 else "narrow"
        layers.append(LayerGrowth(int(layer), own[layer], law, together, advice))
    return LayerAdvice(tuple(layers), mean, len(edim), left_out)


def _law(width: pd.Series, edim: pd.Series, replicate: pd.Series) -> PowerLaw:
    """A law on the widths of the mean, which has one."""
    law = fit_power_law(width, edim, replicate)
    assert isinstance(law, PowerLaw)
    return law


def _together(laws: list[PowerLaw]) -> float:
    """Half the width of intervals that hold for all relative exponents at once.

    The laws sum to zero, so L of them have the degrees of freedom of L - 1. Of the scatter of the
    widths and the replicates' slopes the larger counts; each is the mean over layers.
    """
    confidence = 1 - (1 - CONFIDENCE) / len(laws)
    kinds = [[law.width_error for law in laws]]
    slopes = [law.replicate_error for law in laws if law.replicate_error is not None]
    if slopes:
        kinds.append(slopes)
    pooled = [
        ErrorTerm(
            float(np.mean([error.variance for error in errors])), errors[0].df * (len(laws) - 1)
        )
        for errors in kinds
    ]
    return max(error.half_width(confidence) for error in pooled)


def _edim(spectra: pd.DataFrame, ids: pd.Index, last: int) -> tuple[pd.DataFrame, dict[str, int]]:
    """eDim with a row per trial and a column per layer, and what is left out."""
    measured = spectra[(spectra["site"] == LAW_SITE) & (spectra["step"] > 0)]
    age = measured.groupby(["id", "layer"])["step"].rank(method="dense", ascending=False)
    newest = measured[age <= last]
    valid = np.isfinite(newest["edim"]) & (newest["edim"] >= 1)
    edim = newest[valid].groupby(["id", "layer"])["edim"].median().unstack("layer")
    edim = edim.reindex(pd.Index(newest["id"].unique()))
    whole = edim.notna().all(axis=1)
    counts = {
        "trials without spectra": len(ids.difference(edim.index)),
        "trials without an eDim of every layer": int((~whole).sum()),
        "snapshots whose eDim is no number from 1 on": int((~valid).sum()),
    }
    return edim[whole], {reason: count for reason, count in counts.items() if count}


def _shared(share: Floats, low: float, high: float, width: float) -> Floats:
    """Widths proportional to `share` [L], within [low, high] and with the mean `width`."""
    # Bounds lie no further apart than this, so a smaller share, or none, comes to the same.
    share = np.maximum(share, LARGEST_SHIFT**-2)

    def bounded(scale: float) -> Floats:
        return np.clip(scale * share, low, high)

    scale = brentq(lambda at: float(bounded(at).mean()) - width, 0.0, high / float(share.min()))
    return bounded(float(scale))


def _rounded(units: Floats, width: int, multiple: int) -> Floats:
    """Whole units [L] with the sum of uniform layers: the largest remainders are rounded up."""
    whole = np.floor(units)
    spare = round(len(units) * width / multiple) - int(whole.sum())
    whole[np.argsort(whole - units, kind="stable")[:spare]] += 1
    return whole


def _named(layers: tuple[int, ...]) -> str:
    """`layer 3`, `layers 0, 1 and 5`."""
    *others, final = map(str, layers)
    return f"layers {', '.join(others)} and {final}" if others else f"layer {final}"
