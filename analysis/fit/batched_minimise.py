"""Robust non-linear regression of many parameter sets at once: starts, resamples, fixed values.

Minimises sum_i weight_i Huber_delta(f_i(theta) - y_i), the SUM and not the mean, for every row of
a batch. Each step tries two damped directions and takes the better one:

- Newton with the exact second derivatives: few steps near the end, but a residual beyond delta
  has no curvature, and where few lie within it the matrix says little;
- iteratively reweighted least squares, whose quadratic lies above the Huber loss: slower, sure.

Only a step that lowers the objective is taken, so a row never gets worse and never leaves the
finite numbers. Measured on the fits of arXiv 2203.15556 (approach 3), the pair needs 70 steps
where either alone needs 90 to 290, and ends lower than L-BFGS from nearly every start.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fit.log_sum_exp import LogSumExp
from analysis.replicates import Floats

#: When a row is done: see `minimise`.
SETTLED = 1e-9
SETTLED_STEPS = 3
#: Mean squared residual (of a logarithm) below which a fit is exact for all purposes.
EXACT = 1e-22

#: Points times rows that are advanced together, so that their work fits the processor's cache.
_CHUNK = 16_384
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-12, 1e9
_EASE, _HARDEN = 0.2, 6.0


@dataclass(frozen=True)
class Minima:
    """Where every row of the batch ended."""

    theta: Floats  # [B, P]
    objective: Floats  # [B]; infinite where the start itself has no value
    settled: NDArray[np.bool_]  # [B]: False where the steps ran out
    steps: int  # the most that a row needed


def huber(residual: Floats, delta: float) -> Floats:
    """Huber loss: r^2 / 2 within delta, delta (|r| - delta / 2) beyond; delta may be infinite."""
    size = np.abs(residual)
    if np.isinf(delta):
        return 0.5 * size**2
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def minimise(
    model: LogSumExp,
    starts: Floats,
    target: Floats,
    *,
    delta: float,
    weights: Floats | None = None,
    free: NDArray[np.bool_] | None = None,
    settled: float = SETTLED,
    most_steps: int = 300,
) -> Minima:
    """Descend from every start [B, P] towards y = `target`, [n] or one a row, [B, n].

    `weights` [n] or [B, n] count the points (a bootstrap resample is a row of counts). Where
    `free` [B, P] is False, a parameter keeps its starting value. A row is done when SETTLED_STEPS
    steps in turn have each lowered its objective by less than the share `settled`, or when no
    step lowers it however short.
    """
    rows, points = len(starts), target.shape[-1]
    targets = np.broadcast_to(target, (rows, points))
    counts = np.broadcast_to(1.0 if weights is None else weights, (rows, points))
    moves = np.broadcast_to(np.asarray(True) if free is None else free, starts.shape)
    chunk = max(1, _CHUNK // points)
    places = [slice(begin, begin + chunk) for begin in range(0, rows, chunk)]

    def descend(at: slice) -> Minima:
        return _descend(
            model, starts[at], targets[at], counts[at], moves[at], delta, settled, most_steps
        )

    # NumPy lets go of the interpreter while it computes. Rows do not see each other, so the
    # result does not depend on the number of threads.
    with ThreadPoolExecutor(min(len(places), os.cpu_count() or 1)) as pool:
        parts = list(pool.map(descend, places))
    return Minima(
        np.concatenate([part.theta for part in parts]),
        np.concatenate([part.objective for part in parts]),
        np.concatenate([part.settled for part in parts]),
        max(part.steps for part in parts),
    )


def objective_of(
    model: LogSumExp, theta: Floats, target: Floats, weights: Floats, delta: float
) -> Floats:
    """The objective [B] of parameters [B, P]; infinite where the model has no value."""
    value = np.sum(weights * huber(model.value(theta) - target, delta), axis=1)
    return np.where(np.isfinite(value), value, np.inf)


def _descend(
    model: LogSumExp,
    starts: Floats,
    target: Floats,
    weights: Floats,
    free: NDArray[np.bool_],
    delta: float,
    settled: float,
    most_steps: int,
) -> Minima:
    theta = np.array(starts, float)
    # What overflows has an infinite objective and is never taken.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        objective = objective_of(model, theta, target, weights, delta)
        exact = EXACT * weights.sum(axis=1)
        damping = np.full(len(theta), _FIRST_DAMPING)
        idle = np.zeros(len(theta), int)
        live = np.flatnonzero(np.isfinite(objective))
        steps = 0
        while len(live) and steps < most_steps:
            steps += 1
            y, counts = target[live], weights[live]
            found, best = theta[live], objective[live]
            before = best
            for step in _directions(model, found, y, counts, free[live], delta, damping[live]):
                tried = theta[live] + step
                value = objective_of(model, tried, y, counts, delta)
                better = value < best
                best = np.where(better, value, best)
                found = np.where(better[:, None], tried, found)
            lower = best < before
            theta[live], objective[live] = found, best
            damping[live] *= np.where(lower, _EASE, _HARDEN)
            damping[live] = np.maximum(damping[live], _LEAST_DAMPING)
            idle[live] += lower
            idle[live[lower & (before - best > settled * best)]] = 0
            done = (idle >= SETTLED_STEPS) | (damping > _MOST_DAMPING) | (objective <= exact)
            live = live[~done[live]]
    ended = np.isfinite(objective)
    ended[live] = False
    return Minima(theta, objective, ended, steps)


def _directions(
    model: LogSumExp,
    theta: Floats,
    target: Floats,
    weights: Floats,
    free: NDArray[np.bool_],
    delta: float,
    damping: Floats,
) -> list[Floats]:
    """The damped steps [B, P] to try: Newton's, and that of reweighted least squares."""
    at = model.derivatives(theta)
    residual = at.value - target
    size = np.abs(residual)
    pull = weights * np.clip(residual, -delta, delta)
    gradient = np.where(free, (at.slopes @ pull[..., None])[..., 0], 0.0)
    slopes = np.where(free[:, :, None], at.slopes, 0.0)
    across = slopes.transpose(0, 2, 1)

    share: Floats = weights * np.minimum(1.0, delta / np.maximum(size, 1e-300))
    reweighted = (slopes * share[:, None]) @ across
    within: Floats = np.where(size <= delta, weights, 0.0)
    both = free[:, :, None] & free[:, None, :]
    newton = (slopes * within[:, None]) @ across + np.where(both, at.curvature(pull), 0.0)

    scale = np.sqrt(np.einsum("bpp->bp", reweighted))
    scale = np.maximum(scale, 1e-6 * scale.max(axis=1, keepdims=True) + 1e-150)
    steps = (_damped(matrix, gradient, scale, damping) for matrix in (newton, reweighted))
    return [np.where(free, step, 0.0) for step in steps]


def _damped(matrix: Floats, gradient: Floats, scale: Floats, damping: Floats) -> Floats:
    """-(|M| + damping * scale^2)^-1 gradient, |M| being M with the signs of its curvatures lost."""
    scaled = matrix / (scale[:, :, None] * scale[:, None, :])
    finite = np.all(np.isfinite(scaled), axis=(1, 2)) & np.all(np.isfinite(gradient), axis=1)
    scaled[~finite] = 0.0
    curvatures, axes = np.linalg.eigh(scaled)
    along = (axes.transpose(0, 2, 1) @ (gradient / scale)[..., None])[..., 0]
    along /= np.maximum(np.abs(curvatures), 1e-12) + damping[:, None]
    step = -(axes @ along[..., None])[..., 0] / scale
    step[~finite] = 0.0
    return np.asarray(step)
