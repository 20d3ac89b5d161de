"""How a verdict holds against what misled earlier rules, and what it can tell on a published law.

    python benchmarks/verdict_attacks.py [--studies 500] [--only one-bad-run looks ...]

Every row is a number of simulated sweeps of seven widths from 1x to 8x with three paired
replicates, unless it says otherwise. In brackets: the standard error. `rule alone` is the share of
resamples with an optimum inside the grid, all runs counted alike, without the guards of
`analysis.verdict`.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import pandas as pd
from verdicts import LUCK, Loss, bowl, falling, rising

from analysis.replicates import Floats
from analysis.verdict import next_cells
from analysis.verdict.budget_slope import BudgetSlope
from analysis.verdict.equal_budget import LossRule, judge_losses
from analysis.verdict.false_recommendations import (
    Look,
    evidence_of_looks,
    log_e_value,
    required_e_values,
    with_look,
)
from analysis.verdict.loss_optimum import REQUIRED_SUPPORT, find_optimum
from analysis.verdict.loss_over_width import LossCurve, plateau_of

TOLERANCE = 0.01
WIDTHS = (1, 1.5, 2, 2.67, 4, 5.33, 8)
Draw = Callable[[np.random.Generator], tuple[Floats, Floats, Floats]]


def flat(m: Floats) -> Floats:
    return 3.4 + 0 * np.asarray(m, float)


def published(depth: int, reference: float = 4.0, d_model: float = 64.0) -> Loss:
    """The conditional law of arXiv 2510.18245 along equal parameters, scaled to 3.5 nats.

    SwiGLU with full attention: N = depth d^2 (4 + 3 m); the budget is that of `d_model` at the
    reference multiplier.
    """
    budget = depth * d_model**2 * (4 + 3 * reference)

    def loss(m: Floats) -> Floats:
        m = np.asarray(m, float)
        x = np.sqrt(budget / depth / (4 + 3 * m)) / np.sqrt(budget)
        r = 3 * m / 4
        shape = 2.697 + 0.0974 * np.log(x) + 0.0078 / x
        return np.asarray(3.5 * shape * (0.3870 + 0.0063 * np.log(r) + 0.0065 / r))

    return loss


def optimum_of(loss: Loss) -> float:
    m = np.exp(np.linspace(np.log(0.02), np.log(200), 200_001))
    return float(m[np.argmin(loss(m))])


def sweeps(
    loss: Loss,
    noise: float | Loss,
    replicates: int = 3,
    widths: Sequence[float] = WIDTHS,
    bad_run: tuple[float, float] | None = None,
) -> Draw:
    """Draw sweeps.

    Args:
        loss: The true loss over m.
        noise: Nats of one run, or its dependence on m.
        replicates: Paired replicates.
        widths: Multipliers.
        bad_run: A multiplier, and the nats that are added to one run there.
    """

    def draw(rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
        m = np.repeat(np.array(widths, float), replicates)
        replicate = np.tile(np.arange(replicates), len(widths))
        size = noise(m) if callable(noise) else noise
        y = loss(m) + LUCK * rng.standard_normal(replicates)[replicate]
        y = y + size * rng.standard_normal(len(m))
        if bad_run is not None:
            y[np.flatnonzero(m == bad_run[0])[0]] += bad_run[1]
        return m, y, replicate.astype(float)

    return draw


def curves(name: str, draw: Draw, studies: int, **options: object) -> list[LossCurve]:
    """Judge the sweeps that allow a judgement; no two rows share their noise."""
    found = []
    for number in range(studies):
        data = draw(np.random.default_rng([number, *name.encode()]))
        curve = find_optimum(*data, tolerance=TOLERANCE, **options)  # type: ignore[arg-type]
        if isinstance(curve, LossCurve):
            found.append(curve)
    return found


def share(values: Sequence[bool]) -> str:
    """A percentage and its standard error; `-` of nothing."""
    if not len(values):
        return "-"
    p = float(np.mean(values))
    return f"{100 * p:.1f} ({100 * sqrt(max(p * (1 - p), 0.25 / len(values)) / len(values)):.1f}) %"


def covered(found: Sequence[LossCurve], best: float) -> list[bool]:
    return [curve.interval[0] <= best <= curve.interval[1] for curve in found]


def false_row(name: str, draw: Draw, studies: int) -> None:
    found = curves(name, draw, studies)
    alone = [curve.support >= REQUIRED_SUPPORT for curve in found]
    print(
        f"  {name:52} recommended {share([curve.recommended for curve in found]):>14}"
        f"   by the support alone {share(alone):>14}",
        flush=True,
    )


# --- the attacks ---------------------------------------------------------------------------


def one_bad_run(studies: int) -> None:
    print("One run of 21 is off; the loss has no optimum inside the grid")
    for noise in (0.005, 0.01):
        for name, loss in (
            ("falls as m^-3", falling(3)),
            ("falls as m^-1", falling(1)),
            ("optimum at 8", bowl(8, 1, 1)),
        ):
            draw = sweeps(loss, noise, bad_run=(8, 0.1))
            false_row(f"{name}, +0.1 nats at 8x, noise {noise:g}", draw, studies)
        draw = sweeps(rising(1), noise, bad_run=(1, 0.1))
        false_row(f"rises as m, +0.1 nats at 1x, noise {noise:g}", draw, studies)
    draw = sweeps(falling(3), 0.01, bad_run=(8, 0.05))
    false_row("falls as m^-3, +0.05 nats at 8x, noise 0.01", draw, studies)


def noise_by_width(studies: int) -> None:
    print("Narrow widths are noisier; the loss has no optimum inside the grid")
    kinds: dict[str, Loss] = {
        "0.1 below 2x, else 0.005": lambda m: np.where(m < 2, 0.1, 0.005),
        "0.02 (m / 2.83)^-1.5": lambda m: 0.02 * (m / 2.83) ** -1.5,
    }
    for kind, noise in kinds.items():
        for replicates in (1, 3):
            for name, loss in (
                ("flat", flat),
                ("falls as m^-3", falling(3)),
                ("rises as m", rising(1)),
                ("optimum at 1", bowl(1, 1, 1)),
                ("optimum at 8", bowl(8, 1, 1)),
            ):
                draw = sweeps(loss, noise, replicates)
                false_row(f"{name}, noise {kind}, 7 x {replicates}", draw, studies)


def budgets(studies: int) -> None:
    """Cells of a real grid that miss their budget, and a loss that falls with the budget."""
    print("Budgets that miss by up to 2 %: bias of ln m*, coverage of the 90 % interval")
    widths = (1, 1.455, 2.1, 2.889, 4, 5.571, 8.167)
    parameters = np.array([129.4, 129.9, 132.2, 131.6, 131.3, 130.1, 131.5])
    off = dict(zip(widths, np.log(parameters / np.median(parameters)), strict=True))
    for depth in (6, 12):
        truth = published(depth)
        best = optimum_of(truth)
        for slope in (-0.15, -0.27):

            def loss(m: Floats, truth: Loss = truth, slope: float = slope) -> Floats:
                return truth(m) + slope * np.array([off[one] for one in np.atleast_1d(m)])

            name = f"published law, depth {depth}, slope {slope:g}"
            draw = sweeps(loss, 0.003, widths=widths)
            missed = np.repeat([off[m] for m in widths], 3)
            for how, options in (
                ("as they are", {}),
                ("measured", {"slope": BudgetSlope(slope * 1.1, abs(slope) * 0.1, "measured")}),
                ("assumed", {"slope": BudgetSlope(-0.2, 0.1, "assumed")}),
            ):
                found = curves(name, draw, studies, off_budget=missed, **options)
                told = [curve for curve in found if curve.recommended]
                bias = np.mean([np.log(curve.optimum / best) for curve in found])
                print(
                    f"  {name}, {how:12} bias {bias:+.3f}   covered {share(covered(found, best))},"
                    f" among the recommended {share(covered(told, best))}   recommended "
                    f"{share([curve.recommended for curve in found])}",
                    flush=True,
                )


@dataclass
class World:
    """A sweep that can be extended: runs are drawn as they are asked for."""

    loss: Loss
    noise: float
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.cells: dict[tuple[float, int], float] = {}
        self.luck: dict[int, float] = {}

    def run(self, widths: Sequence[float], seeds: Sequence[int]) -> None:
        for seed in seeds:
            luck = self.luck.setdefault(seed, LUCK * self.rng.standard_normal())
            for m in widths:
                if (m, seed) not in self.cells:
                    noise = self.noise * self.rng.standard_normal()
                    self.cells[m, seed] = float(self.loss(np.array(m))) + luck + noise

    def trials(self) -> pd.DataFrame:
        cells = sorted(self.cells)
        m = [float(cell[0]) for cell in cells]
        return pd.DataFrame(
            {
                "id": [f"{cell[0]:g}-{cell[1]}" for cell in cells],
                "holds": [("params",)] * len(cells),
                "uniform_width": True,
                "state": "completed",
                "val_loss": [self.cells[cell] for cell in cells],
                "width_multiplier": m,
                "typed_multiplier": m,
                "replicate": [cell[1] for cell in cells],
                "parameters_non_embedding": 1e6,
                "flops": 1e12,
            }
        )


def followed(world: World, rule: LossRule, seeds: int, rounds: int) -> tuple[bool, bool]:
    """Follow the advice for some rounds: whether a width is ever recommended, with control of the
    looks, and without."""
    world.run(WIDTHS, range(seeds))
    looks: tuple[Look, ...] = ()
    controlled = alone = False
    for _ in range(rounds):
        (evidence,) = judge_losses(world.trials(), rule)
        curve = evidence.optimum
        if isinstance(curve, LossCurve):
            look = Look(frozenset(evidence.used["id"]), True, curve.recommended)
            looks = with_look(looks, look)
            (found,) = evidence_of_looks({0: curve}, {0: looks}, 0.02).values()
            alone = alone or curve.recommended
            controlled = controlled or (curve.recommended and found.sufficient)
        if controlled:
            break
        asked = next_cells.for_refusal(evidence, {}, 1.0)
        if isinstance(curve, LossCurve) and curve.recommended:  # withheld: add replicates
            newest = max(seed for _, seed in world.cells) + 1
            world.run(sorted({m for m, _ in world.cells}), [newest])
        elif not asked:
            break
        for cells in asked:
            world.run(cells.grid["width_multiplier"], cells.grid["seed"])
    return controlled, alone


def looks(studies: int) -> None:
    print("The advice is followed for five rounds; the loss has no optimum inside the first grid")
    rule = LossRule(TOLERANCE)
    for name, loss in (
        ("flat", flat),
        ("falls as m^-1", falling(1)),
        ("falls as m^-3", falling(3)),
        ("rises as m", rising(1)),
    ):
        for seeds in (1, 3):
            for noise in (0.005, 0.01, 0.02):
                ended = [
                    followed(
                        World(loss, noise, np.random.default_rng([n, seeds, *name.encode()])),
                        rule,
                        seeds,
                        rounds=5,
                    )
                    for n in range(studies)
                ]
                print(
                    f"  {name}, 7 x {seeds}, noise {noise:g}: recommended "
                    f"{share([one for one, _ in ended])}, without control of the looks "
                    f"{share([one for _, one in ended])}",
                    flush=True,
                )


def many_groups(studies: int) -> None:
    print("100 groups judged together: false recommendations among them (mean, standard error)")
    for replicates in (1, 3):
        for name, real in (("none has an optimum", 0), ("20 of 100 have one", 20)):
            false, true, alone = [], [], []
            for number in range(max(1, studies // 25)):
                rng = np.random.default_rng([number, replicates, real])
                kinds = [flat, falling(1), falling(3), bowl(8, 1, 1), rising(1)]
                truths = [bowl(2.83, 1, 1)] * real
                truths += [kinds[i % len(kinds)] for i in range(100 - real)]
                judged = {
                    i: curve
                    for i, truth in enumerate(truths)
                    if isinstance(
                        curve := find_optimum(
                            *sweeps(truth, 0.01, replicates)(rng), tolerance=TOLERANCE
                        ),
                        LossCurve,
                    )
                }
                log_e = {
                    i: log_e_value(curve, [Look(frozenset("a"), True, curve.recommended)], 0.02)
                    for i, curve in judged.items()
                }
                required = required_e_values(log_e, 0.02)
                told = [
                    i
                    for i, curve in judged.items()
                    if curve.recommended and log_e[i] >= np.log(required[i]) - 1e-6
                ]
                false.append(sum(i >= real for i in told))
                true.append(sum(i < real for i in told))
                alone.append(sum(c.recommended and i >= real for i, c in judged.items()))
            rate = [f / max(1, f + t) for f, t in zip(false, true, strict=True)]
            print(
                f"  7 x {replicates}, {name}: false {_mean(false)}, one by one {_mean(alone)}; "
                f"share of the recommended {_mean(rate)}; real ones found {_mean(true)} of {real}",
                flush=True,
            )


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({np.std(values) / sqrt(len(values)):.3f})"


def plateaus(studies: int) -> None:
    print("Plateaus: how often one is claimed, and how often a width of it is off by more")
    for name, loss in (
        ("flat", flat),
        ("bowl, 0.02 nats per octave", bowl(2.83, 1, 1)),
        ("published law, depth 6", published(6)),
        ("published law, depth 12", published(12)),
        ("falls as m^-1", falling(1)),
        ("falls as m^-3", falling(3)),
        ("rises as m", rising(1)),
    ):
        for noise in (0.005, 0.01, 0.02):
            found = curves(f"plateau {name} {noise}", sweeps(loss, noise), studies)
            claimed, off = [], []
            for curve in found:
                ends = None if curve.recommended else plateau_of(curve)
                claimed.append(ends is not None)
                if ends is not None:
                    inside = curve.multiplier[
                        (curve.multiplier >= ends[0] - 1e-9) & (curve.multiplier <= ends[1] + 1e-9)
                    ]
                    floor = loss(np.exp(np.linspace(0, np.log(8), 500))).min()
                    off.append(bool((loss(inside) - floor > TOLERANCE).any()))
            print(
                f"  {name}, noise {noise:g}: recommended "
                f"{share([c.recommended for c in found])}, plateau {share(claimed)}, of these off "
                f"{share(off)}",
                flush=True,
            )


def published_law(studies: int) -> None:
    print("The published law: recommended, coverage in all studies and among the recommended")
    for depth in (6, 12, 24):
        loss = published(depth)
        best = optimum_of(loss)
        for widths in (WIDTHS, tuple(np.geomspace(0.25, 8, 7))):
            for replicates in (3, 5):
                for noise in (0.005, 0.01, 0.02):
                    name = f"depth {depth}, {widths[0]:g}x to 8x, 7 x {replicates}, noise {noise:g}"
                    found = curves(name, sweeps(loss, noise, replicates, widths), studies)
                    told = [curve for curve in found if curve.recommended]
                    ends = [
                        c.headline is not None and not c.recommended and plateau_of(c) is not None
                        for c in found
                    ]
                    print(
                        f"  {name} (best {best:.2f}x): {share([c.recommended for c in found])}, "
                        f"covered {share(covered(found, best))} and {share(covered(told, best))}, "
                        f"plateau {share(ends)}",
                        flush=True,
                    )


ATTACKS: dict[str, Callable[[int], None]] = {
    "one-bad-run": one_bad_run,
    "noise-by-width": noise_by_width,
    "budgets": budgets,
    "looks": looks,
    "many-groups": many_groups,
    "plateaus": plateaus,
    "published-law": published_law,
}


def chosen(names: Sequence[str]) -> Iterator[Callable[[int], None]]:
    yield from (ATTACKS[name] for name in names or ATTACKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=500, help="simulated sweeps of a row")
    parser.add_argument("--only", nargs="*", choices=ATTACKS, default=[], help="attacks to run")
    given = parser.parse_args()
    start = time.monotonic()
    for attack in chosen(given.only):
        attack(given.studies)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
