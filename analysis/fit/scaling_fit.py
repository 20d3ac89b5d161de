"""Fit a loss law from a grid of starts, with bootstrap intervals and checks of identifiability.

The lowest objective alone does not tell whether the parameters are determined. The result also has
the share of starts that reached it, the range of each parameter at nearly the same objective, and
warnings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fit.batched_minimise import Minima, minimise
from analysis.fit.likelihood_profile import profile_ranges
from analysis.fit.log_sum_exp import LogSumExp
from analysis.fit.resamples import MOST_ROWS, Resamples, bca_interval, resample
from analysis.fit.scaling_laws import (
    DELTA,
    Form,
    LossLaw,
    Variable,
    allocation_exponent,
    form_of,
    has_allocation,
    variables_array,
)
from analysis.laws.law_errors import CONSTANT
from analysis.refusal import Refusal
from analysis.replicates import CONFIDENCE, Floats, Interval
from analysis.wording import percent, plural

#: A start reached the minimum if its objective is at most this share above it.
REACHED = 1e-3
#: Starts stop when a step lowers the objective by less than this share; the best end is polished.
ROUGHLY = 1e-7
#: Flat ranges are how far a parameter moves within this share above the objective.
FLAT_WITHIN = 0.01
#: Distinct cells that a fit needs in addition to one per parameter.
CELLS_TO_SPARE = 2
#: With more rows the starts descend on a sample; the best ends continue on all rows.
ROWS_OF_STARTS = 256
#: A term below this share of the loss at every point is not determined by the data.
UNSEEN = 1e-3
#: A flat range wider than this share of its parameter gives a warning.
FLAT = 0.2
RESAMPLES = 1000


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted loss law. Intervals are at 90 %."""

    form: Form
    parameters: Mapping[str, float]  # by their names in the formula
    intervals: Mapping[str, Interval]  # by the same names; empty without resamples
    interval_method: str | None
    objective: float  # sum of the Huber losses of ln(law) - ln(loss)
    r_squared: float  # of ln(loss); NaN where the loss is constant
    starts: int
    share_at_best: float  # of the starts that reached the objective, within REACHED
    condition_number: float  # of the slopes by parameter, each scaled to length 1
    flat_ranges: Mapping[str, Interval]  # within FLAT_WITHIN of the objective
    allocation: float | None  # b of N_opt ~ C^b; None where the law has no optimum
    points: int  # rows used
    cells: int  # distinct combinations of the variables
    warnings: tuple[str, ...]
    theta: Floats  # [P] the fitted vector, as `Form` defines it
    resamples: Floats  # [R, P]
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> rows left out

    def predict(self, columns: Mapping[Variable, ArrayLike]) -> Floats:
        """Return the loss on the law, [n], in the unit of the losses; `columns` are [n] each."""
        model = self.form.model(np.log(variables_array(self.form, columns)))
        return np.asarray(np.exp(model.value(self.theta[None])[0]))

    def band(self, columns: Mapping[Variable, ArrayLike]) -> tuple[Floats, Floats] | None:
        """Return the lower and upper 90 % bound of the law, [n] each; None without resamples."""
        if not len(self.resamples):
            return None
        model = self.form.model(np.log(variables_array(self.form, columns)))
        low, high = np.quantile(np.exp(model.value(self.resamples)), _TAILS, axis=0)
        return low, high


_TAILS = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]


def fit_scaling_law(
    law: LossLaw,
    columns: Mapping[Variable, ArrayLike],
    loss: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ScalingLaw | Refusal:
    """Fit a loss law by the sum of the Huber loss of ln(law) - ln(loss).

    Args:
        law: the family of the formula.
        columns: variable -> [n] positive values; together they choose the formula.
        loss: [n] losses, nats per token.
        resamples: bootstrap resamples for the intervals; 0 for none. Rows of equal variables are
            replicates of one cell, and the bootstrap draws whole cells.
        seed: of the resamples. The same input and seed give the same result.

    Returns:
        The law, or a refusal where the cells do not determine it. Rows without a logarithm are
        left out and counted.

    Raises:
        KeyError: the law has no formula for these variables.
    """
    form = form_of(law, list(columns))
    raw, losses = variables_array(form, columns), np.asarray(loss, float)
    usable, excluded = _usable(raw, losses)
    x, y = np.log(raw[:, usable]), np.log(losses[usable])
    cells, cell_of = np.unique(x, axis=1, return_inverse=True)
    refusal = _refusal(form, x, y, cells.shape[1])
    if refusal is not None:
        return replace(refusal, excluded=excluded)
    model = form.model(x)
    best, starts, share = _best(form, model, x, y)
    theta, objective = best.theta[0], float(best.objective[0])
    sampled = None
    if resamples:
        sampled = resample(
            model, theta, y, cell_of.ravel(), delta=DELTA, count=resamples, seed=seed
        )
    natural = form.natural(theta[None])
    allocation = None
    if has_allocation(form, natural):
        allocation = float(allocation_exponent(form, natural)[0])
    total = float(np.sum((y - y.mean()) ** 2))
    residual = y - model.value(theta[None])[0]
    flat = _flat_ranges(form, model, theta, y, objective)
    parameters = {name: float(value[0]) for name, value in natural.items()}
    return ScalingLaw(
        form=form,
        parameters=parameters,
        intervals={} if sampled is None else intervals_of_form(form, theta, sampled),
        interval_method=None if sampled is None else sampled.method,
        objective=objective,
        r_squared=1 - float(residual @ residual) / total if total > 0 else float("nan"),
        starts=starts,
        share_at_best=share,
        condition_number=_condition_number(form, model, theta, x),
        flat_ranges=flat,
        allocation=allocation,
        points=len(y),
        cells=cells.shape[1],
        warnings=tuple(_warnings(form, model, theta, parameters, flat, share, x, y)),
        theta=theta,
        resamples=np.empty((0, len(theta))) if sampled is None else sampled.draws,
        excluded=excluded,
    )


def _usable(x: Floats, y: Floats) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Mask [n] of the rows with logarithms, and reason -> count of the others."""
    rows = np.vstack([x, y])
    finite = np.all(np.isfinite(rows), axis=0)
    positive: NDArray[np.bool_] = np.logical_and(finite, np.all(rows > 0, axis=0))
    counts = {"not finite": int(np.sum(~finite)), "not positive": int(np.sum(finite & ~positive))}
    return positive, {reason: count for reason, count in counts.items() if count}


def _refusal(form: Form, x: Floats, y: Floats, cells: int) -> Refusal | None:
    """Why these cells do not determine the law; None if they do."""
    needed = len(form.names) + CELLS_TO_SPARE
    if cells < needed:
        together = " and ".join(form.variables)
        kind = "values" if len(form.variables) == 1 else "combinations"
        return Refusal(
            f"{needed} distinct {kind} of {together} are needed for "
            f"{len(form.names)} parameters, and there {'is' if cells == 1 else 'are'} {cells}"
        )
    if np.ptp(y) <= CONSTANT:
        return Refusal("the loss is the same in every row")
    least = 3 if form.floor else 2
    for name, values in zip(form.variables, x, strict=True):
        distinct = len(np.unique(values))
        if distinct < least:
            return Refusal(
                f"{name} has {plural(distinct, 'distinct value')}, and at least {least} are needed"
            )
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    shape = np.linalg.svd(scaled, compute_uv=False)
    if shape[-1] < 1e-6 * shape[0]:
        together = " and ".join(form.variables)
        return Refusal(
            f"{together} are collinear in every row, so their effects cannot be separated",
            "vary one while the other stays fixed",
        )
    return None


def _best(form: Form, model: LogSumExp, x: Floats, y: Floats) -> tuple[Minima, int, float]:
    """The lowest minimum on all rows, the number of starts, and the share that reached it."""
    starts = form.starts(x, y)
    part = np.arange(len(y))
    if len(part) > ROWS_OF_STARTS:
        part = np.sort(np.random.default_rng(0).choice(part, ROWS_OF_STARTS, replace=False))
    found = minimise(form.model(x[:, part]), starts, y[part], delta=DELTA, settled=ROUGHLY)
    lowest = found.objective.min()
    share = float(np.mean(found.objective <= _within(lowest, REACHED, len(part))))
    order = np.argsort(found.objective, kind="stable")
    ends = found.theta[order[:1]]
    if len(part) < len(y):  # the order of the lowest minima may differ on all rows
        apart = np.unique(np.round(np.log(found.objective[order]), 6), return_index=True)[1][:5]
        ends = found.theta[order[apart]]
    polished = minimise(model, ends, y, delta=DELTA)
    at = [int(np.argmin(polished.objective))]
    best = Minima(polished.theta[at], polished.objective[at], polished.settled[at], polished.steps)
    return best, len(starts), share


def _within(objective: float, share: float, points: int) -> float:
    """The objective raised by a share; fits with residuals below 1e-9 count as equal."""
    return (1 + share) * objective + 0.5e-18 * points


def intervals_of_form(form: Form, theta: Floats, sampled: Resamples) -> dict[str, Interval]:
    """Return the 90 % intervals of the formula's parameters and of `allocation_exponent`.

    Args:
        form: the formula.
        theta: [P] the fitted vector.
        sampled: the refits that the intervals are taken from.

    Returns:
        Intervals by the names of the formula. `allocation_exponent` is there if the law has one.
    """
    estimate, draws, left_out = map(form.natural, (theta[None], sampled.draws, sampled.left_out))
    found = {}
    with np.errstate(divide="ignore"):
        for name in form.names:
            parts = estimate[name], draws[name], left_out[name]
            if name in form.exponents:
                found[name] = bca_interval(float(parts[0][0]), *parts[1:])
            else:  # coefficients scatter symmetrically in logarithms
                point, *rest = (np.log(part) for part in parts)
                low, high = bca_interval(float(point[0]), *rest)
                found[name] = (float(np.exp(low)), float(np.exp(high)))
    if has_allocation(form, estimate):
        share, *rest = (allocation_exponent(form, part) for part in (estimate, draws, left_out))
        found["allocation_exponent"] = bca_interval(float(share[0]), *rest)
    return found


def _condition_number(form: Form, model: LogSumExp, theta: Floats, x: Floats) -> float:
    """Condition number of the slopes by parameter, each scaled to length 1.

    Coefficients are taken at the middle of the data, so that the unit of N does not matter.
    """
    slopes = model.derivatives(theta[None]).slopes[0]
    first = len(form.variables) + form.floor
    for k in range(len(form.variables) - form.joint_kaplan):
        slopes[first + k] += x[k].mean() * slopes[k]
    length = np.linalg.norm(slopes, axis=1, keepdims=True)
    if not np.all(length > 0):
        return float("inf")
    singular = np.linalg.svd(slopes / length, compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")


def _flat_ranges(
    form: Form, model: LogSumExp, theta: Floats, y: Floats, objective: float
) -> dict[str, Interval]:
    """The range of every parameter within FLAT_WITHIN of the objective, the others refitted."""
    limit = _within(objective, FLAT_WITHIN, len(y))
    if len(y) > MOST_ROWS or form.law == "kaplan":
        return {}
    ends = profile_ranges(model, theta, y, delta=DELTA, limit=limit)
    low, high = form.natural(ends[:, 0][None]), form.natural(ends[:, 1][None])
    return {name: (float(low[name][0]), float(high[name][0])) for name in form.names}


def _warnings(
    form: Form,
    model: LogSumExp,
    theta: Floats,
    parameters: Mapping[str, float],
    flat: Mapping[str, Interval],
    share: float,
    x: Floats,
    y: Floats,
) -> Sequence[str]:
    """Cautions that a reader needs before quoting a parameter."""
    found = []
    seen = model.shares(theta).max(axis=1)
    for term, most in zip(form.terms, seen, strict=True):
        if most < UNSEEN and term == "E":
            found.append("the irreducible loss E is at zero: these data do not show one")
        elif most < UNSEEN:
            found.append(f"the term {term} is below {percent(UNSEEN)} of the loss in every row")
    found += [
        f"{name} is {parameters[name]:.3g}, not positive: the loss does not fall with it"
        for name in form.exponents
        if parameters[name] <= 0
    ]
    wide = [
        f"{name} from {flat[name][0]:.3g} to {flat[name][1]:.3g}"
        for name in form.names
        if name in flat and flat[name][1] - flat[name][0] > FLAT * abs(parameters[name])
    ]
    if any(name.split(" ")[0] in (*form.exponents, "E") for name in wide):
        found.append(
            f"a flat valley: within {percent(FLAT_WITHIN)} of the objective, "
            f"{', '.join(wide)}; compare objectives rather than parameters"
        )
    if share < 0.01:
        found.append(f"only {percent(share)} of the starts reached the objective")
    for name, values in zip(form.variables, x, strict=True):
        span = float(np.ptp(values))
        if span < np.log(8):
            found.append(f"{name} spans only a factor of {np.exp(span):.2g}")
    return found
