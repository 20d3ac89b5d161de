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


class ScaledLinear(nn.Linear):
    """A linear map, each of its outputs times a learned scale and `grow`.

    The scale multiplies the rows of the matrix, not the outputs: there are more tokens than
    d_model, and nothing more is kept of them for the backward pass.
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
