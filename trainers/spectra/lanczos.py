"""The spectrum of a large covariance by deflated stochastic Lanczos quadrature.

All D eigenvalues of a covariance cost O(D^3). The metrics of `analysis.spectrum` are sums over
eigenvalues, and for those a thousand products with vectors are enough, whatever D is:

1. the leading directions are found in a block Krylov space (arXiv 1504.05477, algorithm 2) and
   taken out, for they would dominate the variance of what follows;
2. what is left is sampled by stochastic Lanczos quadrature (Ubaru, Chen & Saad, SIAM J. Matrix
   Anal. Appl. 38, 2017): random probes, each with the Gauss quadrature of its own tridiagonal;
3. the weights of the sampled nodes are tilted until their number, their sum and the sum of their
   squares are those of the matrix, all three of which are known exactly.

Nothing of size [D, D] is made but one float32 working copy. Products are not rounded to TF32: the
tail of a concentrated spectrum would drown in it.
How accurate it is, and what it costs: benchmarks/lanczos_accuracy.py.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import t as student_t
from torch import Tensor

from analysis.spectrum import NEGATIVE_TOLERANCE, measure
from trainers.spectra.precision import products

Floats = NDArray[np.float64]

KRYLOV_BLOCK = 32  # columns of a product
KRYLOV_STEPS = 12  # products; enough for the leading directions of trained layers
#: A Krylov space as large as the matrix would save nothing: up to here all eigenvalues are found.
EXACT_WIDTH = KRYLOV_BLOCK * KRYLOV_STEPS
DEFLATED = 128  # directions taken out at most
#: What a direction taken out may have in common with the rest, relative to its eigenvalue. It
#: enters the eigenvalues squared; above a tenth it shows as bias, far below it costs directions.
COUPLING = 1e-2
FRESH = 1e-5  # relative to a product: how much of new random directions is added to it
PROBES = 16
STEPS = 40  # of Lanczos
FEWER_STEPS = 30  # what these give otherwise is the allowance for stopping at STEPS
#: Length of the next Lanczos vector, relative to the matrix, at which a Krylov space is whole.
BREAKDOWN = 1e-5
#: A remainder of less than this share of the variance is taken to be flat: how it is spread moves
#: no metric by more than its rounding.
NEGLIGIBLE_SHARE = 1e-6
#: Relative error of the metrics for each of the D directions: half a unit in the last place of
#: float32, about twice what was measured.
ROUNDING = 6e-8
#: Concentrations below it have errors relative to it: that of a flat spectrum is 0.
CONCENTRATION_FLOOR = 0.05
CONFIDENCE = 0.95
TINY = 1e-25  # in place of a length of 0, far from where float32 ends
CHUNK_ROWS = 256  # rows reduced in float64 at a time
NEWTON_STEPS = 50  # of a calibration, each halved so often at most
HALVINGS = 40
VALUE_ROUNDING = 1e-13  # of what a calibration minimises
CALIBRATED = 1e-11  # of a gradient: how far off the moments may be
RIDGE = 1e-7  # on a tilt; what it leaves the moments off is of the same order
#: Relative deviation of nodes below which they count as one: float32 knows the mean square of
#: which it is a part to about 1e-7.
DISTINCT = 1e-3


@dataclass(frozen=True)
class Quadrature:
    """D eigenvalues as nodes with multiplicities, and how far metrics of them may be off."""

    nodes: Floats  # [n], in the units of the covariance, not negative
    weights: Floats  # [n], not negative, adding up to D
    hard_rank: float  # exact: trace^2 / Frobenius norm^2
    #: 95 % bound of the largest relative error among soft rank, concentration and eDim; that of
    #: a concentration below 0.05 is relative to 0.05. 0 where the nodes are the eigenvalues.
    error_estimate: float


@torch.no_grad()
def quadrature(covariance: Float[Tensor, "D D"], seed: int) -> Quadrature:
    """Nodes and weights of the spectrum of a symmetric positive semi-definite matrix.

    A matrix of zeros has one node, 0, of multiplicity D. Equal seeds give equal bits on a CPU.
    Raises ValueError for a matrix that is not finite or has a materially negative eigenvalue.
    """
    width = len(covariance)
    trace, squares = _moments(covariance)
    if not (np.isfinite(trace) and np.isfinite(squares)):
        raise ValueError(
            f"a covariance of width {width} is not finite: the activations overflowed or held NaN"
        )
    if squares == 0:
        return Quadrature(np.zeros(1), np.array([float(width)]), 1.0, 0.0)
    if trace <= 0:
        raise ValueError(f"a matrix of width {width} and trace {trace:.6g} is no covariance")
    hard_rank = min(max(trace**2 / squares, 1.0), float(width))
    if width <= EXACT_WIDTH:
        values = torch.linalg.eigvalsh(covariance.double()).flip(0).cpu().numpy()
        return Quadrature(_not_negative(values, values[0]), np.ones(width), hard_rank, 0.0)
    with products(covariance.device):
        # In two steps: a trace may be beyond float32 where no element is.
        of_trace_one = (covariance.float() / (trace / width)).div_(width)
        nodes, weights, error = _of_trace_one(of_trace_one, seed)
    # Next to nothing, unless no weights of the sampled nodes have the moments of the matrix.
    missed = abs(float(measure(nodes, weights).hard_rank) / hard_rank - 1)
    return Quadrature(nodes * trace, weights, hard_rank, error + missed)


def _moments(matrix: Float[Tensor, "D D"]) -> tuple[float, float]:
    """Trace and squared Frobenius norm, summed in float64."""
    squares = [rows.double().square().sum() for rows in torch.split(matrix, CHUNK_ROWS)]
    return float(matrix.diagonal().double().sum()), float(torch.stack(squares).sum())


def _of_trace_one(matrix: Float[Tensor, "D D"], seed: int) -> tuple[Floats, Floats, float]:
    """Nodes, weights and the error estimate; `matrix` is used up."""
    rounding = ROUNDING * len(matrix)
    generator = torch.Generator().manual_seed(seed)
    leading, basis, coupling = _deflate(matrix, generator)
    rest_trace, rest_squares = _moments(matrix)
    moments = np.array([len(matrix) - len(leading), rest_trace, rest_squares + coupling])
    if rest_trace <= NEGLIGIBLE_SHARE:
        # Positive semi-definite, it could have no larger norm than its trace.
        _not_negative(np.array([rest_trace - rest_squares**0.5]), leading.max(initial=0.0))
        flat = np.array([max(rest_trace, 0.0) / moments[0]])
        return *_joined(leading, flat, moments[:1]), rounding

    probes = _probes(basis, generator)
    sizes = probes.double().square().sum(1).cpu().numpy()
    diagonal, off_diagonal = _lanczos(matrix, probes)
    largest = leading.max(initial=0.0)
    sample = _gauss(diagonal, off_diagonal, sizes, largest)
    fewer = _gauss(diagonal[:, :FEWER_STEPS], off_diagonal[:, : FEWER_STEPS - 1], sizes, largest)
    nodes, weights = _joined(leading, *_calibrated(*sample, np.ones(PROBES), moments))

    def judged(sample: tuple[Floats, Floats], used: Floats) -> Floats:
        found = measure(*_joined(leading, *_calibrated(*sample, used, moments)))
        concentration = np.maximum(found.concentration, CONCENTRATION_FLOOR)
        return np.stack([found.soft_rank, concentration, found.edim], axis=-1)

    value = judged(sample, np.ones(PROBES))
    left_out = judged(sample, 1.0 - np.eye(PROBES))  # the jackknife: each probe once
    deviations = left_out - left_out.mean(axis=0)
    spread = np.sqrt((PROBES - 1) / PROBES * np.sum(deviations**2, axis=0))
    stopping = np.abs(judged(fewer, np.ones(PROBES)) - value)
    quantile = student_t.ppf((1 + CONFIDENCE) / 2, PROBES - 1)
    error = float(np.max((quantile * spread + stopping) / value))
    return nodes, weights, error + rounding


# --- the leading directions ----------------------------------------------------------------


def _deflate(
    matrix: Float[Tensor, "D D"], generator: torch.Generator
) -> tuple[Floats, Float[Tensor, "D k"], float]:
    """The k <= DEFLATED leading eigenvalues and their directions, taken out of `matrix` in place.

    Also by how much the squared Frobenius norm falls short for it: that of the coupling between
    the directions and the rest, which is 0 for exact ones. A direction is taken only where that
    is small. Of a nearly flat spectrum there may be none, and there is no need of any.
    """
    width = len(matrix)
    basis = torch.empty(width, EXACT_WIDTH, device=matrix.device)
    image = torch.empty_like(basis)
    block = torch.zeros(width, KRYLOV_BLOCK, device=matrix.device)
    for start in range(0, EXACT_WIDTH, KRYLOV_BLOCK):
        before, columns = basis[:, :start], slice(start, start + KRYLOV_BLOCK)
        # Where the space is whole, a product has nothing new but rounding: something else is put
        # in its place. The first block is of that alone.
        fresh = torch.randn(width, KRYLOV_BLOCK, generator=generator).to(matrix.device)
        block += fresh * block.norm(dim=0).clamp_min(TINY) * (FRESH / width**0.5)
        for _ in range(2):  # the second time takes off what rounding left
            block = _orthonormal(block - before @ (before.T @ block))
        basis[:, columns] = block
        block = matrix @ block
        image[:, columns] = block
    projected = (basis.double().T @ image.double()).cpu()
    values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    values, rotation = values.flip(0)[:DEFLATED], vectors.flip(1)[:, :DEFLATED].to(matrix)
    basis, image = basis @ rotation, image @ rotation
    coupled = (image - basis * values.to(matrix)).double().norm(dim=0).cpu()

    taken = torch.nonzero(coupled < COUPLING * values).ravel()
    values, coupled = values[taken], coupled[taken]
    basis, image = basis[:, taken.to(matrix.device)], image[:, taken.to(matrix.device)]
    # (I - QQ') S (I - QQ') = S - Q H' - H Q' with H = SQ - Q T / 2, where T = Q'SQ is diagonal
    half = image - basis * (values.to(matrix) / 2)
    matrix.addmm_(basis, half.T, alpha=-1)
    matrix.addmm_(half, basis.T, alpha=-1)
    return values.numpy(), basis, 2 * float(coupled.square().sum())


def _orthonormal(block: Float[Tensor, "D k"]) -> Float[Tensor, "D k"]:
    """Of the same span, by Cholesky QR in float64, whose range is the square of float32's.

    The shift keeps it from failing where columns depend on each other. What rounding made of such
    columns, or zeros, is left in their place.
    """
    columns = block.double()
    columns = columns / columns.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    gram = columns.T @ columns
    gram.diagonal().add_(torch.finfo(torch.float64).eps * 8 * len(gram))
    factor, _ = torch.linalg.cholesky_ex(gram)
    orthonormal: Tensor = torch.linalg.solve_triangular(factor.T, columns, upper=True, left=False)
    return orthonormal.to(block.dtype)


# --- the rest, sampled ---------------------------------------------------------------------


def _probes(basis: Float[Tensor, "D k"], generator: torch.Generator) -> Float[Tensor, "probes D"]:
    """Random signs without the directions taken out; drawn on the CPU for every device alike."""
    draws = torch.randint(2, (PROBES, len(basis)), generator=generator)
    signs = (2 * draws - 1).to(basis)
    return signs - (signs @ basis) @ basis.T


def _lanczos(
    matrix: Float[Tensor, "D D"], probes: Float[Tensor, "probes D"]
) -> tuple[Floats, Floats]:
    """Tridiagonals of every probe, all probes in one block: [probes, STEPS] on the diagonal and
    [probes, STEPS - 1] beside it.

    Reorthogonalised in full, twice. Where a Krylov space is whole, the rest of them is zero.
    """
    count, width = probes.shape
    kept = torch.empty(count, STEPS, width, device=matrix.device)
    vector = probes / probes.norm(dim=1, keepdim=True)
    largest = torch.zeros(count, 1, device=matrix.device)
    diagonal, off_diagonal = [], []
    for step in range(STEPS):
        kept[:, step] = vector
        before = kept[:, : step + 1]
        vector = vector @ matrix
        along = torch.zeros(count, step + 1, 1, device=matrix.device)
        for _ in range(2):
            part = torch.bmm(before, vector[:, :, None])
            vector = vector - torch.bmm(part.mT, before)[:, 0]
            along += part
        length = vector.norm(dim=1, keepdim=True)
        diagonal.append(along[:, step])
        largest = torch.maximum(largest, diagonal[-1].abs() + length)
        length = torch.where(length > BREAKDOWN * largest, length, 0.0)
        off_diagonal.append(length)
        vector = torch.where(length > 0, vector / length, 0.0)
    return (
        torch.cat(diagonal, dim=1).double().cpu().numpy(),
        torch.cat(off_diagonal[:-1], dim=1).double().cpu().numpy(),
    )


def _gauss(
    diagonal: Floats, off_diagonal: Floats, sizes: Floats, largest: float
) -> tuple[Floats, Floats]:
    """Nodes and weights [probes, steps] of every probe; its weights add up to its size.

    `largest` is the largest eigenvalue outside of what was sampled.
    """
    probes, steps = diagonal.shape
    tridiagonal = np.zeros((probes, steps, steps))
    index = np.arange(steps)
    tridiagonal[:, index, index] = diagonal
    tridiagonal[:, index[1:], index[:-1]] = off_diagonal  # eigh reads the lower half
    nodes, vectors = np.linalg.eigh(tridiagonal)
    nodes = _not_negative(nodes, max(largest, float(nodes.max())))
    return nodes, vectors[:, 0, :] ** 2 * sizes[:, None]


def _not_negative(values: Floats, largest: float) -> Floats:
    """Without what rounding put below 0. Raises ValueError for what is no rounding."""
    lowest = float(values.min())
    if lowest < -NEGATIVE_TOLERANCE * largest:
        raise ValueError(
            f"eigenvalue {lowest:.6g} is negative beyond rounding (the largest is "
            f"{largest:.6g}): this is not the spectrum of a covariance"
        )
    return np.maximum(values, 0.0)


def _joined(leading: Floats, nodes: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Nodes and weights [..., k + n] of the leading directions, once each, and of the rest."""
    batch = weights.shape[:-1]
    leading = np.broadcast_to(leading, (*batch, len(leading)))
    return (
        np.concatenate([leading, np.broadcast_to(nodes, weights.shape)], axis=-1),
        np.concatenate([np.ones_like(leading), weights], axis=-1),
    )


# --- calibration ---------------------------------------------------------------------------


def _calibrated(
    nodes: Floats, weights: Floats, used: Floats, moments: Floats
) -> tuple[Floats, Floats]:
    """Nodes and weights [..., probes * steps] whose moments of order 0, 1 and 2 are those given.

    `used` [..., probes] is 1 for the probes that count and 0 for others. The first two moments
    are exact to rounding, for the nodes are scaled by what the tilted weights miss, about 1e-8.
    """
    count, mean, mean_square = moments[0], moments[1] / moments[0], moments[2] / moments[0]
    nodes = nodes.ravel()
    weights = (used[..., None] * weights).reshape(*used.shape[:-1], -1)
    weights = _tilted(weights / weights.sum(axis=-1, keepdims=True), nodes, mean, mean_square)
    return nodes * (mean / np.sum(weights * nodes, axis=-1, keepdims=True)), count * weights


def _tilted(weights: Floats, nodes: Floats, mean: float, mean_square: float) -> Floats:
    """Weights proportional to w exp(c1 z + c2 z^2) [..., n] that have those moments.

    They add up to 1 and are, of all that have the moments, the nearest in relative entropy to the
    given ones, w. z are the standardised nodes. With the features f = (z, z^2 / its size), c
    minimises the convex ln sum(w exp(c . f)) - c . target + RIDGE |c|^2 / 2, by Newton's method
    with halved steps. The ridge decides where there is no such tilt, or many: two clusters of
    nodes have only one proportion to choose, and rounding makes two demands of it.
    """
    centre = np.sum(weights * nodes, axis=-1, keepdims=True)
    deviation = np.sqrt(np.sum(weights * (nodes - centre) ** 2, axis=-1, keepdims=True))
    deviation = np.maximum(deviation, DISTINCT * centre)
    z = (nodes - centre) / deviation
    size = np.maximum(np.sqrt(np.sum(weights * z**4, axis=-1, keepdims=True)), 1.0)
    features = np.stack([z, z**2 / size], axis=-1)
    first = (mean - centre) / deviation
    second = (mean_square - 2 * mean * centre + centre**2) / deviation**2
    second = np.maximum(second, first**2) / size  # no weights have less
    target = np.concatenate([first, second], axis=-1)
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)  # minus infinity stays out of everything

    def at(c: Floats) -> tuple[Floats, Floats]:
        exponent = log_weights + np.einsum("...nk,...k->...n", features, c)
        largest = np.max(exponent, axis=-1, keepdims=True)
        tilted = np.exp(exponent - largest)
        total = np.sum(tilted, axis=-1, keepdims=True)
        value = largest[..., 0] + np.log(total[..., 0]) + np.sum(c * (RIDGE * c / 2 - target), -1)
        return tilted / total, value

    c = np.zeros_like(target)
    tilted, value = at(c)
    for _ in range(NEWTON_STEPS):
        found = np.einsum("...n,...nk->...k", tilted, features)
        gradient = found - target + RIDGE * c
        if np.max(np.abs(gradient)) < CALIBRATED:
            break
        about = features - found[..., None, :]
        hessian = np.einsum("...n,...nk,...nl->...kl", tilted, about, about) + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        length = np.ones_like(value)
        for _ in range(HALVINGS):
            next_c = c - length[..., None] * step
            tilted, next_value = at(next_c)
            # Near the minimum a good step changes the value by less than its rounding.
            rises = next_value > value + VALUE_ROUNDING * (1 + np.abs(value))
            if not rises.any():
                break
            length = np.where(rises, length / 2, length)
        c, value = next_c, next_value
    return tilted
