"""Which layers to widen: how fast each layer's eDim grows with D, and one width per layer.

Each layer has its own power law, eDim_l ~ D^e_l, over the uniform widths of one group. Its
elasticity e_l is compared with the mean over layers through the law of eDim_l / (geometric mean of
all layers), paired within trials. The advice is "widen" or "narrow" only if two intervals of that
difference exclude zero: the layer's own at 90 %, and a simultaneous one at 90 % for all layers
(Bonferroni). The simultaneous one pools its error over layers, because a single layer has too few
degrees of freedom in the tail. With one replicate the advice is always "keep": the effect of its
data and initialisation on a layer cannot be separated from the layer's growth.

The widths solve an optimisation. Among all lists with the same sum, D_l proportional to e_l
maximises the product of the layers' eDim (prod D_l^e_l at fixed sum D_l). A layer without a
difference counts with the mean elasticity. No layer changes by more than a factor of 1.5 or leaves
the measured range of widths. FFN parameters are proportional to sum D_l, so they do not change.

The list extrapolates, and only a run can check it: the elasticities are those of layers that grew
together, eDim is not the loss, and the most extreme estimates are partly luck. Train the list
beside the uniform width before you rely on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from analysis.laws.law_errors import ErrorTerm
from analysis.laws.layer_ranks import ranks_by_layer
from analysis.laws.power_law import PowerLaw, fit_power_law
from analysis.refusal import Refusal
from analysis.replicates import CONFIDENCE, Floats, Interval
from analysis.settings import AGGREGATE_LAST
from analysis.wording import bracketed, named_layers

#: Largest factor between a layer's width and the uniform width, either way.
LARGEST_SHIFT = 1.5

Advice = Literal["widen", "narrow", "keep"]


@dataclass(frozen=True)
class LayerGrowth:
    """The growth of one layer's eDim with D."""

    layer: int  # counted from 0
    elasticity: PowerLaw  # of eDim; its exponent is d ln eDim / d ln D
    relative: PowerLaw  # of eDim / geometric mean over layers: the exponent minus the mean's
    relative_interval: Interval  # of that exponent, simultaneous at 90 % for all layers
    advice: Advice


@dataclass(frozen=True)
class LayerAdvice:
    """The layers of one group, in order of depth."""

    layers: tuple[LayerGrowth, ...]
    mean: PowerLaw  # of the geometric mean of the layers' eDim
    trials: int
    left_out: Mapping[str, int]  # reason -> trials or snapshots

    @property
    def widen(self) -> tuple[int, ...]:
        return tuple(grown.layer for grown in self.layers if grown.advice == "widen")

    @property
    def narrow(self) -> tuple[int, ...]:
        return tuple(grown.layer for grown in self.layers if grown.advice == "narrow")

    @property
    def sentence(self) -> str:
        """The result in words, without a final full stop."""
        low, high = self.mean.beta_interval
        mean = f"eDim grows as D^{self.mean.beta:.2f} [{low:.2f}, {high:.2f}], averaged over layers"
        if self.mean.replicate_error is None:
            return f"{mean}; a comparison of layers needs two or more paired replicates"
        if not self.widen and not self.narrow:
            return f"{mean}; no layer is known to grow faster or slower than the others"
        said = [
            f"{named_layers(layers)} {'grow' if len(layers) > 1 else 'grows'} {how}"
            for layers, how in (
                (self.widen, "faster and can use more width"),
                (self.narrow, "slower and can do with less width"),
            )
            if layers
        ]
        return f"{mean}; {', '.join(said)}"

    def ffn_width(self, width: int, multiple: int) -> list[int] | None:
        """Return one D per layer with the same sum as uniform layers, so the same FFN parameters.

        Args:
            width: the uniform D that the list replaces.
            multiple: every D is a multiple of it; the sum is right to the nearest multiple.

        Returns:
            A value for a sweep file's `grid.ffn_width`; None if no layer stands out, or if
            rounding leaves every layer at `width`.
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
    """Compare the growth of eDim over the layers of one group.

    Args:
        spectra: rows of `SweepTables.spectra`.
        used: rows of `SweepTables.trials` that the group's rank laws are fitted to.
        last: snapshots per trial. A layer's eDim is the median over the last so many after step 0,
            at the site of the rank laws.

    Returns:
        The advice for every layer, or a refusal if there are fewer than two layers, fewer than
        three widths, or no known growth of eDim. A trial that lacks the eDim of a layer is left
        out and counted.
    """
    trials = used.drop_duplicates("id").set_index("id")
    own_spectra = spectra[spectra["id"].isin(trials.index)]
    edim, left_out = ranks_by_layer(own_spectra, "edim", trials.index, last, "eDim")
    layers_found = edim.shape[1]
    if layers_found < 2:
        there = "one layer" if layers_found else "none"
        return Refusal(
            f"a comparison needs two layers with an eDim after step 0, and there is {there}",
            excluded=left_out,
        )
    width, replicate = trials.loc[edim.index, "D"], trials.loc[edim.index, "replicate"]
    typical = np.exp(np.log(edim).mean(axis=1))
    mean = fit_power_law(width, typical, replicate)
    if isinstance(mean, Refusal):
        return replace(mean, excluded=left_out)
    if mean.beta_interval[0] <= 0:
        return Refusal(
            f"eDim is not known to grow with D: its exponent is {bracketed(mean.beta_interval)}",
            "add widths or replicates",
            left_out,
        )
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
    """A law over the widths at which the mean has a law."""
    law = fit_power_law(width, edim, replicate)
    assert isinstance(law, PowerLaw)
    return law


def _together(laws: list[PowerLaw]) -> float:
    """Half the width of simultaneous intervals of all relative exponents.

    The relative exponents sum to zero, so L laws have the degrees of freedom of L - 1. The error is
    the larger of two, each averaged over layers: scatter of widths, and slopes of replicates.
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


def _shared(share: Floats, low: float, high: float, width: float) -> Floats:
    """Widths proportional to `share` [L], within [low, high] and with the mean `width`."""
    # The bounds are within this factor of each other, so a smaller share changes nothing.
    share = np.maximum(share, LARGEST_SHIFT**-2)

    def bounded(scale: float) -> Floats:
        return np.clip(scale * share, low, high)

    scale = brentq(lambda at: float(bounded(at).mean()) - width, 0.0, high / float(share.min()))
    return bounded(float(scale))


def _rounded(units: Floats, width: int, multiple: int) -> Floats:
    """Round to whole units [L] with the sum of uniform layers: largest remainders go up."""
    whole = np.floor(units)
    spare = round(len(units) * width / multiple) - int(whole.sum())
    whole[np.argsort(whole - units, kind="stable")[:spare]] += 1
    return whole
