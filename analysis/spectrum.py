"""The eigenspectrum of a feed-forward layer, and what it says about the directions in use.

Eigenvalues are of the centred, unbiased covariance of the activations, [..., D] in any order.
With p = eigenvalues / their sum (arXiv 2510.00537, 2603.06922):

- hard rank    1 / sum p^2, the participation ratio; the Renyi rank of order 2
- soft rank    exp(-sum p ln p), the Shannon rank; the Renyi rank of order 1
- concentration  area between the cumulative variance curve and the diagonal, scaled to [0, 1];
  the Gini coefficient of the eigenvalues
- SUI          harmonic mean of H = (hard - 1)/(D - 1) and S = (soft - 1)/(D - 1)
- eDim         1 + (D - 1) SUI, from 1 to D

A spectrum of nothing but zeros is a layer whose output never changes. It is measured as fully
collapsed (one direction holds all): every rank is 1 and every bound holds, so that no median or
collapse rule loses sight of it; `total_variance` 0 tells it from a true rank-one spectrum.

NumPy only: the trainer imports this file.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
SamplingStatus = Literal["well sampled", "undersampled"]

#: N/D below which every rank is biased downward, and more so at larger D.
SAMPLES_PER_DIMENSION = 10

#: A covariance in float32 has eigenvalues down to about -eps * sqrt(D) times the largest by
#: rounding alone: 1e-5 at D = 6144. Ten times that is no rounding.
NEGATIVE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class SpectrumMetrics:
    """Metrics of one or many spectra: every field has the leading axes of the eigenvalues."""

    hard_rank: Floats  # directions, in [1, D]
    soft_rank: Floats  # directions, in [hard_rank, D]
    hard_utilisation: Floats  # hard_rank / D
    soft_utilisation: Floats  # soft_rank / D
    concentration: Floats  # 0 for a flat spectrum, (D - 1)/D for rank one
    top1_share: Floats  # share of the variance in the first direction
    top10_share: Floats  # share of the variance in the first ten (all, where D < 10)
    sui: Floats  # in [0, 1]
    edim: Floats  # directions, in [1, D]
    total_variance: Floats  # sum of the eigenvalues, in squared units of the activations


def measure(eigenvalues: ArrayLike) -> SpectrumMetrics:
    """Every metric of spectra [..., D], in any order along the last axis.

    Raises ValueError for a non-finite or materially negative eigenvalue, or an empty spectrum.
    """
    checked = _checked(eigenvalues)
    share = _shares(checked)
    width = share.shape[-1]
    hard = _within(1.0 / np.sum(share**2, axis=-1), 1.0, width)
    # Equal by definition on a flat spectrum, where rounding alone could put hard above soft.
    soft = np.maximum(_within(np.exp(_entropy(share)), 1.0, width), hard)
    cumulative = np.cumsum(share, axis=-1)
    diagonal = np.arange(1, width + 1) / width
    concentration = _within(2.0 / width * np.sum(cumulative - diagonal, axis=-1), 0.0, 1.0)
    sui = utilisation_index(hard, soft, width)
    return SpectrumMetrics(
        hard_rank=hard,
        soft_rank=soft,
        hard_utilisation=hard / width,
        soft_utilisation=soft / width,
        concentration=concentration,
        top1_share=share[..., 0],
        top10_share=np.minimum(np.sum(share[..., :10], axis=-1), 1.0),
        sui=sui,
        edim=1.0 + (width - 1) * sui,
        total_variance=np.sum(checked, axis=-1),
    )


def utilisation_index(hard_rank: ArrayLike, soft_rank: ArrayLike, width: int) -> Floats:
    """SUI: harmonic mean of the normalised ranks, in [0, 1]; 1 at D = 1, where nothing is idle.

    The ranks are normalised as (rank - 1)/(D - 1): with that alone eDim runs from 1 to D.
    """
    hard, soft = np.asarray(hard_rank, float), np.asarray(soft_rank, float)
    if width == 1:
        return np.ones_like(hard)
    h, s = (hard - 1.0) / (width - 1), (soft - 1.0) / (width - 1)
    total = h + s
    return np.divide(2.0 * h * s, total, out=np.zeros_like(total), where=total > 0)


def normalised(eigenvalues: ArrayLike) -> Floats:
    """Shares p [..., D] in descending order, each spectrum summing to 1.

    Raises ValueError as `measure` does.
    """
    return _shares(_checked(eigenvalues))


def renyi_rank(eigenvalues: ArrayLike, order: float) -> Floats:
    """(sum p^a)^(1/(1-a)) of spectra [..., D]: directions, falling with the order a >= 0.

    Order 0 counts the directions in use, 1 is the soft rank, 2 the hard rank, and infinity the
    inverse share of the first direction. Raises ValueError for a negative or NaN order.
    """
    if not order >= 0:
        raise ValueError(f"order {order} of a Renyi rank must be 0 or more")
    share = normalised(eigenvalues)
    width = share.shape[-1]
    if order == 0:
        return np.asarray(np.count_nonzero(share, axis=-1), np.float64)
    if np.isinf(order):
        return _within(1.0 / share[..., 0], 1.0, width)
    if order == 1:
        return _within(np.exp(_entropy(share)), 1.0, width)
    if abs(order - 1) < 0.1:
        # sum p^a is close to 1: its distance from 1 must not be lost to rounding.
        powers = np.expm1((order - 1) * np.log(np.where(share > 0, share, 1.0)))
        log_sum = np.log1p(np.sum(share * powers, axis=-1))
    else:
        top = share[..., :1]
        scaled = np.where(share > 0, (share / top) ** order, 0.0)
        log_sum = order * np.log(top[..., 0]) + np.log(np.sum(scaled, axis=-1))
    return _within(np.exp(log_sum / (1.0 - order)), 1.0, width)


def js_divergence(a: ArrayLike, b: ArrayLike) -> Floats:
    """Jensen-Shannon divergence of sorted normalised spectra [..., D], in nats: 0 to ln 2.

    Raises ValueError where the widths differ, or as `measure` does.
    """
    p, q = normalised(a), normalised(b)
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"spectra of {p.shape[-1]} and {q.shape[-1]} eigenvalues have no divergence; "
            "both must be of the same layer"
        )
    divergence = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return _within(divergence, 0.0, float(np.log(2.0)))


def sampling_status(N: int, D: int) -> SamplingStatus:
    """Whether N samples are enough for a spectrum of width D: at least ten times as many."""
    return "well sampled" if N >= SAMPLES_PER_DIMENSION * D else "undersampled"


def _checked(eigenvalues: ArrayLike) -> Floats:
    """Finite, not negative, descending, in float64."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError("a spectrum needs at least one eigenvalue")
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise ValueError(f"eigenvalue {bad} is not finite: the activations overflowed or held NaN")
    descending = -np.sort(-values, axis=-1)
    lowest, largest = descending[..., -1], descending[..., 0]
    wrong = lowest < -NEGATIVE_TOLERANCE * np.maximum(largest, 0.0)
    if wrong.any():
        worst = np.argmin(np.where(wrong, lowest, np.inf))
        raise ValueError(
            f"eigenvalue {lowest.flat[worst]:.6g} is negative beyond rounding (the largest is "
            f"{largest.flat[worst]:.6g}): this is not the spectrum of a covariance"
        )
    return np.maximum(descending, 0.0)


def _shares(descending: Floats) -> Floats:
    top = descending[..., :1]
    # Relative to the largest first: neither squares nor sums can then overflow or vanish.
    relative = np.divide(descending, top, out=np.zeros_like(descending), where=top > 0)
    relative[..., 0] = 1.0  # for a spectrum of zeros too: see the head of this file
    shares: Floats = relative / np.sum(relative, axis=-1, keepdims=True)
    return shares


def _entropy(share: Floats) -> Floats:
    """-sum p ln p in nats; p = 0 contributes 0."""
    entropy: Floats = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1)
    return entropy


def _within(values: Floats, low: float, high: float) -> Floats:
    """Take off what rounding put beyond the bounds that the mathematics guarantees."""
    return np.asarray(np.clip(values, low, high), np.float64)
