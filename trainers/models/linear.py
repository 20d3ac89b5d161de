"""The linear maps of an FFN, by the geometry of their weights.

Each is a module of its own and reads its parameters in its own `forward`, which is what ZeRO 3
needs to gather them. Weights are [out, in]; the "incoming vector" of an output unit is a row.
The file travels with exported models, so it imports nothing of widthlab.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: A row of zeros stays one.
LEAST_NORM = 1e-12


class WeightNormLinear(nn.Linear):
    """W = gain * v / ||v||, row by row (arXiv 1602.07868); `weight` holds v, `gain` is [out]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.gain = nn.Parameter(torch.ones(out_features))

    def effective_weight(self) -> Tensor:
        """W, in float32."""
        weight = self.weight.float()
        return weight * (self.gain.float() / row_norms(weight))[:, None]  # one pass over W

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight().to(x.dtype), self.bias)


class HypersphericalLinear(nn.Linear):
    """W = v / ||v||, row by row and without a gain; `weight` holds v."""

    def effective_weight(self) -> Tensor:
        """W, in float32."""
        weight = self.weight.float()
        return weight / row_norms(weight)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight().to(x.dtype), self.bias)


class SpectralNormLinear(nn.Linear):
    """W = v / sigma(v), sigma the largest singular value, by power iteration (arXiv 1802.05957).

    `left` [out] estimates the left singular vector. It takes one iteration per optimiser update,
    in the first forward pass after `begin_update`, whatever the number of micro-batches.
    """

    left: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("left", F.normalize(torch.ones(out_features), dim=0))
        self._due = False

    def begin_update(self) -> None:
        """The weights have changed: iterate once in the next forward pass."""
        self._due = True

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Bring `left` nearer to the singular vector."""
        weight = self.weight.float()
        left = self.left.float()
        for _ in range(times):
            left = F.normalize(weight @ (weight.T @ left), dim=0)
        self.left.copy_(left)

    def effective_weight(self) -> Tensor:
        """W, in float32. The gradient takes both singular vectors as constants: sigma is
        ||v^T left||, at its largest over all right vectors, where theirs vanishes."""
        weight = self.weight.float()
        left = F.normalize(self.left.float(), dim=0)  # the buffer may be bf16
        sigma: Tensor = torch.linalg.vector_norm(weight.T @ left)
        return weight / sigma

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # it would round sigma to bf16
            if self._due:
                self.iterate()
                self._due = False
            weight = self.effective_weight()
        return F.linear(x, weight.to(x.dtype), self.bias)


def row_norms(weight: Tensor) -> Tensor:
    """The length of every row, [out]; fit to divide by."""
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return lengths.clamp(min=LEAST_NORM)


#: `ffn_weight` of a sweep file: the class of up, gate and down.
GEOMETRIES: dict[str, type[nn.Linear]] = {
    "plain": nn.Linear,
    "weight_norm": WeightNormLinear,
    "spectral_norm": SpectralNormLinear,
    "hyperspherical": HypersphericalLinear,
}
