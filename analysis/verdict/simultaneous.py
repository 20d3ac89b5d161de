"""Errors and limits of many comparisons at once, with a stated chance of any false one.

With two to five replicates a comparison's own scatter has one to four degrees of freedom, and alone
it tells next to nothing once ten comparisons are made. The comparisons along one axis are alike, so
their mean variance joins in with the weight of POOLED_DF degrees of freedom. It does not replace
the own one: placements and rates differ in noise.

The limits are those of the studentised maximum: the p-value that the smallest of all p-values falls
below in 10 % of simulated sweeps without a difference. They are simulated for groups of equal noise
and with one group of NOISIER times the noise of the others, and the stricter limit counts. The
interval of a comparison and the claim that it shows a difference then never contradict each other,
which they can with Holm's procedure.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

from analysis.replicates import CONFIDENCE, Floats

#: Weight of the mean variance along an axis, in degrees of freedom. Of 0, 1, 2, 4, 8 and all, 2 and
#: 4 tell the most at the stated rate; 2 leaves quiet groups beside a noisy one more of their power.
POOLED_DF = 2
#: Times the noise of the others that one group may have without more false claims than stated.
NOISIER = 4.0
#: Simulated sweeps: the standard error of the rate of 10 % is then 0.5 %.
DRAWS = 4000
#: With more comparisons than this the limit is Bonferroni's, which costs little more there.
MOST_SIMULATED = 1000
#: Chance of telling the smallest difference that a design is said to tell.
POWER = 0.8


@dataclass(frozen=True)
class Design:
    """What is compared with what in one comparison."""

    nodes: tuple[Hashable, Hashable]  # the two groups
    replicates: tuple[int, ...]  # [R] labels, R >= 2
    pool: Hashable  # comparisons of one pool have alike variances


@dataclass(frozen=True)
class Contrast:
    """One comparison with its scatter."""

    design: Design
    variance: float  # over replicates, of the mean difference in one replicate


@dataclass(frozen=True)
class Limit:
    """The error of one comparison, and its limits."""

    error: float  # standard error of the mean difference, nats
    half_width: float  # of the simultaneous 90 % interval, nats
    smallest_told: float  # true difference that is told in POWER of all sweeps, nats


def simultaneous_limits(contrasts: Sequence[Contrast]) -> list[Limit]:
    """Return the limits of all comparisons of a sweep, with one family-wise rate of 10 %."""
    if not contrasts:
        return []
    design = tuple(own.design for own in contrasts)
    pools = _pools(design)
    df = _degrees(design, pools)
    level = _level(design)
    limits = []
    variances = np.array([[own.variance for own in contrasts]])
    for own, variance, freedom in zip(
        design, _shrunk(variances, design, pools)[0], df, strict=True
    ):
        error = float(np.sqrt(variance / len(own.replicates)))
        reach = float(-special.stdtrit(freedom, level / 2))
        limits.append(Limit(error, reach * error, _shift(reach, freedom) * error))
    return limits


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjustment of the p-values that are known, in the same order."""
    known = sorted((value, place) for place, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted


def _pools(designs: Sequence[Design]) -> list[list[int]]:
    found: dict[Hashable, list[int]] = defaultdict(list)
    for place, own in enumerate(designs):
        found[own.pool].append(place)
    return list(found.values())


def _shrunk(variances: Floats, designs: Sequence[Design], pools: Sequence[list[int]]) -> Floats:
    """[draws, C] variances, each drawn towards the mean of its pool."""
    own_df = np.array([len(own.replicates) - 1.0 for own in designs])
    joined = np.empty_like(variances)
    for members in pools:
        df = own_df[members]
        pooled = (variances[:, members] @ df / df.sum())[:, None]
        joined[:, members] = (variances[:, members] * df + POOLED_DF * pooled) / (df + POOLED_DF)
    return joined


def _degrees(designs: Sequence[Design], pools: Sequence[list[int]]) -> list[float]:
    """Degrees of freedom of the shrunk variances: not more than the whole pool has.

    A pool of G groups that hang together has (G - 1)(R - 1), whatever the number of its pairs.
    """
    df = [0.0] * len(designs)
    for members in pools:
        group_of: dict[Hashable, Hashable] = {}

        def root(node: Hashable, known: dict[Hashable, Hashable] = group_of) -> Hashable:
            while known.setdefault(node, node) != node:
                node = known[node]
            return node

        ties = 0
        for place in members:
            one, two = map(root, designs[place].nodes)
            ties += one != two
            group_of[one] = two
        mean = sum(len(designs[place].replicates) - 1 for place in members) / len(members)
        for place in members:
            own = len(designs[place].replicates) - 1
            df[place] = max(own, min(ties * mean, own + POOLED_DF))
    return df


@lru_cache(maxsize=64)
def _level(designs: tuple[Design, ...]) -> float:
    """The p-value of a single comparison at which the family keeps its rate."""
    rate = 1 - CONFIDENCE
    if len(designs) > MOST_SIMULATED:
        return rate / len(designs)
    pools = _pools(designs)
    df = _degrees(designs, pools)
    return min(_simulated(designs, pools, df, noisier) for noisier in (1.0, NOISIER))


def _simulated(
    designs: Sequence[Design],
    pools: Sequence[list[int]],
    df: Sequence[float],
    noisier: float,
) -> float:
    """The lower 10 % of the smallest p-value, over sweeps without a difference."""
    rng = np.random.default_rng(0)
    nodes = {node: i for i, node in enumerate(dict.fromkeys(n for c in designs for n in c.nodes))}
    seeds = {
        seed: i for i, seed in enumerate(dict.fromkeys(s for c in designs for s in c.replicates))
    }
    means = rng.standard_normal((DRAWS, len(nodes), len(seeds)))
    means[np.arange(DRAWS), rng.integers(len(nodes), size=DRAWS)] *= noisier
    means = np.ascontiguousarray(means.transpose(1, 2, 0))  # sums over seeds are fast this way
    mean, variance = np.empty((DRAWS, len(designs))), np.empty((DRAWS, len(designs)))
    for place, own in enumerate(designs):
        one, two = (nodes[node] for node in own.nodes)
        at = [seeds[seed] for seed in own.replicates]
        apart = means[two][at] - means[one][at]
        mean[:, place], variance[:, place] = apart.mean(axis=0), apart.var(axis=0, ddof=1)
    count = np.array([len(own.replicates) for own in designs])
    t = np.abs(mean) / np.sqrt(_shrunk(variance, designs, pools) / count)
    smallest = np.ones(DRAWS)
    for freedom in set(df):
        alike = [place for place, own in enumerate(df) if own == freedom]
        smallest = np.minimum(smallest, 2 * special.stdtr(freedom, -t[:, alike].max(axis=1)))
    return float(np.quantile(smallest, 1 - CONFIDENCE))


@lru_cache(maxsize=1024)
def _shift(reach: float, df: float) -> float:
    """The true difference, in standard errors, that exceeds `reach` with a chance of POWER."""
    # The mean over quantiles of chi-square: the noncentral t of scipy fails at a large reach.
    shares = (np.arange(2000) + 0.5) / 2000
    limits = reach * np.sqrt(stats.chi2.ppf(shares, df) / df)
    high = 10 * (float(limits[-1]) + 5)
    return float(
        optimize.brentq(lambda at: special.ndtr(at - limits).mean() - POWER, 0, high, xtol=1e-3)
    )
