"""Captions of the figures of one group. They name only elements that the figure shows."""

import numpy as np

from analysis.laws.saturation import Saturation
from analysis.laws.spectral import PLATEAU
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.loss_over_width import LossCurve
from analysis.wording import multiple


def captions_of(verdict: GroupVerdict) -> dict[str, str]:
    """Return the caption of every figure that a group can have, by the name of the figure."""
    return {
        "loss-optimum": _loss_optimum(verdict),
        "loss-at-budgets": "The best width depends on the budget that is held equal. Points: means "
        "per width. Diamonds: established optima.",
        "rank-laws": _rank_laws(verdict),
        "effective-dimension": "Above: eDim of each run (points) and median per width (line). "
        "Below: its elasticity between neighbouring widths. Where the interval lies below "
        f"{PLATEAU:g}, more width adds few directions.",
        "final-spectra": "Eigenvalues of the covariance of the activations at the last snapshot, "
        "divided by their sum. Geometric mean over layers, first replicate.",
        "width-law": "Loss at fixed d_model with no budget held equal. Parameters and FLOPs grow "
        "with D, so a lower loss here is no reason to choose a larger width.",
        "layer-growth": "Right of 0, the eDim of the layer grows faster with D than the mean over "
        "layers. Coloured: the interval excludes 0.",
        "layer-ranks": _layer_ranks(verdict),
        "training-curves": _training_curves(verdict),
    }


def _loss_optimum(verdict: GroupVerdict) -> str:
    text = "Points: final held-out loss of each completed run."
    curves = [found.optimum for found in verdict.losses if isinstance(found.optimum, LossCurve)]
    if curves:
        reference = "the chosen width" if verdict.width_multiplier else "the width of zero height"
        text += (
            " Line: mean of the fitted curves. Blue band: 90 % interval of the difference in loss "
            f"from {reference}."
        )
    if any(curve.recommended for curve in curves):
        text += " Green band: 90 % interval of the optimum."
    return text


def _rank_laws(verdict: GroupVerdict) -> str:
    spectral = verdict.spectral
    text = (
        "Points: runs. Lines: power laws, least squares in the logarithms, with 90 % bands. Hard "
        "rank: debiased in the number of samples."
    )
    found = (spectral.saturation[name] for name in ("soft_rank", "hard_rank_debiased"))
    if any(isinstance(test, Saturation) and test.saturates for test in found):
        text += " Dashed: the width from which on a rank levels off, by the plateau test."
    if np.isfinite(spectral.left_out["soft_rank"].astype(float)).any():
        text += " Crosses: left out of the laws."
    return text


def _layer_ranks(verdict: GroupVerdict) -> str:
    trial = verdict.representative
    if trial is None:
        return ""
    return (
        f"Ranks by layer and training step of trial {trial['id']}: "
        f"{multiple(trial['width_multiplier'])}, D = {trial['D']:.0f}, seed {trial['replicate']}. "
        "Other widths: figures/layer-ranks/."
    )


def _training_curves(verdict: GroupVerdict) -> str:
    cells = verdict.trials if verdict.deciding is None else verdict.deciding.planned
    text = "One line per run, labelled with D / d_model."
    drawn = cells[cells["state"] != "waiting"]
    return text + (" Dashed: not completed." if (drawn["state"] != "completed").any() else "")
