"""The verdict on the layers of a group: which to widen, which to narrow, one width for each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.laws.layer_kinds import LayerSpread, spread_over_layers
from analysis.laws.layers import LayerAdvice, advise_layers
from analysis.laws.power_law import PowerLaw
from analysis.laws.spectral import RANK_NAMES, SpectralEvidence
from analysis.refusal import Refusal
from analysis.settings import FFN_MULTIPLE
from analysis.tables.sweep_tables import SweepTables

#: Ranks whose laws are fitted layer by layer.
SPREADS = ("soft_rank", "hard_rank_debiased", "edim")


@dataclass(frozen=True)
class LayerVerdict:
    """The advice on the layers of one group, and the widths that follow from it."""

    advice: LayerAdvice | Refusal
    width: int | None  # the uniform D to compare the list with
    ffn_width: (
        tuple[int, ...] | None
    )  # one D per layer with the same sum; None: no layer stands out
    spread: Mapping[str, LayerSpread | Refusal] = field(default_factory=dict)  # by SPREADS

    @property
    def sentence(self) -> str:
        """The advice or the refusal in words, without a final full stop."""
        if isinstance(self.advice, Refusal):
            return f"no advice on single layers: {self.advice.sentence}"
        return self.advice.sentence

    @property
    def spread_sentence(self) -> str:
        """The exponents of single layers: `soft rank 0.41 to 0.55, quartiles 0.45 and 0.52; ...`.

        Empty where there are none.
        """
        return "; ".join(
            f"{RANK_NAMES[name]} {found.text}"
            for name, found in self.spread.items()
            if isinstance(found, LayerSpread)
        )

    def caveats(self, spectral: SpectralEvidence) -> Iterator[str]:
        """Yield a caveat where layers are of two kinds, which one exponent for all hides."""
        told = []
        for name, found in self.spread.items():
            law = spectral.laws[name]
            if isinstance(found, LayerSpread) and found.kinds and isinstance(law, PowerLaw):
                told.append(
                    f"{RANK_NAMES[name]} grows as D^{law.beta:.2f} by the law of all layers, but "
                    f"{found.kinds_text}"
                )
        if told:
            yield (
                "The layers are of two kinds, and one rank law for all describes neither: "
                f"{'; '.join(told)}."
            )

    def to_yaml(self) -> str | None:
        """Return the list and the uniform width as a piece of a sweep file; None without a list."""
        if self.ffn_width is None:
            return None
        content = {"match": ["none"], "grid": {"ffn_width": [self.width, list(self.ffn_width)]}}
        return str(yaml.safe_dump(content, default_flow_style=None, sort_keys=False, width=80))

    def to_dict(self) -> dict[str, Any]:
        """Return `layers` of recommendation.json."""
        advice = self.advice
        if isinstance(advice, Refusal):
            return {
                "judged": False,
                "sentence": self.sentence,
                "left_out": dict(advice.excluded),
                "exponents": self._exponents(),
            }
        return {
            "judged": True,
            "sentence": self.sentence,
            "mean_exponent": advice.mean.beta,
            "mean_exponent_interval": advice.mean.beta_interval,
            "widen": list(advice.widen),
            "narrow": list(advice.narrow),
            "width": self.width,
            "ffn_width": None if self.ffn_width is None else list(self.ffn_width),
            "trials": advice.trials,
            "left_out": dict(advice.left_out),
            "layers": layer_rows(advice),
            "exponents": self._exponents(),
        }

    def _exponents(self) -> dict[str, Any]:
        return {
            name: {"fitted": False, "reason": found.reason, "left_out": dict(found.excluded)}
            if isinstance(found, Refusal)
            else found.to_dict()
            for name, found in self.spread.items()
        }


def layer_laws(spread: Mapping[str, LayerSpread | Refusal]) -> list[dict[str, Any]]:
    """Return one row of plain values per rank and layer: its exponent, interval and kind."""
    rows = []
    for name, found in spread.items():
        if isinstance(found, Refusal):
            continue
        slow = () if found.kinds is None else found.kinds[0].layers
        for layer, law in found.laws.items():
            kind = None if found.kinds is None else "slower" if layer in slow else "faster"
            low, high = law.beta_interval
            rows.append(
                {"quantity": name, "layer": layer, "beta": law.beta, "beta_low": low}
                | {"beta_high": high, "kind": kind}
            )
    return rows


def layer_rows(advice: LayerAdvice) -> list[dict[str, Any]]:
    """Return one row of plain values per layer."""
    return [
        {
            "layer": grown.layer,
            "elasticity": grown.elasticity.beta,
            "elasticity_low": grown.elasticity.beta_interval[0],
            "elasticity_high": grown.elasticity.beta_interval[1],
            "relative": grown.relative.beta,
            "relative_low": grown.relative_interval[0],
            "relative_high": grown.relative_interval[1],
            "advice": grown.advice,
        }
        for grown in advice.layers
    ]


def judge_layers(
    spectral: SpectralEvidence, width_multiplier: float | None, tables: SweepTables
) -> LayerVerdict:
    """Judge the layers of one group, over the cells of its rank laws.

    Args:
        spectral: The rank laws of the group.
        width_multiplier: The recommended D / d_model; None where no width is recommended.
        tables: The sweep.
    """
    used, missing = spectral.used, spectral.no_cells
    if missing is not None:
        return LayerVerdict(missing, None, None, dict.fromkeys(SPREADS, missing))
    spectra = tables.of(tables.spectra, used)
    last = tables.aggregation.last
    spread = {
        name: spread_over_layers(spectra, used, name, RANK_NAMES[name], last) for name in SPREADS
    }
    advice = advise_layers(spectra, used, last)
    trial = representative(used, width_multiplier)
    if isinstance(advice, Refusal) or trial is None:
        return LayerVerdict(advice, None, None, spread)
    model: Mapping[str, Any] = tables.config.get("model") or {}
    width = int(trial["D"])
    widths = advice.ffn_width(width, int(model.get("ffn_multiple") or FFN_MULTIPLE))
    return LayerVerdict(advice, width, None if widths is None else tuple(widths), spread)


def representative(used: pd.DataFrame, width_multiplier: float | None) -> "pd.Series[Any] | None":
    """Return the trial whose layers represent the group; None without cells for rank laws.

    It is the cell nearest to the recommended width, of the first replicate. Without a recommended
    width it is the cell nearest to the median width.
    """
    if used.empty:
        return None
    width = width_multiplier or float(used["width_multiplier"].median())
    away = np.abs(np.log(used["width_multiplier"] / width)).round(6)
    return used.assign(away=away).sort_values(["away", "replicate"]).iloc[0]
