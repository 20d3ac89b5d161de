"""Extrapolate the optimal width to a model size that was not run.

Least squares of ln m* on ln N over model sizes, with m* the optimal D / d_model and N the
non-embedding parameters. The interval is the wider of two: Student's prediction interval, and the
uncertainty of the single optima carried to the target. The second one counts because small
scatter about a line through three points may be luck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.replicates import CONFIDENCE, Floats, Interval
from analysis.wording import interval, large

#: Model sizes needed: a line through two leaves no degree of freedom.
MINIMUM_SIZES = 3
#: Sizes that differ by less than this share count as one.
SAME_SIZE = 0.05


@dataclass(frozen=True)
class Target:
    """The model that a width is needed for."""

    params: float  # non-embedding parameters
    tokens: float  # training tokens


@dataclass(frozen=True)
class SizeOptimum:
    """An established optimum at one model size."""

    parameters: float  # non-embedding
    tokens: float  # training tokens
    optimum: float  # D / d_model
    interval: Interval  # of the optimum, 90 %


@dataclass(frozen=True)
class Transfer:
    """The predicted optimum at the target, or the refusal of one. Intervals are at 90 %."""

    group: Mapping[str, Any]  # axis -> value, of the axes that the sizes share
    label: str  # the group in a few words
    target: Target
    sizes: tuple[SizeOptimum, ...]
    refused: int  # sizes without an established optimum, left out
    exponent: float | None  # d ln m* / d ln N; None where there are too few sizes
    exponent_interval: Interval | None
    width_multiplier: float | None  # predicted at the target
    interval: Interval | None  # of the optimum at the target
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `transfer` in recommendation.json."""
        return {**asdict(self), "group": dict(self.group)}


def transfer(
    group: Mapping[str, Any],
    label: str,
    sizes: Sequence[SizeOptimum],
    refused: int,
    target: Target,
) -> Transfer:
    """Predict the optimal width at the target.

    Args:
        group: axis -> value, of the axes that the sizes share.
        label: the group in a few words.
        sizes: the established optima, in any order.
        refused: number of sizes without an established optimum.
        target: the model to predict for.

    Returns:
        The prediction. With fewer than MINIMUM_SIZES distinct sizes its numbers are None and its
        sentence says what to add.
    """
    sizes = tuple(sorted(sizes, key=lambda size: size.parameters))
    at = f"{large(target.params)} parameters and {large(target.tokens)} tokens"
    distinct = _distinct(sizes)
    if distinct < MINIMUM_SIZES:
        sentence = (
            f"no prediction for {at}: a transfer needs {MINIMUM_SIZES} model sizes with an "
            f"established optimum, and the sweep has {distinct} (and {refused} without one); add "
            "values to grid.d_model"
        )
        return Transfer(group, label, target, sizes, refused, None, None, None, None, sentence)
    slope, slope_interval, value, bounds = _predict(sizes, float(np.log(target.params)))
    multiplier = float(np.exp(value))
    found = (float(np.exp(bounds[0])), float(np.exp(bounds[1])))
    far = max(target.params / sizes[-1].parameters, sizes[0].parameters / target.params)
    sentence = (
        f"at {at} the optimum is predicted at {multiplier:.2f}x, 90 % interval {interval(found)}, "
        f"from {len(sizes)} optima at {distinct} model sizes (m* ~ N^{slope:.2f}, "
        f"{interval(slope_interval)})"
    )
    if far > 1:
        sentence += f"; the target is {far:.3g} times beyond these sizes"
    sentence += _tokens(sizes, target)
    if refused:
        sentence += (
            f"; {refused} without an established optimum were left out, which biases the "
            "prediction if their optimum is at an edge of the grid"
        )
    return Transfer(
        group, label, target, sizes, refused, slope, slope_interval, multiplier, found, sentence
    )


def _distinct(sizes: Sequence[SizeOptimum]) -> int:
    """The number of distinct sizes; `sizes` are in ascending order."""
    logs = np.log([size.parameters for size in sizes])
    return 0 if not len(logs) else 1 + int(np.sum(np.diff(logs) > np.log1p(SAME_SIZE)))


def _predict(
    sizes: Sequence[SizeOptimum], at: float
) -> tuple[float, Interval, float, tuple[float, float]]:
    """Slope of ln m* on ln N and its interval; the prediction at ln N = `at` and its interval."""
    x = np.log([size.parameters for size in sizes])
    y = np.log([size.optimum for size in sizes])
    low, high = np.log([size.interval for size in sizes]).T
    normal, student = (
        float(stats.norm.ppf((1 + CONFIDENCE) / 2)),
        float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2)),
    )
    error = (high - low) / 2 / normal  # standard error of each optimum, assumed normal
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y / spread)
    residual = y - y.mean() - slope * centred
    scatter = float(np.sqrt(residual @ residual / (len(x) - 2)))

    def half(weights: Floats, own: float) -> float:
        """Half the interval of `weights` @ y; `own` adds the scatter of one optimum itself."""
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
    """A remark where the target's tokens per parameter are outside those of the sizes."""
    tokens = [size.tokens for size in sizes]
    ratios = [size.tokens / size.parameters for size in sizes]
    wanted = target.tokens / target.params
    if not np.isfinite(tokens).all():
        return "; the dependence on tokens was not fitted"
    if min(ratios) / 1.5 <= wanted <= max(ratios) * 1.5:
        return ""
    return (
        f"; the dependence on tokens was not fitted: the sizes saw {min(ratios):.3g} to "
        f"{max(ratios):.3g} tokens per parameter, the target {wanted:.3g}"
    )
