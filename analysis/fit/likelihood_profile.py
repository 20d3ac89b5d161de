"""Profile the objective of a fit: how far a parameter can move while the others compensate.

On each side of a parameter, the others are refitted at fixed values further and further away. The
range ends where the objective exceeds a limit. With the limit of an F-test of one parameter the
range is a confidence interval that is valid for curved and one-sided valleys (Bates and Watts,
"Nonlinear Regression Analysis", section 6.1).
"""

from collections.abc import Sequence

import numpy as np

from analysis.fit.batched_minimise import huber, minimise
from analysis.fit.log_sum_exp import LogSumExp
from analysis.replicates import Floats

#: Distances tried on each side, in units of the distance that a quadratic would allow.
_PLACES = np.geomspace(1 / 64, 1024, 25)
_BETWEEN = np.linspace(0, 1, 7)[1:-1]


def profile_ranges(
    model: LogSumExp,
    theta: Floats,
    target: Floats,
    *,
    delta: float,
    limit: float,
    of: Sequence[int] | None = None,
) -> Floats:
    """Find where the profile of the objective over each parameter exceeds a limit.

    Args:
        model: the function of P parameters at n points.
        theta: [P] the minimum, with an objective below `limit`.
        target: [n].
        delta: of the Huber loss.
        limit: on the objective.
        of: Q indices of parameters; all by default.

    Returns:
        Lower and upper ends, [Q, 2]. An end is infinite if the objective stays below the limit up
        to 1,024 times the distance that a quadratic would allow.
    """
    count = len(theta)
    valley, reach = _valley(model, theta, target, delta, limit)
    chosen = np.arange(count) if of is None else np.asarray(of)
    index = np.repeat(chosen, 2)
    side = np.tile([-1.0, 1.0], len(chosen))
    unit = side[:, None] * reach[index, None] * valley[index]  # [2 Q, P]

    def objectives(at: Floats) -> Floats:
        """The profile at multiples [2 Q, M] of the unit."""
        starts = theta + at[:, :, None] * unit[:, None, :]
        free = np.broadcast_to(
            np.arange(count) != index[:, None, None], (len(index), at.shape[1], count)
        )
        found = minimise(
            model,
            starts.reshape(-1, count),
            target,
            delta=delta,
            free=free.reshape(-1, count),
            most_steps=100,
        )
        return found.objective.reshape(at.shape)

    places = np.concatenate([[0.0], _PLACES])
    above = objectives(np.broadcast_to(_PLACES, (len(index), len(_PLACES)))) > limit
    first = np.argmax(above, axis=1)  # the first place beyond the limit
    low, high = places[first], places[first + 1]
    between = low[:, None] + (high - low)[:, None] * _BETWEEN
    profile = objectives(between)
    edge = high.copy()
    for row in range(len(index)):
        beyond = np.flatnonzero(profile[row] > limit)
        if len(beyond):
            edge[row] = between[row, beyond[0]]
    ends = theta[index] + side * reach[index] * edge
    ends = np.where(above.any(axis=1), ends, side * np.inf)
    return ends.reshape(-1, 2)


def _valley(
    model: LogSumExp, theta: Floats, target: Floats, delta: float, limit: float
) -> tuple[Floats, Floats]:
    """Per parameter: the direction in which the others follow it, [P, P], and its distance [P]."""
    at = model.derivatives(theta[None])
    residual = (at.value - target)[0]
    share = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    slopes = at.slopes[0]
    information = (slopes * share) @ slopes.T
    covariance = np.linalg.pinv(information, rcond=1e-13, hermitian=True)
    own = np.diagonal(covariance)
    moves = own > 0
    safe = np.where(moves, own, 1.0)
    valley = np.where(moves[:, None], covariance / safe[:, None], np.eye(len(theta)))
    rise = max(limit - float(huber(residual, delta).sum()), 1e-300)
    return valley, np.sqrt(2 * rise * safe)
