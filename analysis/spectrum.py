"""Metrics of the eigenspectrum of a feed-forward layer: how many of its D directions are in use.

The eigenvalues [..., D], in any order, are those of the centred, unbiased covariance of the
activations. With p = eigenvalues / their sum (arXiv 2510.00537, 2603.06922):

- hard rank    1 / sum p^2, the participation ratio; the Renyi rank of order 2
- soft rank    exp(-sum p ln p), the Shannon rank; the Renyi rank of order 1
- concentration  area between the cumulative variance curve and the diagonal, scaled to [0, 1];
  the Gini coefficient of the eigenvalues
- SUI          harmonic mean of H = (hard - 1)/(D - 1) and S = (soft - 1)/(D - 1)
- eDim         1 + (D - 1) SUI, from 1 to D

A layer whose output never changes has a spectrum of zeros. It is measured as fully collapsed, with
all ranks 1 and all bounds met, so that medians and the collapse rule include it. Its
`total_variance` of 0 distinguishes it from a true rank-one spectrum.

A spectrum can also be nodes with multiplicities, as a quadrature returns: D eigenvalues at fewer
than D distinct values. Multiplicities need not be whole numbers. D is their sum, and every metric
equals that of the repeated nodes.

Imports NumPy only, because the trainer imports this file.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.settings import SAMPLES_PER_DIMENSION

Floats = NDArray[np.float64]
SamplingStatus = Literal["well sampled", "undersampled"]

#: Rounding in float32 makes eigenvalues down to about -eps * sqrt(D) times the largest: -1e-5 at
#: D = 6144. Ten times that is an error.
NEGATIVE_TOLERANCE = 1e-4

#: Rounding error that a sum of multiplicities may have.
WIDTH_ROUNDING = 1e-6


@dataclass(frozen=True)
class SpectrumMetrics:
    """Metrics of one or many spectra; every field has the leading axes of the eigenvalues."""

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
    """Compute every metric of spectra.

    Args:
        eigenvalues: [..., D] of a covariance, in any order; or nodes [..., n] with `weights`.
        weights: [..., n] multiplicities of the nodes; their sum is D.

    Returns:
        The metrics, each of shape [...].

    Raises:
        ValueError: an eigenvalue is not finite or negative beyond rounding, a spectrum is empty,
            or weights are negative or sum to less than 1.

    Example:
        >>> float(measure([4.0, 4.0, 0.0, 0.0]).hard_rank)
        2.0
    """
    values, multiplicity = _blocks(eigenvalues, weights)
    share, multiplicity = _shares(values, multiplicity)
    width = np.sum(multiplicity, axis=-1)
    held = multiplicity * share
    hard = _within(1.0 / np.sum(held * share, axis=-1), 1.0, width)
    # Both are equal on a flat spectrum, where rounding could put the hard rank above the soft one.
    soft = np.maximum(_within(np.exp(_entropy(share, multiplicity)), 1.0, width), hard)
    # The cumulative curve is linear within a block of equal eigenvalues, so trapezoids are exact.
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
    """Compute SUI, the harmonic mean of the normalised ranks (rank - 1)/(D - 1).

    Args:
        hard_rank: [...] directions, from 1 to D.
        soft_rank: [...] directions, from `hard_rank` to D.
        width: [...] D.

    Returns:
        SUI in [0, 1], of shape [...]; 1 at D = 1. With this normalisation eDim runs from 1 to D.
    """
    hard, soft = np.asarray(hard_rank, float), np.asarray(soft_rank, float)
    idle = np.asarray(width, float) - 1.0
    span = np.where(idle > 0, idle, 1.0)
    h, s = (hard - 1.0) / span, (soft - 1.0) / span
    total = h + s
    index = np.divide(2.0 * h * s, total, out=np.zeros_like(total), where=total > 0)
    return np.where(idle > 0, index, 1.0)


def normalised(eigenvalues: ArrayLike) -> Floats:
    """Return the shares p [..., D] of spectra [..., D], in descending order; each sums to 1.

    Raises ValueError as `measure` does.
    """
    return _shares(*_blocks(eigenvalues, None))[0]


def expand(nodes: ArrayLike, weights: ArrayLike) -> Floats:
    """Expand nodes with multiplicities to D eigenvalues in descending order.

    The k-th eigenvalue is the node at the middle of the k-th direction. All are then scaled to the
    trace of the nodes. Whole multiplicities give the repeated nodes.

    Args:
        nodes: [n] eigenvalues.
        weights: [n] multiplicities; their sum, rounded, is D.

    Raises:
        ValueError: as in `measure`, or `nodes` are more than one spectrum.
    """
    values, multiplicity = _blocks(nodes, weights)
    if values.ndim != 1:
        raise ValueError(
            f"nodes of shape {values.shape} are not one spectrum; expand them one by one"
        )
    ends = np.cumsum(multiplicity)
    middles = np.arange(round(ends[-1])) + 0.5
    # The sum of fractional weights may round to just below a whole number.
    spread = values[np.minimum(np.searchsorted(ends, middles), len(values) - 1)]
    total = np.sum(spread)
    if total == 0:
        return spread
    expanded: Floats = spread * (_total(values, multiplicity) / total)
    return expanded


def renyi_rank(eigenvalues: ArrayLike, order: float, weights: ArrayLike | None = None) -> Floats:
    """Compute the Renyi rank (sum p^a)^(1/(1-a)) of spectra, which falls with the order a.

    Args:
        eigenvalues: [..., D], or nodes [..., n] with `weights`.
        order: a >= 0. Order 0 counts the directions in use, 1 is the soft rank, 2 the hard rank,
            and infinity the inverse share of the first direction.
        weights: [..., n] multiplicities, as in `measure`.

    Returns:
        The rank in directions, of shape [...].

    Raises:
        ValueError: as in `measure`, or the order is negative or NaN.
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
        # sum p^a is close to 1, and expm1 keeps the digits of its distance from 1.
        powers = np.expm1((order - 1) * np.log(np.where(share > 0, share, 1.0)))
        log_sum = np.log1p(np.sum(multiplicity * share * powers, axis=-1))
    else:
        top = share[..., :1]
        scaled = np.where(share > 0, (share / top) ** order, 0.0)
        log_sum = order * np.log(top[..., 0]) + np.log(np.sum(multiplicity * scaled, axis=-1))
    return _within(np.exp(log_sum / (1.0 - order)), 1.0, width)


def js_divergence(a: ArrayLike, b: ArrayLike) -> Floats:
    """Compute the Jensen-Shannon divergence of two sorted, normalised spectra.

    Args:
        a: [..., D] eigenvalues in any order. `expand` nodes with weights first.
        b: [..., D] eigenvalues in any order.

    Returns:
        The divergence in nats, 0 to ln 2, of shape [...].

    Raises:
        ValueError: as in `measure`, or D differs.
    """
    p, q = normalised(a), normalised(b)
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"spectra of {p.shape[-1]} and {q.shape[-1]} eigenvalues cannot be compared; both must "
            "have the same D"
        )
    one = np.ones_like(p)
    divergence = _entropy((p + q) / 2, one) - (_entropy(p, one) + _entropy(q, one)) / 2
    return _within(divergence, 0.0, float(np.log(2.0)))


def sampling_status(N: int, D: int) -> SamplingStatus:
    """Return "well sampled" for at least ten samples per dimension, else "undersampled"."""
    return "well sampled" if N >= SAMPLES_PER_DIMENSION * D else "undersampled"


def _blocks(eigenvalues: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    """Checked values [..., n] in descending order, none negative, and multiplicities [..., n]."""
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
        # Ignore nodes of multiplicity 0, but append one: a spectrum of zeros needs a second block
        # beside its first direction.
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
            f"weights of shape {checked.shape} do not match nodes of shape {values.shape}: give "
            "one weight per node"
        )
    wrong = ~((checked >= 0) & (checked < np.inf))
    if wrong.any():
        raise ValueError(f"weight {checked[wrong][0]} must be 0 or more, and finite")
    widths = np.sum(checked, axis=-1)
    if (widths < 1 - WIDTH_ROUNDING).any():
        raise ValueError(f"weights sum to {widths.min():.6g}; they must sum to D, at least 1")
    return checked


def _with_last(values: Floats) -> Floats:
    return np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)


def _shares(descending: Floats, multiplicity: Floats) -> tuple[Floats, Floats]:
    """Variance share of one direction of each block, and the multiplicities."""
    top = descending[..., :1]
    # Divide by the largest first, so that neither squares nor sums overflow or vanish.
    relative = np.divide(descending, top, out=np.zeros_like(descending), where=top > 0)
    relative[..., 0] = 1.0  # for a spectrum of zeros too: see the module docstring
    nothing = top == 0
    if nothing.any():
        one = np.zeros_like(multiplicity)
        one[..., 0] = 1.0
        one[..., -1] += np.sum(multiplicity, axis=-1) - 1.0
        multiplicity = np.where(nothing, one, multiplicity)
    shares: Floats = relative / np.sum(multiplicity * relative, axis=-1, keepdims=True)
    return shares, multiplicity


def _top_share(share: Floats, multiplicity: Floats, directions: int) -> Floats:
    """Variance share of the first `directions` directions; the last block may count in part."""
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
    """Clip rounding errors to bounds that hold exactly."""
    return np.asarray(np.clip(values, low, high), np.float64)
