"""The optimiser of a trial: AdamW, or Muon for the matrices inside the layers.

The groups of parameters follow from names and shapes and are the same at every ZeRO stage.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainers.spec import TrainingSpec

log = logging.getLogger(__name__)

#: Root mean square of Muon's update at learning rate 1. AdamW's is typically the same, so both
#: can share one learning rate (arXiv 2502.16982, equation 4 and section 2.2).
MUON_RMS = 0.2
ADAM_EPS = 1e-8


def make_optimizer(model: nn.Module, training: TrainingSpec) -> torch.optim.Optimizer:
    """Return the optimiser of all parameters of a model.

    Call it before DeepSpeed wraps the model: ZeRO stage 3 empties the shapes. With Muon it tags
    every parameter with `use_muon`, which ZeRO reads; weights outside the layers, and those that
    are not matrices, go to AdamW.
    """
    if training.optimizer == "adamw":
        # Fused is one pass over memory: on a CPU core a quarter of the default's time.
        return torch.optim.AdamW(_adamw_groups(model.parameters(), training), fused=True)
    # import_deepspeed must set the environment before this import.
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = is_layer_matrix(name, parameter)
        parameter.use_muon = matrix  # type: ignore[attr-defined]  # ZeRO reads the tag
        (matrices if matrix else others).append(parameter)
    stacks = [p for p in others if p.ndim > 2]
    if stacks:
        log.warning(
            "Muon handles only matrices: %d weights with three or more dimensions, such as one "
            "of shape %s, go to AdamW",
            len(stacks), list(stacks[0].shape),
        )  # fmt: skip
    groups = _muon_groups(matrices, training)
    groups += [{**group, "use_muon": False} for group in _adamw_groups(others, training)]
    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(
        groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={"fused": True}
    )
    return optimizer


def is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether Muon updates a parameter: a matrix inside a layer.

    Embeddings and the output head are outside the layers.
    """
    return name.startswith("layers.") and parameter.ndim == 2


def _adamw_groups(
    parameters: Iterable[nn.Parameter], training: TrainingSpec
) -> list[dict[str, Any]]:
    """Weight decay applies to matrices and embeddings, not to biases, gains and scales."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in parameters:
        (decayed if parameter.ndim >= 2 else plain).append(parameter)
    shared = {
        "lr": training.learning_rate,
        "betas": (training.beta1, training.beta2),
        "eps": ADAM_EPS,
    }
    return [
        {"params": members, "weight_decay": decay, **shared}
        for members, decay in ((decayed, training.weight_decay), (plain, 0.0))
        if members  # ZeRO rejects empty groups
    ]


def _muon_groups(matrices: list[nn.Parameter], training: TrainingSpec) -> list[dict[str, Any]]:
    """Return one group per fan-in, because the learning rate depends on it.

    DeepSpeed's update of a matrix [rows, columns] is sqrt(max(1, rows / columns)) times an
    orthogonal matrix, whose root mean square is 1 / sqrt(max(rows, columns)). The product has
    root mean square 1 / sqrt(columns). Multiplying the rate by MUON_RMS * sqrt(columns) makes it
    MUON_RMS. Weight decay is divided by the same factor, so that rate * decay equals AdamW's.
    """
    by_fan_in: dict[int, list[nn.Parameter]] = defaultdict(list)
    for matrix in matrices:
        by_fan_in[matrix.shape[1]].append(matrix)
    groups = []
    for fan_in, members in sorted(by_fan_in.items()):
        scale = MUON_RMS * fan_in**0.5
        groups.append(
            {
                "params": members,
                "use_muon": True,
                "lr": training.learning_rate * scale,
                "weight_decay": training.weight_decay / scale,
                "momentum": training.momentum,
                "ns_method": "gram",  # the more precise of DeepSpeed's two iterations
            }
        )
    return groups
