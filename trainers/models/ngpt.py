"""What is nGPT's own (arXiv 2410.01131): unit vectors, learned scales, steps on the sphere.

Every matrix keeps unit norm along d_model; `unit_norm_dim` says which dimension that is, and
whoever updates the weights restores it. The file travels with exported models, so it imports
nothing of widthlab.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The initial step of a layer towards its sub-layer's output (section 2.2.2).
INITIAL_STEP = 0.05


def unit(x: Tensor) -> Tensor:
    """x / ||x|| over the last dimension, in float32 inside."""
    return F.normalize(x.float(), dim=-1).to(x.dtype)


class LearnedScale(nn.Module):
    """A vector of factors that starts at `initial` and is stored around `stored`, which sets how
    fast Adam moves it (section 2.5): factor = weight * initial / stored."""

    def __init__(self, size: int, initial: float, stored: float) -> None:
        super().__init__()
        self.stored, self.ratio = stored, initial / stored
        self.weight = nn.Parameter(torch.full((size,), stored))

    def forward(self) -> Tensor:
        """The factors, [size]."""
        return self.weight * self.ratio


class SphereStep(nn.Module):
    """N(x + a (N(y) - x)): from x towards a sub-layer's output y, and back onto the sphere.

    a = |a| is one step per dimension of d_model (equations 10 and 11).
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.step = LearnedScale(d_model, INITIAL_STEP, d_model**-0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = self.step().abs()
        return unit(x + a * (unit(y) - x)).to(x.dtype)


def unit_norm_dim(name: str) -> int:
    """The dimension of a matrix [out, in] that is d_model: 1, but 0 for attention-out and
    FFN-down."""
    return 0 if name.endswith(("attention.o.weight", "ffn.down.weight")) else 1
