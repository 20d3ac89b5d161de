"""The optimal width at a size that was not run, from the optima at sizes that were.

ln m* against ln N by least squares over model sizes, m* the optimal D / d_model and N the
non-embedding parameters. Three sizes leave one degree of freedom, and the interval says so: it is
Student's prediction interval, or what the uncertainty of the single optima comes to at the target
if that is wider (small scatter about a line through three points may be luck).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.replicates import CONFIDENCE, Floats, Interval
from analysis.wording import interval, large

#: Sizes needed: a line always passes through two.
MINIMUM_SIZES = 3
#: Sizes nearer than this (relative) are one size.
SAME_SIZE = 0.05


@dataclass(frozen=True)
class Target:
    """The model that the verdict is wanted for."""

    params: float  # non-embedding
    tokens: float  # of its training


@dataclass(frozen=True)
class SizeOptimum:
    """An established optimum at one model size."""

    parameters: float  # non-embedding
    tokens: float
    optimum: float  # D / d_model
    interval: Interval  # 90 %


@dataclass(frozen=True)
class Transfer:
    """What the optima of several sizes say about the target. Intervals are at 90 %."""

    group: Mapping[str, Any]  # the axes that the sizes share
    label: str
    target: Target
    sizes: tuple[SizeOptimum, ...]
    refused: int  # sizes without an established optimum, which do not enter
    exponent: float | None  # d ln m* / d ln N; None where it was not fitted
    exponent_interval: Interval | None
    width_multiplier: float | None  # predicted at the target
    interval: Interval | None  # of the optimum at the target
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "group": dict(self.group)}


def transfer(
    group: Mapping[str, Any],
    label: str,
    sizes: Sequence[SizeOptimum],
    refused: int,
    target: Target,
) -> Transfer:
    """Extrapolate to the target, or say what is missing for it."""
    sizes = tuple(sorted(sizes, key=lambda size: size.parameters))
    at = f"{large(target.params)} parameters and {large(target.tokens)} tokens"
    distinct = _distinct(sizes)
    if distinct < MINIMUM_SIZES:
        sentence = (
            f"nothing can be said of {at}: a transfer needs {MINIMUM_SIZES} model sizes with an "
            f"established optimum, and there are {distinct} ({refused} more without one); add "
            "values to grid.d_model"
        )
        return Transfer(group, label, target, sizes, refused, None, None, None, None, sentence)
    slope, slope_interval, value, bounds = _predict(sizes, float(np.log(target.params)))
    multiplier = float(np.exp(value))
    found = (float(np.exp(bounds[0])), float(np.exp(bounds[1])))
    far = max(target.params / sizes[-1].parameters, sizes[0].parameters / target.params)
    sentence = (
        f"at {at} the optimum is predicted at {multiplier:.2f}x, 90 % interval {interval(found)}, "
        f"from {len(sizes)} optima at {distinct} model sizes (m* goes as N^{slope:.2f}, "
        f"{interval(slope_interval)})"
    )
    if far > 1:
        sentence += f"; the target is {far:.3g} times beyond them"
    sentence += _tokens(sizes, target)
    if refused:
        sentence += (
            f"; {refused} without an established optimum did not enter, which biases the "
            "prediction if it was refused for lying at an edge"
        )
    return Transfer(
        group, label, target, sizes, refused, slope, slope_interval, multiplier, found, sentence
    )


def _distinct(sizes: Sequence[SizeOptimum]) -> int:
    """How many sizes differ; `sizes` ascend."""
    logs = np.log([size.parameters for size in sizes])
    return 0 if not len(logs) else 1 + int(np.sum(np.diff(logs) > np.log1p(SAME_SIZE)))


def _predict(
    sizes: Sequence[SizeOptimum], at: float
) -> tuple[float, Interval, float, tuple[float, float]]:
    """Slope of ln m* on ln N with its interval, and the prediction at ln N = `at` with its."""
    x = np.log([size.parameters for size in sizes])
    y = np.log([size.optimum for size in sizes])
    low, high = np.log([size.interval for size in sizes]).T
    normal, student = (
        float(stats.norm.ppf((1 + CONFIDENCE) / 2)),
        float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2)),
    )
    error = (high - low) / 2 / normal  # of each optimum, as if normal
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y / spread)
    residual = y - y.mean() - slope * centred
    scatter = float(np.sqrt(residual @ residual / (len(x) - 2)))

    def half(weights: Floats, own: float) -> float:
        """Of the interval of `weights` @ y, with the optimum's own scatter about the line."""
        shape = float(weights @ weights)
        return max(
            student * scatter * float(np.sqrt(own + shape)),
            normal * float(np.sqrt(np.sum((weights * error) ** 2) + own * np.mean(error**2))),
        )

    along = centred / spread
    beyond = 1 / len(x) + (at - x.mean()) * along
    value = float(beyond @ y)
    reach, slope_reach = half(beyond, 1.0), half(along, 0.0)
    return (
        slope,
        (slope - slope_reach, slope + slope_reach),
        value,
        (value - reach, value + reach),
    )


def _tokens(sizes: Sequence[SizeOptimum], target: Target) -> str:
    """What the fit leaves out of account."""
    tokens = [size.tokens for size in sizes]
    ratios = [size.tokens / size.parameters for size in sizes]
    wanted = target.tokens / target.params
    if not np.isfinite(tokens).all():
        return "; how it depends on the tokens was not fitted"
    if min(ratios) / 1.5 <= wanted <= max(ratios) * 1.5:
        return ""
    return (
        f"; how it depends on the tokens was not fitted: the sizes saw {min(ratios):.3g} to "
        f"{max(ratios):.3g} tokens a parameter, the target {wanted:.3g}"
    )
