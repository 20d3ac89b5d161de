"""The hard rank without its bias in the number of samples.

The hard rank is (tr C)^2 / tr C^2. A sample covariance C of n = N - 1 degrees of freedom has noise
in each of its D^2 entries, and tr C^2 sums the squares of all entries. So it is too large, by about
(tr C)^2 / n, and the measured rank R is too low, by about R^2 / n. Where all widths have the same
N and the rank grows with D, the ranks of wide layers are too low by a larger factor, and so the
exponent of the rank law is too low.

For independent Gaussian samples of covariance S both moments have unbiased estimates (Bai &
Saranadasa 1996, Statistica Sinica 6:311; Srivastava 2005, J. Japan Statist. Soc. 35:251):

    tr S^2     n^2 / ((n - 1)(n + 2)) * (tr C^2 - (tr C)^2 / n)
    (tr S)^2   (tr C)^2 - 2/n * (the estimate of tr S^2)

Their ratio depends only on the measured rank and n, so it can be computed from any record. To first
order it is 1 / (1/R - 1/n).

Real activations are neither independent nor Gaussian. Tokens of different length (heavy tails) and
tokens that resemble others of their window add to the bias, and what they add stays: the debiased
rank is then still too low. Nothing makes it materially too high, because the bias is at least
(E|x|^2)^2 / n for independent samples of any distribution (Jensen's inequality).
benchmarks/rank_bias.py measures both.

Imports NumPy only.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: The debiased rank of an isotropic covariance scatters about D with a standard deviation of 2 D/n.
#: An estimate above D by more than three of these means that N is too small for the correction.
ABOVE_D = 3 * 2


def debiased_hard_rank(hard_rank: ArrayLike, samples: ArrayLike, width: ArrayLike) -> Floats:
    """Return the hard rank that the true covariance would have, if samples are Gaussian.

    Args:
        hard_rank: [...] directions, of the centred sample covariance.
        samples: [...] N, the number of samples.
        width: [...] D.

    Returns:
        Directions, of shape [...]; never below `hard_rank`, and 1 where that is 1. NaN where there
        is no estimate: fewer than three samples, a hard rank that is no number from 1 on, or N too
        small, which shows in an estimate that is not positive or larger than D.

    Example:
        >>> debiased_hard_rank(51.2, 4 * 64, 64)  # white noise: 64 directions, and 51.2 measured
        array(64.30...)
    """
    rank = np.asarray(hard_rank, float)
    n, directions = np.asarray(samples, float) - 1, np.asarray(width, float)
    rank, n, directions = np.broadcast_arrays(rank, n, directions)
    usable = np.isfinite(rank) & (rank >= 1) & (n >= 2) & (rank < n)
    rank, n = np.where(usable, rank, 1.0), np.where(usable, n, 2.0)
    squares = n**2 / ((n - 1) * (n + 2)) * (1 - rank / n)  # of tr Sigma^2, in units of tr C^2
    found = rank / squares - 2 / n
    usable = usable & (found <= directions * (1 + ABOVE_D / n))
    return np.where(usable, found, np.nan)
