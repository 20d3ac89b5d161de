"""The parts of nGPT (arXiv 2410.01131): unit vectors, learned scales, steps on the sphere.

Every matrix has unit norm along its d_model dimension, which `unit_norm_dim` names. Nothing here
restores that norm after an optimiser update: trainers/engine/unit_norm.py does.
Equations and sections cited here are the paper's.
An exported model carries a copy of this file, so it imports nothing of widthlab.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Initial step size towards a sub-layer's output, alpha in the paper (section 2.2.2).
INITIAL_STEP = 0.05


def unit(x: Tensor) -> Tensor:
    """Return x / ||x|| over the last dimension, computed in float32, in the dtype of x."""
    return F.normalize(x.float(), dim=-1).to(x.dtype)


class LearnedScale(nn.Module):
    """A learned vector of factors: weight * initial / stored (section 2.5).

    Adam moves every weight by about the learning rate, so the size at which a factor is stored
    sets its relative speed.

    Args:
        size: Number of factors.
        initial: Value of the factors at the start.
        stored: Value of `weight` at the start.
    """

    def __init__(self, size: int, initial: float, stored: float) -> None:
        super().__init__()
        self.stored, self.ratio = stored, initial / stored
        self.weight = nn.Parameter(torch.full((size,), stored))

    def forward(self) -> Tensor:
        """Return the factors [size]."""
        return self.weight * self.ratio


class ScaledLinear(nn.Linear):
    """A linear layer without bias whose outputs are multiplied by a learned scale and by `grow`.

    The scale multiplies the matrix's rows instead of the outputs: that is cheaper when tokens
    outnumber d_model, and the backward pass needs no second copy of the outputs.
    """

    def __init__(
        self, in_features: int, out_features: int, stored: float = 1.0, grow: float = 1.0
    ) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = LearnedScale(out_features, 1.0, stored)
        self.grow = grow

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * (self.scale() * self.grow)[:, None])


class SphereStep(nn.Module):
    """N(x + a (N(y) - x)): step from x towards a sub-layer's output y, back onto the unit sphere.

    N divides by the L2 norm; a [d_model] are the absolute values of learned step sizes
    (equations 10 and 11). x and y are (B, T, d_model).
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.step = LearnedScale(d_model, INITIAL_STEP, d_model**-0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = self.step().abs()
        return unit(x + a * (unit(y) - x)).to(x.dtype)


def unit_norm_dim(name: str) -> int:
    """Return which dimension of a matrix [out, in] is d_model, by the parameter's name.

    It is 0 for attention-out and FFN-down, whose output is d_model, and 1 for all others.
    """
    return 0 if name.endswith(("attention.o.weight", "ffn.down.weight")) else 1
