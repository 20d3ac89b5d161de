"""Linear layers of an FFN with reparametrised weights: weight norm, spectral norm, hyperspherical.

Weights are [out, in], so a row holds the incoming weights of one output unit. `weight` holds the
trained parameter v; `effective_weight` computes the matrix W that multiplies the input.

Each module reads its parameters only in its own `forward`: ZeRO 3 gathers them there.
An exported model carries a copy of this file, so it imports nothing of widthlab.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Lower bound of a norm in a division: a zero row stays zero.
LEAST_NORM = 1e-12


class WeightNormLinear(nn.Linear):
    """Weight normalisation: W = gain * v / ||v|| row by row (arXiv 1602.07868).

    `weight` [out, in] holds v, `gain` is [out].
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.gain = nn.Parameter(torch.ones(out_features))

    def effective_weight(self) -> Tensor:
        """Return W [out, in] in float32."""
        weight = self.weight.float()
        return weight * (self.gain.float() / row_norms(weight))[:, None]  # one pass over W

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight().to(x.dtype), self.bias)


class HypersphericalLinear(nn.Linear):
    """Rows of unit norm: W = v / ||v|| row by row, without a gain. `weight` holds v."""

    def effective_weight(self) -> Tensor:
        """Return W [out, in] in float32."""
        weight = self.weight.float()
        return weight / row_norms(weight)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight().to(x.dtype), self.bias)


class SpectralNormLinear(nn.Linear):
    """Spectral normalisation: W = v / sigma(v), sigma the largest singular value.

    Power iteration (arXiv 1802.05957) keeps an estimate of the left singular vector in the
    buffer `left` [out]. It runs once per optimiser update, in the first forward pass after
    `begin_update`, so the result does not depend on the number of micro-batches.
    """

    left: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("left", F.normalize(torch.ones(out_features), dim=0))
        self._due = False

    def begin_update(self) -> None:
        """Run one power iteration in the next forward pass, because the weights have changed."""
        self._due = True

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Run power iterations: `left` approaches the left singular vector."""
        weight = self.weight.float()
        left = self.left.float()
        for _ in range(times):
            left = F.normalize(weight @ (weight.T @ left), dim=0)
        self.left.copy_(left)

    def effective_weight(self) -> Tensor:
        """Return W [out, in] in float32.

        sigma = ||v^T left||, the maximum of left^T v r over unit vectors r. The gradient treats
        both singular vectors as constants: at a maximum the derivative with respect to r is 0.
        """
        weight = self.weight.float()
        left = F.normalize(self.left.float(), dim=0)  # the buffer may be bf16
        sigma: Tensor = torch.linalg.vector_norm(weight.T @ left)
        return weight / sigma

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # autocast would round sigma to bf16
            if self._due:
                self.iterate()
                self._due = False
            weight = self.effective_weight()
        return F.linear(x, weight.to(x.dtype), self.bias)


def row_norms(weight: Tensor) -> Tensor:
    """Return the norm of every row, [out], at least LEAST_NORM so that it can divide."""
    lengths: Tensor = torch.linalg.vector_norm(weight, dim=1)
    return lengths.clamp(min=LEAST_NORM)


#: The class of up, gate and down for each `ffn_weight` of a sweep file.
GEOMETRIES: dict[str, type[nn.Linear]] = {
    "plain": nn.Linear,
    "weight_norm": WeightNormLinear,
    "spectral_norm": SpectralNormLinear,
    "hyperspherical": HypersphericalLinear,
}
