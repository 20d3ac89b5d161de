"""Whether a trial trained stably, judged by its own loss curve.

A loss spike is a rise that neither the noise of the batches nor the schedule explains: every
schedule of widthlab lets the expected training loss fall. The rule compares two medians of the
newest training losses, of three and of fifteen, with the lowest running median of 25 so far.
The short one sees a spike of a few updates; the long one sees a smaller rise that lasts. Neither
sees a single odd batch, nor the steep fall at the start, where the running median lags above them.

The rule is causal: a loss is judged by those before it. So a trainer, which tells a spike while it
happens, and an analysis, which reads the records years later, find the same spikes.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class SpikeRule:
    """What counts as a spike. Thresholds were set by benchmarks/stability.py."""

    #: Rise of the short median that counts, in standard deviations of one value about its
    #: neighbours. The median has 0.67 of them; the lowest running median is up to one too low.
    sigmas: float = 6.0
    #: The same for the long median, which has 0.32 of them.
    lasting_sigmas: float = 4.0
    #: Least rise: in nats for losses, ten times the default tolerance of a verdict.
    floor: float = 0.1
    #: Whether the reference is the lowest running median so far, or the running median itself.
    from_lowest: bool = True


LOSS_RULE = SpikeRule()
#: Of ln(gradient norm): a rise to three times the running median. A norm may drift up over a run.
NORM_RULE = SpikeRule(floor=math.log(3), from_lowest=False)

#: Values in the running median: a quarter of those so far, within these bounds.
SHORTEST_WINDOW, LONGEST_WINDOW = 5, 25
#: Values of the short and of the long median. The long one must be shorter than the running median,
#: so that it lags less where the loss falls steeply; it is used once that has its full length.
SHORT, LONG = 3, 15
#: Values before the first judgement: a noise from fewer differences is too uncertain.
FIRST_JUDGED = 20
#: Differences that give the noise, per value of the running median.
NOISE_WINDOW = 4
#: A spike is over where the loss has fallen back to this share of the rise that counts.
RECOVERED_AT = 0.5
#: Share of the updates above the level before a spike from which a trial is unstable. Losses of
#: small models fall by about 0.3 nats per e-fold of the tokens, so 2 % of the updates are worth
#: 0.006 nats: as much as typical differences between widths.
UNSTABLE_SHARE = 0.02
#: Spikes from which a trial is unstable, however brief they are.
UNSTABLE_SPIKES = 3

#: The standard deviation of normal values over the median of their absolute differences.
_SD_OF_DIFFERENCES = 1.4826 / math.sqrt(2)


@dataclass(frozen=True)
class Spikes:
    """The spikes of one series."""

    count: int
    updates: int  # of which a value is known
    above: int  # of these, updates above the level before a spike
    largest: float  # rise above that level: nats, or a difference of ln(norm); 0 without a spike
    last: int | None  # update at which the newest spike began; None without one
    since: int | None  # the same if that spike is not over; None if the series has recovered

    @property
    def share(self) -> float:
        """Share of the updates above the level before a spike."""
        return self.above / self.updates if self.updates else 0.0

    @property
    def recovered(self) -> bool:
        """Whether no spike lasts at the end of the series."""
        return self.since is None

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `stability` in result.json."""
        return {**asdict(self), "share": self.share, "unstable": self.unstable}

    @property
    def unstable(self) -> bool:
        """Whether spikes may have changed the final loss: not over, long or many."""
        return self.count > 0 and (
            not self.recovered or self.share >= UNSTABLE_SHARE or self.count >= UNSTABLE_SPIKES
        )


@dataclass(frozen=True)
class Stability:
    """What a trial's loss curve says of its training. Losses in nats per token."""

    loss: Spikes | None  # of the training loss; None if too few are recorded to judge
    norm: Spikes | None  # of the gradient's norm; None if too few are recorded to judge
    fall_last_tenth: float  # of the held-out loss over the last tenth of the updates; NaN: unknown
    fall_per_doubling: float  # slope of the held-out loss over log2(updates), second half

    def to_dict(self) -> dict[str, Any]:
        """Return `stability` of result.json."""
        return {
            "train_loss": None if self.loss is None else self.loss.to_dict(),
            "grad_norm": None if self.norm is None else self.norm.to_dict(),
            "fall_last_tenth": _known(self.fall_last_tenth),
            "fall_per_doubling": _known(self.fall_per_doubling),
        }


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


class SpikeWatch:
    """Finds the spikes of a series that grows value by value. A value costs some microseconds.

    Example:
        >>> watch = SpikeWatch()
        >>> for step, loss in enumerate([3.0, 3.1] * 20 + [5.0] * 4 + [3.0, 3.1] * 20, start=1):
        ...     watch.add(step, loss)
        >>> watch.found.count, watch.found.last, watch.found.recovered
        (1, 41, True)
    """

    def __init__(self, rule: SpikeRule = LOSS_RULE) -> None:
        self._rule = rule
        self._values = _RunningMedian()
        self._differences = _RunningMedian()  # absolute, of consecutive values
        self._window = SHORTEST_WINDOW
        self._latest: deque[tuple[int, float]] = deque(maxlen=LONG)
        self._lowest = math.inf  # running median so far
        self._seen = self._above = self._count = 0
        self._largest = 0.0
        self._last: int | None = None
        self._level: float | None = None  # before the spike that is not over; None without one
        self._rise = 0.0  # that counted as this spike
        self._span = SHORT  # values of the median that saw it

    @property
    def found(self) -> Spikes:
        """The spikes so far."""
        since = None if self._level is None else self._last
        return Spikes(self._count, self._seen, self._above, self._largest, self._last, since)

    def add(self, step: int, value: float) -> None:
        """Take the value after the others; one that is not finite is left out."""
        if not math.isfinite(value):
            return
        before = self._latest[-1][1] if self._latest else None
        self._latest.append((step, value))
        if self._seen >= FIRST_JUDGED:
            self._judge()
        self._seen += 1
        self._window = min(max(self._seen // 4, SHORTEST_WINDOW), LONGEST_WINDOW)
        self._values.add(value, self._window)
        if before is not None:
            self._differences.add(abs(value - before), NOISE_WINDOW * self._window)
        self._lowest = min(self._lowest, self._values.median)

    def _judge(self) -> None:
        if self._level is None and not self._begins():
            return
        assert self._level is not None
        now = self._median(self._span)
        if now <= self._level + RECOVERED_AT * self._rise:
            self._level = None
            while len(self._latest) > SHORT:  # the long median must not see this spike again
                self._latest.popleft()
            return
        self._above += 1
        self._largest = max(self._largest, self._median(SHORT) - self._level)

    def _begins(self) -> bool:
        """Whether a spike begins; its level, rise, span and first update are then set."""
        level = self._lowest if self._rule.from_lowest else self._values.median
        value = self._latest[-1][1]
        if value <= level + self._rule.floor:  # most updates: spares the medians
            return False
        noise = _SD_OF_DIFFERENCES * self._differences.median
        for span, sigmas in ((SHORT, self._rule.sigmas), (LONG, self._rule.lasting_sigmas)):
            rise = max(self._rule.floor, sigmas * noise)
            full = len(self._latest) >= span and (span < LONG or self._window == LONGEST_WINDOW)
            if full and min(value, self._median(span)) > level + rise:
                newest = list(self._latest)[-span:]
                begun = [step for step, value in newest if value > level + rise]
                self._level, self._rise, self._span, self._last = level, rise, span, begun[0]
                self._count += 1
                self._above += len(begun) - 1  # the newest is counted by `_judge`
                return True
        return False

    def _median(self, span: int) -> float:
        """The median of the newest `span` values."""
        newest = [value for _, value in self._latest][-span:]
        return sorted(newest)[len(newest) // 2]


class _RunningMedian:
    """The median of the newest values."""

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float, window: int) -> None:
        """Take a value, and forget the oldest beyond `window` values."""
        self._order.append(value)
        insort(self._sorted, value)
        while len(self._order) > window:
            oldest = self._order.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]

    @property
    def median(self) -> float:
        """The median, the upper one of an even number; 0 without values."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else 0.0


def spikes_of(
    steps: Iterable[int], values: Iterable[float], rule: SpikeRule = LOSS_RULE
) -> Spikes | None:
    """Return the spikes of a whole series, in order of step; None if it is too short to judge."""
    watch = SpikeWatch(rule)
    for step, value in zip(steps, values, strict=True):
        watch.add(step, value)
    return watch.found if watch.found.updates > FIRST_JUDGED else None


def judge_stability(
    steps: ArrayLike,
    losses: ArrayLike,
    norms: ArrayLike,
    evaluated: ArrayLike,
    held_out: ArrayLike,
) -> Stability:
    """Judge the curve of one trial.

    Args:
        steps: [S] updates of the training rows, ascending.
        losses: [S] training losses, nats per token; NaN where unknown.
        norms: [S] norms of the gradient before clipping; NaN where unknown.
        evaluated: [E] updates before each evaluation, ascending.
        held_out: [E] held-out losses, nats per token.
    """
    at = np.asarray(steps, int).tolist()
    norm = np.asarray(norms, float)
    logs = np.log(norm, out=np.full(norm.shape, np.nan), where=norm > 0)
    x, y = np.asarray(evaluated, float), np.asarray(held_out, float)
    known = np.isfinite(y) & (x > 0)
    return Stability(
        loss=spikes_of(at, np.asarray(losses, float).tolist()),
        norm=spikes_of(at, logs.tolist(), NORM_RULE),
        fall_last_tenth=_fall_last_tenth(x[known], y[known]),
        fall_per_doubling=_fall_per_doubling(x[known], y[known]),
    )


#: The evaluation before the last one must be within this share of the training: between two that
#: are further apart the loss at nine tenths is not known.
_KNOWN_FROM = 0.7


def _fall_last_tenth(steps: np.ndarray, losses: np.ndarray) -> float:
    if len(steps) < 2 or steps[-2] < _KNOWN_FROM * steps[-1]:
        return float("nan")
    return float(np.interp(0.9 * steps[-1], steps, losses) - losses[-1])


def _fall_per_doubling(steps: np.ndarray, losses: np.ndarray) -> float:
    """By least squares over the second half of the training; NaN with fewer than 3 evaluations."""
    late = steps >= steps[-1] / 2 if len(steps) else np.zeros(0, bool)
    if late.sum() < 3:
        return float("nan")
    return -float(np.polyfit(np.log2(steps[late]), losses[late], 1)[0])
