"""Fits of the loss laws: every start, intervals by bootstrap, and what the data cannot tell.

One objective value is not a result. Beside it stand the share of the starts that reached it, the
range over which a parameter can move at nearly the same objective, and warnings in words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
from analysis.laws.power_law import Refusal
from analysis.replicates import CONFIDENCE, Floats, Interval
from analysis.wording import percent, plural

#: A start has reached the objective when it ends within this share above it.
REACHED = 1e-3
#: Share of the objective that a step must win for a start to go on; the best end is polished.
ROUGHLY = 1e-7
#: The valley is called flat by what a parameter may do within this share above the objective.
FLAT_WITHIN = 0.01
#: Distinct cells that a fit needs beyond its parameters.
CELLS_TO_SPARE = 2
#: Rows above which the starts descend on a part of the table; the best ends go on with all of it.
ROWS_OF_STARTS = 256
#: Share of the loss below which, at every point, a term is not seen.
UNSEEN = 1e-3
#: Relative width of an exponent's flat range that is worth a warning.
FLAT = 0.2
RESAMPLES = 1000


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted loss law; intervals at 90 %."""

    form: Form
    parameters: Mapping[str, float]
    intervals: Mapping[str, Interval]  # empty where no resamples were asked for
    interval_method: str | None
    objective: float  # sum of the Huber losses of ln(law) - ln(loss)
    r_squared: float  # of ln(loss); NaN where the loss is the same everywhere
    starts: int
    share_at_best: float  # of the starts, within REACHED of the objective
    condition_number: float  # of the centred slopes, each scaled to length 1
    flat_ranges: Mapping[str, Interval]  # within FLAT_WITHIN of the objective
    allocation: float | None  # b of N_opt ~ C^b
    points: int
    cells: int  # distinct places in the variables
    warnings: tuple[str, ...]
    theta: Floats  # [P], the fitted vector
    resamples: Floats  # [R, P]
    excluded: Mapping[str, int] = field(default_factory=dict)  # reason -> rows left out

    def predict(self, columns: Mapping[Variable, ArrayLike]) -> Floats:
        """Loss on the law at [n] places, nats per token."""
        model = self.form.model(np.log(variables_array(self.form, columns)))
        return np.asarray(np.exp(model.value(self.theta[None])[0]))

    def band(self, columns: Mapping[Variable, ArrayLike]) -> tuple[Floats, Floats] | None:
        """The 90 % band of the law at [n] places; None without resamples."""
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
    """Fit a law to [n] losses at the given variables ([n] each); same input, same result.

    Rows that have no logarithm are left out and counted. Rows of equal variables are replicates
    of one cell; the bootstrap draws whole cells.
    """
    form = form_of(law, list(columns))
    raw, losses = variables_array(form, columns), np.asarray(loss, float)
    usable, excluded = _usable(raw, losses)
    x, y = np.log(raw[:, usable]), np.log(losses[usable])
    cells, cell_of = np.unique(x, axis=1, return_inverse=True)
    refused = _refusal(form, x, y, cells.shape[1])
    if refused is not None:
        return Refusal(refused, excluded)
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
    """Which rows have logarithms, and why the others have not."""
    rows = np.vstack([x, y])
    finite = np.all(np.isfinite(rows), axis=0)
    positive: NDArray[np.bool_] = np.logical_and(finite, np.all(rows > 0, axis=0))
    counts = {"not finite": int(np.sum(~finite)), "not positive": int(np.sum(finite & ~positive))}
    return positive, {reason: count for reason, count in counts.items() if count}


def _refusal(form: Form, x: Floats, y: Floats, cells: int) -> str | None:
    """Why these places cannot carry the law, if they cannot."""
    needed = len(form.names) + CELLS_TO_SPARE
    if cells < needed:
        places = " x ".join(form.variables)
        return (
            f"the law has {len(form.names)} parameters and needs at least {needed} distinct "
            f"places in {places}; there are {cells}"
        )
    if np.ptp(y) <= CONSTANT:
        return "the loss is the same in every row: it depends on nothing"
    least = 3 if form.floor else 2
    for name, values in zip(form.variables, x, strict=True):
        distinct = len(np.unique(values))
        if distinct < least:
            return f"{name} has {plural(distinct, 'distinct value')}, at least {least} are needed"
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    shape = np.linalg.svd(scaled, compute_uv=False)
    if shape[-1] < 1e-6 * shape[0]:
        together = " and ".join(form.variables)
        return f"{together} move together in every row: their shares cannot be told apart"
    return None


def _best(form: Form, model: LogSumExp, x: Floats, y: Floats) -> tuple[Minima, int, float]:
    """The lowest end of all starts on all rows, the number of starts, the share that got there."""
    starts = form.starts(x, y)
    part = np.arange(len(y))
    if len(part) > ROWS_OF_STARTS:
        part = np.sort(np.random.default_rng(0).choice(part, ROWS_OF_STARTS, replace=False))
    found = minimise(form.model(x[:, part]), starts, y[part], delta=DELTA, settled=ROUGHLY)
    lowest = found.objective.min()
    share = float(np.mean(found.objective <= _within(lowest, REACHED, len(part))))
    order = np.argsort(found.objective, kind="stable")
    ends = found.theta[order[:1]]
    if len(part) < len(y):  # on all rows another of the low ends may be the lowest
        apart = np.unique(np.round(np.log(found.objective[order]), 6), return_index=True)[1][:5]
        ends = found.theta[order[apart]]
    polished = minimise(model, ends, y, delta=DELTA)
    at = [int(np.argmin(polished.objective))]
    best = Minima(polished.theta[at], polished.objective[at], polished.settled[at], polished.steps)
    return best, len(starts), share


def _within(objective: float, share: float, points: int) -> float:
    """The objective with so much more; two fits with residuals below 1e-9 are equally good."""
    return (1 + share) * objective + 0.5e-18 * points


def intervals_of_form(form: Form, theta: Floats, sampled: Resamples) -> dict[str, Interval]:
    """Of every parameter of the formula, and of the allocation where the law has one."""
    estimate, draws, left_out = map(form.natural, (theta[None], sampled.draws, sampled.left_out))
    found = {}
    with np.errstate(divide="ignore"):
        for name in form.names:
            parts = estimate[name], draws[name], left_out[name]
            if name in form.exponents:
                found[name] = bca_interval(float(parts[0][0]), *parts[1:])
            else:  # coefficients scatter evenly in logarithms
                point, *rest = (np.log(part) for part in parts)
                low, high = bca_interval(float(point[0]), *rest)
                found[name] = (float(np.exp(low)), float(np.exp(high)))
    if has_allocation(form, estimate):
        share, *rest = (allocation_exponent(form, part) for part in (estimate, draws, left_out))
        found["allocation_exponent"] = bca_interval(float(share[0]), *rest)
    return found


def _condition_number(form: Form, model: LogSumExp, theta: Floats, x: Floats) -> float:
    """Of the slopes by the parameters, each of length 1, the coefficients taken at the middle.

    At the middle of the data, not at N = 1: the unit of N must not decide.
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
    """How far every parameter moves within FLAT_WITHIN of the objective, the others following."""
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
    """What a reader must know before quoting a number."""
    found = []
    seen = model.shares(theta).max(axis=1)
    for term, most in zip(form.terms, seen, strict=True):
        if most < UNSEEN and term == "E":
            found.append("the irreducible loss E is at zero: these data show no floor")
        elif most < UNSEEN:
            found.append(f"the term {term} is nowhere {percent(UNSEEN)} of the loss: not seen")
    found += [
        f"{name} is {parameters[name]:.3g}, not positive: the loss does not fall"
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
            f"a flat valley: within {percent(FLAT_WITHIN)} of the objective "
            f"{', '.join(wide)}; compare objectives before parameters"
        )
    if share < 0.01:
        found.append(f"only {percent(share)} of the starts reached the objective")
    for name, values in zip(form.variables, x, strict=True):
        span = float(np.ptp(values))
        if span < np.log(8):
            found.append(f"{name} spans only a factor of {np.exp(span):.2g}")
    return found
