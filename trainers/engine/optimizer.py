"""The optimiser of a trial: AdamW, or Muon for the matrices inside the layers.

Which parameter is treated how is decided here, by its name and shape, once for all ZeRO stages.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainers.spec import TrainingSpec

log = logging.getLogger(__name__)

#: Root mean square of Muon's update at learning rate 1, as AdamW's typically is: one learning
#: rate serves both (arXiv 2502.16982, equation 4 and section 2.2).
MUON_RMS = 0.2
ADAM_EPS = 1e-8


def make_optimizer(model: nn.Module, training: TrainingSpec) -> torch.optim.Optimizer:
    """An optimiser of all parameters of a model that DeepSpeed has not yet taken over.

    Fused AdamW is one pass over memory: on a CPU core a quarter of the time of the default.
    """
    if training.optimizer == "adamw":
        return torch.optim.AdamW(_adamw_groups(model.parameters(), training), fused=True)
    # DeepSpeed is imported late: the engine sets its environment up first.
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
            "muon takes matrices alone: %d weights with three dimensions or more, such as one of "
            "%s, go to AdamW",
            len(stacks), list(stacks[0].shape),
        )  # fmt: skip
    groups = _muon_groups(matrices, training)
    groups += [{**group, "use_muon": False} for group in _adamw_groups(others, training)]
    optimizer: torch.optim.Optimizer = MuonWithAuxAdam(
        groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={"fused": True}
    )
    return optimizer


def is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves it: a matrix of a layer, of which embeddings and head are none."""
    return name.startswith("layers.") and parameter.ndim == 2


def _adamw_groups(
    parameters: Iterable[nn.Parameter], training: TrainingSpec
) -> list[dict[str, Any]]:
    """Matrices and embeddings decay; biases, gains and scales do not."""
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
        if members  # ZeRO takes no empty group
    ]


def _muon_groups(matrices: list[nn.Parameter], training: TrainingSpec) -> list[dict[str, Any]]:
    """One group per fan-in, for the step is scaled by it.

    DeepSpeed's update of a matrix [rows, columns] is sqrt(max(1, rows / columns)) times an
    orthogonal one, whose root mean square is 1 / sqrt(max(rows, columns)): together
    1 / sqrt(columns). The rate carries the rest of MUON_RMS, and the decay loses it again, so
    that the product of both is that of AdamW.
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
