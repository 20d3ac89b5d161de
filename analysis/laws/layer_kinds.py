"""How far the layers' own rank laws lie apart, and whether the layers are of two kinds.

A rank law of a group is fitted to one number per trial, such as the median over layers. It
describes layers that grow alike. If half of the layers do not grow at all and half grow as D, the
median of an even number of layers grows as neither kind does: as D^0.92 with a tight interval, in
one example. So each layer gets its own law, and the range and quartiles of their exponents stand
beside the group's.

Layers are said to be of two kinds if all of these hold:

- They differ by more than their errors: an F-test of the exponents against their errors, at 1 %.
  The exponents are those of a layer's rank over the geometric mean of all layers, paired within
  trials, so that what all layers of a trial share cancels. Their errors are those of
  `analysis.laws.law_errors`, pooled over layers.
- They split into two bunches: the means of the bunches lie at least BUNCHED standard deviations of
  a bunch apart. Exponents that are spread evenly, or normally, are 3.5 and 2.7 apart at their best
  split, so they are no bunches: their range and quartiles tell what there is to tell.
- Each bunch holds a quarter of the layers or more. Fewer layers that stand out move the median
  little; the advice on layers names them.
- The bunches differ by SMALLEST_DIFFERENCE or more.

benchmarks/layer_kinds.py has the error rates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.laws.law_errors import ROUNDING
from analysis.laws.layer_ranks import ranks_by_layer
from analysis.laws.power_law import PowerLaw, fit_power_law
from analysis.refusal import Refusal
from analysis.replicates import Floats, Interval
from analysis.settings import AGGREGATE_LAST
from analysis.wording import interval, named_layers

#: Level of the test that layers differ.
DIFFERENT = 0.01
#: Distance of the bunches' means in standard deviations within a bunch. At five, slopes that differ
#: by layer in the one replicate of a sweep made two kinds of alike layers in 6 % of studies.
BUNCHED = 6.0
#: Share of the layers that the smaller bunch holds at least.
SMALLER_BUNCH = 0.25
#: Exponents that differ by less change the ranks by less than a quarter over eightfold widths.
SMALLEST_DIFFERENCE = 0.1


@dataclass(frozen=True)
class LayerKind:
    """Layers whose rank grows alike."""

    layers: tuple[int, ...]  # counted from 0
    beta: float  # mean of their exponents


@dataclass(frozen=True)
class LayerSpread:
    """The exponents of one rank in the layers of one group."""

    laws: Mapping[int, PowerLaw]  # by layer, in order of depth
    quartiles: tuple[float, float, float]  # of the layers' exponents
    kinds: tuple[LayerKind, LayerKind] | None  # the slower first; None: not known to be two kinds
    difference_p: float  # of the F-test that all layers have one exponent
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> trials or snapshots

    @property
    def range(self) -> Interval:
        """The smallest and the largest exponent of a layer."""
        betas = [law.beta for law in self.laws.values()]
        return min(betas), max(betas)

    @property
    def text(self) -> str:
        """Range and quartiles, and the kinds if there are two, without a final full stop."""
        low, _, high = self.quartiles
        told = f"{interval(self.range)}, quartiles {low:.2f} and {high:.2f}"
        return f"{told} (two kinds: {self.kinds_text})" if self.kinds else told

    @property
    def kinds_text(self) -> str:
        """`as D^0.00 in layers 0-5 and as D^1.02 in layers 6-11`; empty if not of two kinds."""
        return " and ".join(
            f"as D^{kind.beta:.2f} in {named_layers(kind.layers)}" for kind in self.kinds or ()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the spread as plain values, for recommendation.json."""
        return {
            "fitted": True,
            "range": self.range,
            "quartiles": self.quartiles,
            "difference_p": self.difference_p,
            "kinds": None
            if self.kinds is None
            else [{"layers": list(kind.layers), "beta": kind.beta} for kind in self.kinds],
            "layers": [
                {"layer": layer, "beta": law.beta, "beta_interval": law.beta_interval}
                for layer, law in self.laws.items()
            ],
            "left_out": dict(self.left_out),
        }


def spread_over_layers(
    spectra: pd.DataFrame, used: pd.DataFrame, rank: str, name: str, last: int = AGGREGATE_LAST
) -> LayerSpread | Refusal:
    """Fit the law of every layer and judge how far the layers lie apart.

    Args:
        spectra: rows of `SweepTables.spectra`.
        used: rows of `SweepTables.trials` that the group's rank laws are fitted to.
        rank: the column of `spectra`.
        name: the rank in words.
        last: snapshots per trial, as in the group's laws.

    Returns:
        The spread, or a refusal if there are fewer than two layers or three widths. A trial that
        lacks the rank of a layer is left out and counted.
    """
    trials = used.drop_duplicates("id").set_index("id")
    own = spectra[spectra["id"].isin(trials.index)]
    ranks, left_out = ranks_by_layer(own, rank, trials.index, last, name)
    if ranks.shape[1] < 2:
        return Refusal("there are no two layers to compare", excluded=left_out)
    width, replicate = trials.loc[ranks.index, "D"], trials.loc[ranks.index, "replicate"]
    typical = np.exp(np.log(ranks).mean(axis=1))
    laws: dict[int, PowerLaw] = {}
    relative: list[PowerLaw] = []
    for layer in ranks.columns:
        law = fit_power_law(width, ranks[layer], replicate)
        if isinstance(law, Refusal):
            return replace(law, excluded=left_out)
        against = fit_power_law(width, ranks[layer] / typical, replicate)
        assert isinstance(against, PowerLaw)  # it has the cells of the layer's own law
        laws[int(layer)] = law
        relative.append(against)
    p = difference_p(relative)
    betas = np.array([law.beta for law in laws.values()])
    low, middle, high = (float(at) for at in np.quantile(betas, (0.25, 0.5, 0.75)))
    kinds = two_bunches([*laws], betas) if p < DIFFERENT else None
    return LayerSpread(laws, (low, middle, high), kinds, p, left_out)


def difference_p(relative: list[PowerLaw]) -> float:
    """Return the p-value of the F-test that all layers have the same exponent.

    Args:
        relative: [L] laws of a layer's rank over the geometric mean of all layers.

    The L relative exponents sum to zero, so their variance is (L - 1)/L of that of independent
    ones. F is their mean square over L - 1, divided by L/(L - 1) times the mean of their variances.
    A variance that is the sum of several has Satterthwaite's degrees of freedom.
    """
    layers = len(relative)
    spread = float(sum(law.beta**2 for law in relative))
    variances = [sum(error.variance for error in law.beta_errors) for law in relative]
    pooled = float(np.mean(variances))
    if pooled <= ROUNDING:  # made-up data without noise
        return 1.0 if spread <= ROUNDING else 0.0
    squares = sum(error.variance**2 / error.df for law in relative for error in law.beta_errors)
    df = (layers - 1) / layers * sum(variances) ** 2 / squares
    return float(stats.f.sf(spread / layers / pooled, layers - 1, df))


def two_bunches(layers: list[int], betas: Floats) -> tuple[LayerKind, LayerKind] | None:
    """Split layers at the widest distance of means, in standard deviations within a bunch.

    Args:
        layers: [L] numbers of the layers.
        betas: [L] their exponents.

    Returns:
        The two bunches by the criteria of the module's docstring, the slower first, or None.
    """
    order = np.argsort(betas, kind="stable")
    ordered = betas[order]
    count = len(ordered)
    fewest = max(1, int(np.ceil(SMALLER_BUNCH * count)))
    best: tuple[float, int] | None = None
    for at in range(fewest, count - fewest + 1):
        below, above = ordered[:at], ordered[at:]
        distance = float(above.mean() - below.mean())
        within = float(np.sum((below - below.mean()) ** 2) + np.sum((above - above.mean()) ** 2))
        apart = distance / np.sqrt(within / max(count - 2, 1)) if within > 0 else np.inf
        if distance >= SMALLEST_DIFFERENCE and (best is None or apart > best[0]):
            best = apart, at
    if best is None or best[0] < BUNCHED:
        return None
    slow, fast = order[: best[1]], order[best[1] :]
    return _kind(slow, layers, betas), _kind(fast, layers, betas)


def _kind(chosen: Any, layers: list[int], betas: Floats) -> LayerKind:
    return LayerKind(tuple(sorted(layers[i] for i in chosen)), float(np.mean(betas[chosen])))
