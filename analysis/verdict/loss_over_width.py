"""The loss over the width at an equal budget, as it was judged."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.replicates import Floats, Interval
from analysis.verdict.budget_slope import BudgetSlope
from analysis.verdict.loss_curves import SHAPES, CurveFits
from analysis.verdict.loss_resamples import NoiseFrom
from analysis.verdict.run_noise import NoiseTrend, Suspect

#: The optimum may lie at an edge that more than this share of resamples puts it at.
EDGE_SHARE = 0.10

Obstacle = Literal[
    "lower edge",
    "upper edge",
    "all within tolerance",
    "single runs",
    "one replicate",
    "noise in doubt",
    "many looks",
    "uncertain",
    "nothing admissible",
]


@dataclass(frozen=True)
class LossCurve:
    """The fitted curves, their optimum, and the loss of each width. Losses in nats per token."""

    multiplier: Floats  # [W] D / d_model, ascending
    loss: Floats  # [W] width means, at one budget
    measured: Floats  # [W] width means as measured, before losses are moved to one budget
    counts: NDArray[np.int64]  # [W] runs
    admissible: NDArray[np.bool_]  # [W] whether no replicate collapsed or diverged
    fits: CurveFits
    optimum: float  # D / d_model where the mean of the curves is lowest within the grid
    interval: Interval  # of the optimum, 90 %
    support: float  # share of resamples with an optimum strictly inside the grid
    required_support: float  # for a recommendation
    below: float  # share of resamples with the lowest loss at the smallest width
    above: float  # share of resamples with the lowest loss at the largest width
    excess: Floats  # [W] loss on the curve minus its minimum within the grid
    excess_upper: Floats  # [W] upper bound of the excess, one-sided at 90 %
    over_headline: Floats  # [W, 2] 90 % interval of the loss minus the headline's; NaN without one
    equivalent: NDArray[np.bool_]  # [W] not distinguishable from the headline
    headline: int | None  # index of the width to choose, once an optimum is established
    within_tolerance: bool  # whether the headline's upper bound is below the tolerance
    tolerance: float  # nats
    noise_sd: float  # nats; of one run, or of a width mean if the noise is the scatter
    noise_from: NoiseFrom
    lack_of_fit_p: float | None  # of the best of all shapes; None where replicates do not differ
    replicates: int
    obstacle: Obstacle | None  # to a recommendation
    reason: str  # why an optimum is established, or why none is
    plateau: tuple[int, int] | None  # first and last of neighbours that are within tolerance
    suspects: tuple[Suspect, ...]  # runs that noise does not explain, by index of the input
    support_without: float  # `support` without them
    support_if_noisy: float  # `support` if narrow widths are noisier, where that cannot be seen
    trend: NoiseTrend  # of the noise over the width
    slope: BudgetSlope  # by which losses were moved to one budget
    log_evidence: float  # ln of the e-value against every monotone loss

    @property
    def recommended(self) -> bool:
        """Whether the optimum is established and a width may be recommended."""
        return self.obstacle is None

    @property
    def shape(self) -> tuple[float, float]:
        """The most likely (p, q) of E + a m^-p + b m^q; (0, 0) stands for a quadratic in ln m."""
        falls, rises = SHAPES[self.fits.best]
        return float(falls), float(rises)

    def curve(self, multiplier: ArrayLike) -> Floats:
        """Return the loss on the mean of the curves at D / d_model, in nats per token."""
        at = np.log(np.asarray(multiplier, float))
        return self.fits.loss(at.reshape(-1)).reshape(at.shape)


def plateau_of(curve: LossCurve) -> Interval | None:
    """Return the ends of a plateau that answers for the optimum; None without one.

    A plateau is a range of neighbouring widths that are surely within tolerance of the best width
    of the grid. It is no answer where it ends with the grid while the loss may go on falling there.
    """
    if curve.plateau is None:
        return None
    first, last = curve.plateau
    lowest, largest = first == 0, last == len(curve.multiplier) - 1
    open_ended = (lowest and curve.below > EDGE_SHARE) or (largest and curve.above > EDGE_SHARE)
    if open_ended and not (lowest and largest):
        return None
    return float(curve.multiplier[first]), float(curve.multiplier[last])
