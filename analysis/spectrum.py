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

A spectrum may be given as nodes with multiplicities: the D eigenvalues then lie at fewer than D
distinct places, as a quadrature puts them. Multiplicities need not be whole numbers; D is their
sum, and every metric is that of the repeated nodes.

NumPy only: the trainer imports this file.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.settings import SAMPLES_PER_DIMENSION

Floats = NDArray[np.float64]
SamplingStatus = Literal["well sampled", "undersampled"]

#: A covariance in float32 has eigenvalues down to about -eps * sqrt(D) times the largest by
#: rounding alone: 1e-5 at D = 6144. Ten times that is no rounding.
NEGATIVE_TOLERANCE = 1e-4

#: Multiplicities are sums of many: they may miss a whole number by this much.
WIDTH_ROUNDING = 1e-6


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


def measure(eigenvalues: ArrayLike, weights: ArrayLike | None = None) -> SpectrumMetrics:
    """Every metric of spectra [..., D], in any order along the last axis.

    With `weights` [..., n] the eigenvalues [..., n] are nodes of those multiplicities, whose sum
    is D. Raises ValueError for a non-finite or materially negative eigenvalue, an empty spectrum,
    or weights that are negative or add up to less than one direction.
    """
    values, multiplicity = _blocks(eigenvalues, weights)
    share, multiplicity = _shares(values, multiplicity)
    width = np.sum(multiplicity, axis=-1)
    held = multiplicity * share
    hard = _within(1.0 / np.sum(held * share, axis=-1), 1.0, width)
    # Equal by definition on a flat spectrum, where rounding alone could put hard above soft.
    soft = np.maximum(_within(np.exp(_entropy(share, multiplicity)), 1.0, width), hard)
    # Within a block of equal eigenvalues the cumulative curve is straight: trapezoids are exact.
    before = np.cumsum(held, axis=-1) - held
    area = np.sum(multiplicity * (before + held / 2.0), axis=-1)
    concentration = _within(2.0 / width * area - 1.0, 0.0, 1.0)
    sui = utilisation_index(hard, soft, width)
    return SpectrumMetrics(
        hard_rank=hard,
        soft_rank=soft,
        hard_utilisation=hard / width,
        soft_utilisation=soft / width,
        concentration=concentration,
        top1_share=_top_share(share, multiplicity, 1),
        top10_share=_top_share(share, multiplicity, 10),
        sui=sui,
        edim=1.0 + (width - 1.0) * sui,
        total_variance=_total(values, multiplicity),
    )


def utilisation_index(hard_rank: ArrayLike, soft_rank: ArrayLike, width: ArrayLike) -> Floats:
    """SUI: harmonic mean of the normalised ranks, in [0, 1]; 1 at D = 1, where nothing is idle.

    The ranks are normalised as (rank - 1)/(D - 1): with that alone eDim runs from 1 to D.
    """
    hard, soft = np.asarray(hard_rank, float), np.asarray(soft_rank, float)
    idle = np.asarray(width, float) - 1.0
    span = np.where(idle > 0, idle, 1.0)
    h, s = (hard - 1.0) / span, (soft - 1.0) / span
    total = h + s
    index = np.divide(2.0 * h * s, total, out=np.zeros_like(total), where=total > 0)
    return np.where(idle > 0, index, 1.0)


def normalised(eigenvalues: ArrayLike) -> Floats:
    """Shares p [..., D] in descending order, each spectrum summing to 1.

    Raises ValueError as `measure` does.
    """
    return _shares(*_blocks(eigenvalues, None))[0]


def expand(nodes: ArrayLike, weights: ArrayLike) -> Floats:
    """The D eigenvalues [D] in descending order that nodes [n] of multiplicities [n] stand for.

    The k-th is the node that the middle of the k-th direction falls on; all are then scaled to
    the trace of the nodes. Whole multiplicities give the repeated nodes. Raises ValueError as
    `measure` does.
    """
    values, multiplicity = _blocks(nodes, weights)
    if values.ndim != 1:
        raise ValueError(f"nodes of shape {values.shape} are not one spectrum; expand one by one")
    ends = np.cumsum(multiplicity)
    middles = np.arange(round(ends[-1])) + 0.5
    # Fractional weights may add up to a little less than a whole number.
    spread = values[np.minimum(np.searchsorted(ends, middles), len(values) - 1)]
    total = np.sum(spread)
    if total == 0:
        return spread
    expanded: Floats = spread * (_total(values, multiplicity) / total)
    return expanded


def renyi_rank(eigenvalues: ArrayLike, order: float, weights: ArrayLike | None = None) -> Floats:
    """(sum p^a)^(1/(1-a)) of spectra [..., D]: directions, falling with the order a >= 0.

    Order 0 counts the directions in use, 1 is the soft rank, 2 the hard rank, and infinity the
    inverse share of the first direction. Weights are as in `measure`. Raises ValueError for a
    negative or NaN order.
    """
    if not order >= 0:
        raise ValueError(f"order {order} of a Renyi rank must be 0 or more")
    share, multiplicity = _shares(*_blocks(eigenvalues, weights))
    width = np.sum(multiplicity, axis=-1)
    if order == 0:
        return _within(np.sum(np.where(share > 0, multiplicity, 0.0), axis=-1), 1.0, width)
    if np.isinf(order):
        return _within(1.0 / share[..., 0], 1.0, width)
    if order == 1:
        return _within(np.exp(_entropy(share, multiplicity)), 1.0, width)
    if abs(order - 1) < 0.1:
        # sum p^a is close to 1: its distance from 1 must not be lost to rounding.
        powers = np.expm1((order - 1) * np.log(np.where(share > 0, share, 1.0)))
        log_sum = np.log1p(np.sum(multiplicity * share * powers, axis=-1))
    else:
        top = share[..., :1]
        scaled = np.where(share > 0, (share / top) ** order, 0.0)
        log_sum = order * np.log(top[..., 0]) + np.log(np.sum(multiplicity * scaled, axis=-1))
    return _within(np.exp(log_sum / (1.0 - order)), 1.0, width)


def js_divergence(a: ArrayLike, b: ArrayLike) -> Floats:
    """Jensen-Shannon divergence of sorted normalised spectra [..., D], in nats: 0 to ln 2.

    Spectra of nodes and weights are compared after `expand`. Raises ValueError where the widths
    differ, or as `measure` does.
    """
    p, q = normalised(a), normalised(b)
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"spectra of {p.shape[-1]} and {q.shape[-1]} eigenvalues have no divergence; "
            "both must be of the same layer"
        )
    one = np.ones_like(p)
    divergence = _entropy((p + q) / 2, one) - (_entropy(p, one) + _entropy(q, one)) / 2
    return _within(divergence, 0.0, float(np.log(2.0)))


def sampling_status(N: int, D: int) -> SamplingStatus:
    """Whether N samples are enough for a spectrum of width D: at least ten times as many."""
    return "well sampled" if N >= SAMPLES_PER_DIMENSION * D else "undersampled"


def _blocks(eigenvalues: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    """Values [..., n], finite, not negative and descending, with their multiplicities [..., n]."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError("a spectrum needs at least one eigenvalue")
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise ValueError(f"eigenvalue {bad} is not finite: the activations overflowed or held NaN")
    if weights is None:
        descending = -np.sort(-values, axis=-1)
        multiplicity = np.ones_like(descending)
    else:
        values, multiplicity = np.broadcast_arrays(values, _checked_weights(weights, values))
        # A node that nothing lies at says nothing. One such is put at the end in any case: a
        # spectrum of zeros needs a place beside its first direction.
        values = _with_last(np.where(multiplicity > 0, values, 0.0))
        multiplicity = _with_last(multiplicity)
        order = np.argsort(-values, axis=-1, kind="stable")
        descending = np.take_along_axis(values, order, axis=-1)
        multiplicity = np.take_along_axis(multiplicity, order, axis=-1)
    lowest, largest = descending[..., -1], descending[..., 0]
    wrong = lowest < -NEGATIVE_TOLERANCE * np.maximum(largest, 0.0)
    if wrong.any():
        worst = np.argmin(np.where(wrong, lowest, np.inf))
        raise ValueError(
            f"eigenvalue {lowest.flat[worst]:.6g} is negative beyond rounding (the largest is "
            f"{largest.flat[worst]:.6g}): this is not the spectrum of a covariance"
        )
    return np.maximum(descending, 0.0), multiplicity


def _checked_weights(weights: ArrayLike, values: Floats) -> Floats:
    checked = np.asarray(weights, dtype=np.float64)
    if checked.ndim == 0 or checked.shape[-1] != values.shape[-1]:
        raise ValueError(
            f"weights of shape {checked.shape} do not go with nodes of shape {values.shape}: "
            "one for every node"
        )
    wrong = ~((checked >= 0) & (checked < np.inf))
    if wrong.any():
        raise ValueError(f"weight {checked[wrong][0]} is no multiplicity; it must be 0 or more")
    widths = np.sum(checked, axis=-1)
    if (widths < 1 - WIDTH_ROUNDING).any():
        raise ValueError(f"weights adding up to {widths.min():.6g} are less than one direction")
    return checked


def _with_last(values: Floats) -> Floats:
    return np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)


def _shares(descending: Floats, multiplicity: Floats) -> tuple[Floats, Floats]:
    """Share of the variance of one direction of each block, and the multiplicities."""
    top = descending[..., :1]
    # Relative to the largest first: neither squares nor sums can then overflow or vanish.
    relative = np.divide(descending, top, out=np.zeros_like(descending), where=top > 0)
    relative[..., 0] = 1.0  # for a spectrum of zeros too: see the head of this file
    nothing = top == 0
    if nothing.any():
        one = np.zeros_like(multiplicity)
        one[..., 0] = 1.0
        one[..., -1] += np.sum(multiplicity, axis=-1) - 1.0
        multiplicity = np.where(nothing, one, multiplicity)
    shares: Floats = relative / np.sum(multiplicity * relative, axis=-1, keepdims=True)
    return shares, multiplicity


def _top_share(share: Floats, multiplicity: Floats, directions: int) -> Floats:
    """Share of the variance in the first so many directions, the last block taken in part."""
    filled = np.cumsum(multiplicity, axis=-1) - multiplicity
    taken = np.clip(directions - filled, 0.0, multiplicity)
    return _within(np.sum(taken * share, axis=-1), 0.0, 1.0)


def _total(values: Floats, multiplicity: Floats) -> Floats:
    return np.asarray(np.sum(multiplicity * values, axis=-1), np.float64)


def _entropy(share: Floats, multiplicity: Floats) -> Floats:
    """-sum p ln p in nats over directions; p = 0 contributes 0."""
    logs = np.log(np.where(share > 0, share, 1.0))
    entropy: Floats = -np.sum(multiplicity * share * logs, axis=-1)
    return entropy


def _within(values: Floats, low: float, high: ArrayLike) -> Floats:
    """Take off what rounding put beyond the bounds that the mathematics guarantees."""
    return np.asarray(np.clip(values, low, high), np.float64)
