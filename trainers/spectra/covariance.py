"""The covariance of activations, however they arrive: batch by batch, group by group, rank by rank.

Count, mean and scatter are kept in float32 on the device of the activations and merged exactly
(Chan, Golub & LeVeque, 1983). Only the upper half of the scatter is summed up.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from trainers.engine.engine import Ranks
from trainers.spectra.precision import products

#: Columns of the scatter that are summed at a time: what lies below the block on the diagonal is
#: not computed, which saves nearly half of the work at widths of several blocks.
BLOCK = 512


class Covariance:
    """Of samples of width D, seen so far. Adding samples leaves no graph behind."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        with torch.inference_mode(False):  # what is made within it could not be used outside
            self.mean = torch.zeros(width, device=device)
            # Sum of outer products about the mean; what is below the diagonal's blocks means
            # nothing until `scatter` is asked for.
            self._upper = torch.zeros(width, width, device=device)

    @property
    def width(self) -> int:
        """D, the number of eigenvalues."""
        return len(self.mean)

    @torch.no_grad()
    def add(self, samples: Float[Tensor, "*samples D"]) -> None:
        """Take a batch of samples."""
        x = samples.detach().reshape(-1, self.width)
        count = len(x)
        if count == 0:
            return
        mean = x.mean(0, dtype=torch.float32)
        # Activations in bfloat16 have 8 significant bits. TF32 keeps 11 of every centred value, at
        # an eighth of the time: what it adds in error is far below what is there.
        with products(x.device, tf32=x.dtype in (torch.bfloat16, torch.float16)):
            centred = (x - mean).float()
            for start in range(0, self.width, BLOCK):
                block = slice(start, start + BLOCK)
                self._upper[block, start:].addmm_(centred[:, block].T, centred[:, start:])
        self._merge_means(count, mean)

    @torch.no_grad()
    def merge(self, other: "Covariance") -> None:
        """Take all the samples of another covariance of the same width."""
        if other.count == 0:
            return
        self._upper += other._upper
        self._merge_means(other.count, other.mean)

    def _merge_means(self, count: int, mean: Tensor) -> None:
        """The rest of a merge, when the scatters have been added: the term between the means."""
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
        """Become the covariance of all ranks' samples. Collective."""
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
        """Whether every sample and its square was, in float32."""
        return bool(torch.isfinite(self._upper.diagonal()).all())

    def is_constant(self) -> bool:
        """Whether the samples are all the same, or differ by less than float32 can square."""
        info = torch.finfo(torch.float32)
        return bool((self._upper.diagonal() < info.tiny / info.eps).all())

    @property
    def scatter(self) -> Float[Tensor, "D D"]:
        """Sum of outer products about the mean, symmetric to the last bit."""
        for start in range(0, self.width, BLOCK):
            beyond = start + BLOCK
            block = self._upper[start:beyond, start:beyond]
            block.copy_((block + block.T) / 2)
            self._upper[beyond:, start:beyond] = self._upper[start:beyond, beyond:].T
        return self._upper

    def eigenvalues(self) -> Float[Tensor, " D"]:
        """Of the unbiased covariance, descending, in float64 on the CPU.

        Rounding may leave the smallest a little below 0. Raises ValueError for fewer than two
        samples, which have no covariance, and where samples or their squares are not finite.
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
        """What the scatter is divided by to become the unbiased covariance. Raises ValueError."""
        if self.count < 2:
            raise ValueError(f"{self.count} samples have no covariance; it takes two")
        return self.count - 1
