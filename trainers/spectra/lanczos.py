"""The spectrum of a large covariance by deflated stochastic Lanczos quadrature.

Computing all D eigenvalues of a covariance costs O(D^3). The metrics of `analysis.spectrum` are
sums over eigenvalues, and about a thousand matrix-vector products estimate them at any D:

1. Deflation: find the leading eigenvectors in a block Krylov space (arXiv 1504.05477, algorithm 2)
   and remove them from the matrix. They would dominate the variance of step 2.
2. Sampling: estimate the rest by stochastic Lanczos quadrature (Ubaru, Chen & Saad, SIAM J. Matrix
   Anal. Appl. 38, 2017). Each random probe gives a tridiagonal matrix and its Gauss quadrature.
3. Calibration: tilt the weights of the sampled nodes until their sum, mean and mean square equal
   the number of eigenvalues, the trace and the squared Frobenius norm, which are known exactly.

Memory: one float32 working copy [D, D]. Products are not rounded to TF32, because its error would
exceed the tail of a concentrated spectrum.
benchmarks/lanczos_accuracy.py measures accuracy and cost.
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

KRYLOV_BLOCK = 32  # columns per product
KRYLOV_STEPS = 12  # products; enough for the leading directions of trained layers
#: Size of the Krylov space. Up to this D it would span everything: compute all eigenvalues instead.
EXACT_WIDTH = KRYLOV_BLOCK * KRYLOV_STEPS
DEFLATED = 128  # most directions to deflate
#: Largest residual of a deflated direction, relative to its eigenvalue. Its square enters the
#: eigenvalues: above 0.1 it shows as bias, and a much smaller limit leaves too few directions.
COUPLING = 1e-2
FRESH = 1e-5  # size of the random directions added to a product, relative to the product
PROBES = 16
STEPS = 40  # Lanczos steps
FEWER_STEPS = 30  # the difference to STEPS estimates the error of stopping there
#: Relative size of the next Lanczos vector below which the Krylov space counts as invariant.
BREAKDOWN = 1e-5
#: A remainder with less than this share of the variance is treated as flat: its shape changes the
#: metrics by less than rounding does.
NEGLIGIBLE_SHARE = 1e-6
#: Relative rounding error of the metrics per direction: half a unit in the last place of float32,
#: about twice the measured error.
ROUNDING = 6e-8
#: Errors of smaller concentrations are relative to this: a flat spectrum has concentration 0.
CONCENTRATION_FLOOR = 0.05
CONFIDENCE = 0.95
TINY = 1e-25  # replaces a norm of 0 in a product; well inside float32's range
CHUNK_ROWS = 256  # rows reduced in float64 at a time
NEWTON_STEPS = 50  # most Newton steps of a calibration
HALVINGS = 40  # most halvings of one Newton step
VALUE_ROUNDING = 1e-13  # relative rounding of the calibration's objective
CALIBRATED = 1e-11  # gradient at which a calibration stops: the error of the moments
RIDGE = 1e-7  # penalty on a tilt; it leaves an error of the same order in the moments
#: Relative deviation below which nodes count as one: float32 gives their mean square, of which the
#: squared deviation is a part, only to about 1e-7.
DISTINCT = 1e-3


@dataclass(frozen=True)
class Quadrature:
    """A spectrum of D eigenvalues as n nodes with multiplicities.

    `analysis.spectrum.measure(nodes, weights)` computes its metrics.

    Attributes:
        nodes: [n], not negative, in the units of the covariance.
        weights: [n], not negative, with sum D.
        hard_rank: Exact: trace^2 / squared Frobenius norm.
        error_estimate: 95 % bound on the largest relative error among soft rank, concentration
            and eDim. The error of a concentration below 0.05 is relative to 0.05. 0 if the nodes
            are the eigenvalues.
    """

    nodes: Floats
    weights: Floats
    hard_rank: float
    error_estimate: float


@torch.no_grad()
def quadrature(covariance: Float[Tensor, "D D"], seed: int) -> Quadrature:
    """Return nodes and weights for the spectrum of a symmetric positive semi-definite matrix.

    Up to D = 384 the nodes are the eigenvalues, descending. A zero matrix has one node 0 of
    multiplicity D.

    Args:
        covariance: On any device; it is not changed.
        seed: For the random directions and probes. Equal seeds give equal bits on a CPU.

    Raises:
        ValueError: The matrix is not finite, or an eigenvalue is negative beyond rounding.
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
        raise ValueError(
            f"a matrix of width {width} has trace {trace:.6g}; that of a covariance is positive"
        )
    hard_rank = min(max(trace**2 / squares, 1.0), float(width))
    if width <= EXACT_WIDTH:
        values = torch.linalg.eigvalsh(covariance.double()).flip(0).cpu().numpy()
        return Quadrature(_not_negative(values, values[0]), np.ones(width), hard_rank, 0.0)
    with products(covariance.device):
        # Divide in two steps: the trace can overflow float32 even if no element does.
        of_trace_one = (covariance.float() / (trace / width)).div_(width)
        nodes, weights, error = _of_trace_one(of_trace_one, seed)
    # About 0, unless no weights on the sampled nodes can have the moments of the matrix.
    missed = abs(float(measure(nodes, weights).hard_rank) / hard_rank - 1)
    return Quadrature(nodes * trace, weights, hard_rank, error + missed)


def _moments(matrix: Float[Tensor, "D D"]) -> tuple[float, float]:
    """Return the trace and the squared Frobenius norm, summed in float64."""
    squares = [rows.double().square().sum() for rows in torch.split(matrix, CHUNK_ROWS)]
    return float(matrix.diagonal().double().sum()), float(torch.stack(squares).sum())


def _of_trace_one(matrix: Float[Tensor, "D D"], seed: int) -> tuple[Floats, Floats, float]:
    """Return nodes, weights and the error estimate; overwrites `matrix`."""
    rounding = ROUNDING * len(matrix)
    generator = torch.Generator().manual_seed(seed)
    leading, basis, coupling = _deflate(matrix, generator)
    rest_trace, rest_squares = _moments(matrix)
    moments = np.array([len(matrix) - len(leading), rest_trace, rest_squares + coupling])
    if rest_trace <= NEGLIGIBLE_SHARE:
        # The norm of a positive semi-definite matrix is at most its trace.
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
    left_out = judged(sample, 1.0 - np.eye(PROBES))  # the jackknife
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
    """Remove the k <= DEFLATED leading directions from `matrix`, in place.

    Only directions with a small residual are removed. A nearly flat spectrum may have none, and
    needs none.

    Returns:
        The k eigenvalues, the directions, and the squared Frobenius norm that is lost because the
        directions are not exact eigenvectors: that of their coupling with the rest.
    """
    width = len(matrix)
    basis = torch.empty(width, EXACT_WIDTH, device=matrix.device)
    image = torch.empty_like(basis)
    block = torch.zeros(width, KRYLOV_BLOCK, device=matrix.device)
    for start in range(0, EXACT_WIDTH, KRYLOV_BLOCK):
        before, columns = basis[:, :start], slice(start, start + KRYLOV_BLOCK)
        # Once the Krylov space is invariant, a product adds only rounding errors: random directions
        # replace them. The first block consists of random directions alone.
        fresh = torch.randn(width, KRYLOV_BLOCK, generator=generator).to(matrix.device)
        block += fresh * block.norm(dim=0).clamp_min(TINY) * (FRESH / width**0.5)
        for _ in range(2):  # the second time removes what rounding left
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
    """Orthonormalise columns by shifted Cholesky QR in float64, which squares condition numbers.

    The shift keeps the factorisation from failing on dependent columns. Such columns become
    rounding noise or zeros.
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
    """Return random signs, orthogonal to the deflated directions.

    They are drawn on the CPU so that every device gets the same ones.
    """
    draws = torch.randint(2, (PROBES, len(basis)), generator=generator)
    signs = (2 * draws - 1).to(basis)
    return signs - (signs @ basis) @ basis.T


def _lanczos(
    matrix: Float[Tensor, "D D"], probes: Float[Tensor, "probes D"]
) -> tuple[Floats, Floats]:
    """Run Lanczos on all probes at once, with full reorthogonalisation, twice.

    Returns the tridiagonal matrices: diagonals [probes, STEPS] and off-diagonals
    [probes, STEPS - 1]. Once a Krylov space is invariant, the remaining entries are zero.
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
    """Return the Gauss quadrature of every probe: nodes and weights [probes, steps].

    The weights of a probe add up to its entry of `sizes`, its squared norm. `largest` is the
    largest deflated eigenvalue, the scale for rounding below 0.
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
    """Raise values below 0 to 0. Raises ValueError if one is negative beyond rounding."""
    lowest = float(values.min())
    if lowest < -NEGATIVE_TOLERANCE * largest:
        raise ValueError(
            f"eigenvalue {lowest:.6g} is negative beyond rounding (the largest is "
            f"{largest:.6g}): this is not the spectrum of a covariance"
        )
    return np.maximum(values, 0.0)


def _joined(leading: Floats, nodes: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Join the k leading eigenvalues, of weight 1, with the n other nodes: [..., k + n]."""
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
    """Return nodes and weights [..., probes * steps] with the given moments of order 0, 1 and 2.

    `used` [..., probes] is 1 for probes to include and 0 for others. The first two moments are
    exact up to rounding: scaling the nodes removes the tilted weights' error of about 1e-8.
    """
    count, mean, mean_square = moments[0], moments[1] / moments[0], moments[2] / moments[0]
    nodes = nodes.ravel()
    weights = (used[..., None] * weights).reshape(*used.shape[:-1], -1)
    weights = _tilted(weights / weights.sum(axis=-1, keepdims=True), nodes, mean, mean_square)
    return nodes * (mean / np.sum(weights * nodes, axis=-1, keepdims=True)), count * weights


def _tilted(weights: Floats, nodes: Floats, mean: float, mean_square: float) -> Floats:
    """Return weights proportional to w exp(c1 z + c2 z^2) [..., n] that have the given moments.

    w are the given weights and z the standardised nodes. The result adds up to 1 and has the least
    relative entropy to w among all weights with these moments. With the features
    f = (z, z^2 / its size), c minimises the convex
    ln sum(w exp(c . f)) - c . target + RIDGE |c|^2 / 2 by Newton's method with step halving.
    The ridge makes c unique if no tilt, or more than one, has the moments: two clusters of nodes
    have one free proportion, which cannot satisfy two moments that carry rounding errors.
    """
    centre = np.sum(weights * nodes, axis=-1, keepdims=True)
    deviation = np.sqrt(np.sum(weights * (nodes - centre) ** 2, axis=-1, keepdims=True))
    deviation = np.maximum(deviation, DISTINCT * centre)
    z = (nodes - centre) / deviation
    size = np.maximum(np.sqrt(np.sum(weights * z**4, axis=-1, keepdims=True)), 1.0)
    features = np.stack([z, z**2 / size], axis=-1)
    first = (mean - centre) / deviation
    second = (mean_square - 2 * mean * centre + centre**2) / deviation**2
    second = np.maximum(second, first**2) / size  # the least possible for any weights
    target = np.concatenate([first, second], axis=-1)
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)  # a weight of 0 stays 0

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
            # Near the minimum a good step changes the objective by less than its rounding.
            rises = next_value > value + VALUE_ROUNDING * (1 + np.abs(value))
            if not rises.any():
                break
            length = np.where(rises, length / 2, length)
        c, value = next_c, next_value
    return tilted
