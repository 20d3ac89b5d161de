"""What is written below the figures of one group: only what the figure really shows."""

import numpy as np

from analysis.laws.saturation import Saturation
from analysis.laws.spectral import PLATEAU
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.loss_optimum import LossCurve
from analysis.wording import multiple


def captions_of(verdict: GroupVerdict) -> dict[str, str]:
    """Captions by the name of the figure."""
    return {
        "loss-optimum": _loss_optimum(verdict),
        "loss-at-budgets": "What is held equal decides which width looks best. Points are width "
        "means, diamonds optima that are established.",
        "rank-laws": _rank_laws(verdict),
        "effective-dimension": "eDim of each run with the medians of the widths, and how fast it "
        f"grows from one width to the next: surely below {PLATEAU:g}, more width adds little.",
        "final-spectra": "Eigenvalues of the activations' covariance in the last snapshot, as "
        "shares of their sum; geometric mean over layers, first replicate.",
        "width-law": "The loss where d_model stays and nothing is held equal: parameters and cost "
        "grow with D, so this is no reason to choose a width.",
        "layer-growth": "Right of 0 a layer's eDim grows faster with D than that of all layers. "
        "Coloured where that is known.",
        "layer-ranks": _layer_ranks(verdict),
        "training-curves": _training_curves(verdict),
    }


def _loss_optimum(verdict: GroupVerdict) -> str:
    text = "Points: final held-out loss of each completed run."
    curves = [found.optimum for found in verdict.losses if isinstance(found.optimum, LossCurve)]
    if curves:
        base = "recommended width" if verdict.width_multiplier else "width of lowest loss excess"
        text += (
            " Line: mean of the fitted curves. Blue: 90 % interval of the difference in loss from "
            f"the {base}."
        )
    if any(curve.recommended for curve in curves):
        text += " Green: 90 % interval of the optimum."
    return text


def _rank_laws(verdict: GroupVerdict) -> str:
    spectral = verdict.spectral
    text = "Points: runs. Lines: least squares in the logarithms, with their 90 % intervals."
    found = (spectral.saturation[name] for name in ("soft_rank", "hard_rank"))
    if any(isinstance(test, Saturation) and test.saturates for test in found):
        text += " Dashed: from where on the rank levels off, where a test finds that it does."
    if np.isfinite(spectral.left_out["soft_rank"].astype(float)).any():
        text += " Crosses do not enter."
    return text


def _layer_ranks(verdict: GroupVerdict) -> str:
    trial = verdict.representative
    if trial is None:
        return ""
    return (
        f"Ranks by layer and step of trial {trial['id']}: {multiple(trial['width_multiplier'])}, "
        f"D = {trial['D']:.0f}, seed {trial['replicate']}. Other widths: figures/layer-ranks."
    )


def _training_curves(verdict: GroupVerdict) -> str:
    cells = verdict.trials if verdict.deciding is None else verdict.deciding.planned
    text = "A line a run, labelled with D / d_model."
    drawn = cells[cells["state"] != "waiting"]
    return text + (" Dashed: not completed." if (drawn["state"] != "completed").any() else "")
