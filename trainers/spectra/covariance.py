"""Streaming covariance of activations, merged over batches, groups and ranks.

Count, mean and scatter (the sum of outer products about the mean) are float32, on the device of
the activations. The merge is exact up to rounding (Chan, Golub & LeVeque, 1983). Only the upper
half of the scatter is accumulated.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from trainers.engine.engine import Ranks
from trainers.spectra.precision import products

#: Rows of the scatter that one product updates. Blocks below the diagonal are skipped, which saves
#: nearly half of the work at widths of several blocks.
BLOCK = 512


class Covariance:
    """The covariance of all samples [D] added so far. Takes D^2 float32 values of memory.

    No autograd graph is kept.

    Args:
        width: D.
        device: The device of the samples.

    Example:
        covariance = Covariance(4 * 256)
        covariance.add(torch.randn(8, 64, 4 * 256))  # 512 samples
        covariance.eigenvalues()  # [1024]
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        with torch.inference_mode(False):  # inference tensors cannot be updated outside the mode
            self.mean = torch.zeros(width, device=device)
            # The scatter; blocks below the diagonal are undefined until `scatter` fills them.
            self._upper = torch.zeros(width, width, device=device)

    @property
    def width(self) -> int:
        """D, the width of the samples and the number of eigenvalues."""
        return len(self.mean)

    @torch.no_grad()
    def add(self, samples: Float[Tensor, "*samples D"]) -> None:
        """Add a batch of samples [..., D] of any floating-point type."""
        x = samples.detach().reshape(-1, self.width)
        count = len(x)
        if count == 0:
            return
        mean = x.mean(0, dtype=torch.float32)
        # bfloat16 activations have 8 significant bits. TF32 keeps 11 bits of every centred value
        # and takes an eighth of the time: its error is far below the one already there.
        with products(x.device, tf32=x.dtype in (torch.bfloat16, torch.float16)):
            centred = (x - mean).float()
            for start in range(0, self.width, BLOCK):
                block = slice(start, start + BLOCK)
                self._upper[block, start:].addmm_(centred[:, block].T, centred[:, start:])
        self._merge_means(count, mean)

    @torch.no_grad()
    def merge(self, other: "Covariance") -> None:
        """Add all samples of another covariance of the same width."""
        if other.count == 0:
            return
        self._upper += other._upper
        self._merge_means(other.count, other.mean)

    def _merge_means(self, count: int, mean: Tensor) -> None:
        """Finish a merge after the scatters were added: add the term between the means."""
        total = self.count + count
        if self.count:
            between = mean - self.mean
            self._upper.addr_(between, between, alpha=self.count * count / total)
            self.mean += between * (count / total)
        else:
            self.mean.copy_(mean)
        self.count = total

    @torch.no_grad()
    def merge_ranks(self, ranks: Ranks) -> None:
        """Replace this covariance by that of all ranks' samples, on every rank. Collective."""
        if ranks.world_size == 1:
            return
        # float64: float32 counts exactly only up to 2^24 samples
        counts = ranks.sum(torch.tensor(self.count, dtype=torch.float64, device=self.mean.device))
        if counts == 0:
            return
        mean = ranks.sum(self.mean * self.count) / counts
        between = self.mean - mean
        self._upper.addr_(between, between, alpha=self.count)
        ranks.sum(self._upper)
        self.mean, self.count = mean.float(), int(counts)

    def is_finite(self) -> bool:
        """Return whether all samples and their squares are finite in float32."""
        return bool(torch.isfinite(self._upper.diagonal()).all())

    def is_constant(self) -> bool:
        """Return whether all samples are equal, up to differences whose squares underflow."""
        info = torch.finfo(torch.float32)
        return bool((self._upper.diagonal() < info.tiny / info.eps).all())

    @property
    def scatter(self) -> Float[Tensor, "D D"]:
        """The sum of outer products about the mean, exactly symmetric.

        It is the buffer itself: `add` and the merges change it.
        """
        for start in range(0, self.width, BLOCK):
            beyond = start + BLOCK
            block = self._upper[start:beyond, start:beyond]
            block.copy_((block + block.T) / 2)
            self._upper[beyond:, start:beyond] = self._upper[start:beyond, beyond:].T
        return self._upper

    def eigenvalues(self) -> Float[Tensor, " D"]:
        """Return the eigenvalues of the unbiased covariance, descending, float64 on the CPU.

        Rounding can leave the smallest slightly below 0. Takes O(D^3) time.

        Raises:
            ValueError: There are fewer than two samples, or samples or their squares are not
                finite in float32.
        """
        degrees = self.degrees_of_freedom
        if not self.is_finite():
            raise ValueError("the activations, or their squares in float32, are not finite")
        if self.is_constant():
            return torch.zeros(self.width, dtype=torch.float64)
        eigenvalues: Tensor = torch.linalg.eigvalsh(self.scatter.double())
        return eigenvalues.flip(0).cpu() / degrees

    @property
    def degrees_of_freedom(self) -> int:
        """count - 1: the unbiased covariance is the scatter divided by it.

        Raises:
            ValueError: There are fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, and there are {self.count}")
        return self.count - 1
