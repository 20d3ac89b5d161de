"""How often comparisons between groups claim a difference that is not there, and find one that is.

    python benchmarks/comparisons.py [--studies 500]

Simulated sweeps of 6 widths: a seed's luck is common to all groups (0.02 nats), a part of it
differs from group to group and is common to the widths of a group (`seed x group`), and every run
has noise. All groups lie along one axis and are compared pair by pair, as
`analysis.verdict.compare` does. Five minutes on one core. Standard errors are in brackets.
"""

import argparse
import itertools
import time
from dataclasses import dataclass, field

import numpy as np

from analysis.replicates import CONFIDENCE, Floats
from analysis.verdict.paired_differences import PairedDifference, paired_difference
from analysis.verdict.simultaneous import (
    Contrast,
    Design,
    Limit,
    holm,
    simultaneous_limits,
)

WIDTHS = np.array([1, 1.5, 2, 2.67, 4, 8])
#: Nats: the luck of a seed in all groups.
LUCK = 0.02


@dataclass(frozen=True)
class Setting:
    """One kind of sweep."""

    groups: int
    replicates: int
    noise: float = 0.01  # nats, of one run
    seed_by_group: float = 0.005  # nats, of one seed in one group, at all widths alike
    noisier: float = 1.0  # times these two, in the first group
    narrow: float = 1.0  # times the noise at 1x, falling to 1 at 8x
    missing: float = 0.0  # share of the trials that are lost
    effect: float = 0.0  # nats, of the last group
    tilt: float = 0.0  # nats per unit of ln m, of the last group: the mean over widths stays


@dataclass
class Tally:
    """Counts over the studies of one setting."""

    studies: int = 0
    all_covered: int = 0
    covered: list[float] = field(default_factory=list)  # share of the intervals, a study
    told_falsely: int = 0  # studies with any difference told where there is none
    told: list[float] = field(default_factory=list)  # share of the last group's comparisons
    width: int = 0  # studies in which any difference depends on the width
    smallest: list[float] = field(default_factory=list)  # nats: told in 80 % of such sweeps


def losses(at: Setting, rng: np.random.Generator) -> Floats:
    """[groups, widths, replicates] of one sweep; NaN where a trial is lost."""
    shape = (at.groups, len(WIDTHS), at.replicates)
    scale = np.ones((at.groups, 1, 1))
    scale[0] = at.noisier
    narrow = at.narrow ** (1 - np.log(WIDTHS) / np.log(WIDTHS[-1]))
    y = LUCK * rng.standard_normal(at.replicates) - 0.1 * np.log(WIDTHS)[:, None]
    y = y + scale * at.seed_by_group * rng.standard_normal((at.groups, 1, at.replicates))
    y = y + scale * at.noise * narrow[:, None] * rng.standard_normal(shape)
    y[-1] += at.effect + at.tilt * (np.log(WIDTHS) - np.log(WIDTHS).mean())[:, None]
    return np.where(rng.random(shape) < at.missing, np.nan, y)


def judged(y: Floats) -> list[tuple[tuple[int, int], PairedDifference, Limit]]:
    """The comparisons of all groups that can be judged."""
    pairs, found = [], []
    for one, two in itertools.combinations(range(len(y)), 2):
        apart = y[two] - y[one]
        width, replicate = np.nonzero(np.isfinite(apart))
        known = paired_difference(WIDTHS[width], replicate, apart[width, replicate])
        if known.variance is not None:
            pairs.append((one, two))
            found.append(known)
    contrasts = [
        Contrast(Design(pair, own.replicates, "axis"), own.variance or 0.0)
        for pair, own in zip(pairs, found, strict=True)
    ]
    return list(zip(pairs, found, simultaneous_limits(contrasts), strict=True))


def simulate(at: Setting, studies: int) -> Tally:
    """Judge `studies` sweeps of one setting."""
    tally, last = Tally(), at.groups - 1
    for number in range(studies):
        found = judged(losses(at, np.random.default_rng([17, number])))
        if not found:  # too many trials were lost
            continue
        true = np.array([at.effect if two == last else 0.0 for (_, two), _, _ in found])
        mean = np.array([own.mean for _, own, _ in found])
        half = np.array([limit.half_width for _, _, limit in found])
        of_last = np.array([two == last for (_, two), _, _ in found])
        covers, told = np.abs(mean - true) <= half, np.abs(mean) > half
        tally.studies += 1
        tally.all_covered += bool(covers.all())
        tally.covered.append(float(covers.mean()))
        tally.told_falsely += bool((told & (true == 0)).any())
        tally.told.append(float(told[of_last].mean()))
        adjusted = holm([own.width_p for _, own, _ in found])
        tally.width += any(p is not None and p < 1 - CONFIDENCE for p in adjusted)
        tally.smallest.append(float(np.median([limit.smallest_told for _, _, limit in found])))
    return tally


def percent(count: float, studies: int) -> str:
    """`9.2 (1.3)`: a share of the studies in %, with its standard error."""
    share = count / studies
    return f"{100 * share:.1f} ({100 * np.sqrt(share * (1 - share) / studies):.1f})"


def mean_percent(shares: list[float]) -> str:
    """The mean share in %, with the standard error of the mean over studies."""
    return f"{100 * np.mean(shares):.1f} ({100 * np.std(shares) / np.sqrt(len(shares)):.1f})"


NO_DIFFERENCE = {
    "equal noise": {},
    "no seed x group": {"seed_by_group": 0.0},
    "seed x group 0.02": {"seed_by_group": 0.02},
    "one group 4x noisier": {"noisier": 4.0},
    "noise 3x at 1x": {"narrow": 3.0},
    "15 % of trials lost": {"missing": 0.15},
    "last tilts 0.02 per ln m": {"tilt": 0.02},
}


def no_difference(studies: int) -> None:
    print("No true difference of the means over widths, %: any told; every interval covers; an")
    print("interval covers; any difference said to depend on the width")
    for name, settings in NO_DIFFERENCE.items():
        for groups, replicates in itertools.product((2, 4, 10), (2, 3, 5)):
            at = Setting(groups, replicates, **settings)
            tally = simulate(at, studies)
            told, width = tally.told_falsely, tally.width
            print(
                f"  {name:26} {groups:2} groups x {replicates}: "
                f"{percent(told, tally.studies)}   {percent(tally.all_covered, tally.studies)}   "
                f"{mean_percent(tally.covered)}   {percent(width, tally.studies)}",
                flush=True,
            )


def differences(studies: int) -> None:
    print("\nThe last group differs, %: its comparisons told; every interval covers; median of the")
    print("smallest difference said to be told")
    for effect, noise in ((0.01, 0.005), (0.01, 0.01), (0.02, 0.01)):
        for groups, replicates in itertools.product((2, 4, 10), (2, 3, 5)):
            at = Setting(groups, replicates, noise, noise / 2, effect=effect)
            tally = simulate(at, studies)
            print(
                f"  {effect:g} nats, noise {noise:g}, {groups:2} groups x {replicates}: "
                f"{mean_percent(tally.told)}   {percent(tally.all_covered, tally.studies)}   "
                f"{np.median(tally.smallest):.4f}",
                flush=True,
            )


def widths(studies: int) -> None:
    print("\nThe last group's difference tilts with ln m, %: said to depend on the width")
    for tilt in (0.005, 0.01):
        for groups, replicates in itertools.product((2, 4, 10), (2, 3, 5)):
            tally = simulate(Setting(groups, replicates, tilt=tilt), studies)
            print(
                f"  {tilt:g} nats per ln m, {groups:2} groups x {replicates}: "
                f"{percent(tally.width, tally.studies)}",
                flush=True,
            )


def promised(studies: int) -> None:
    print("\nA difference of the size that is said to be told in 80 %: told, %")
    for groups, replicates in itertools.product((2, 4, 10), (2, 3, 5)):
        size = float(np.mean(simulate(Setting(groups, replicates), 100).smallest))
        tally = simulate(Setting(groups, replicates, effect=size), studies)
        print(f"  {size:.4f} nats, {groups:2} groups x {replicates}: {mean_percent(tally.told)}")


TABLES = {
    "no-difference": no_difference,
    "differences": differences,
    "widths": widths,
    "promised": promised,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=500, help="of every setting")
    parser.add_argument("--only", choices=TABLES, help="one of the tables")
    options = parser.parse_args()
    start = time.monotonic()
    for name, table in TABLES.items():
        if options.only in (None, name):
            table(options.studies)
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
