"""How often a width is recommended where there is no case for one, and where there is.

    python benchmarks/verdicts.py [--studies 60]

Simulated loss surfaces, none of them a quadratic, with the noise of docs/experiments.md: paired
replicates whose luck is common to all widths, and 0.005 to 0.02 nats of noise a run. The rule of
`analysis.verdict.loss_optimum` is compared with the one it replaced, a quadratic in
ln(D / d_model) of which 97.5 % of resamples must have their vertex inside the grid. About four
minutes on one core.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.replicates import Floats, width_means
from analysis.verdict.loss_optimum import find_optimum
from analysis.verdict.loss_over_width import LossCurve

Loss = Callable[[Floats], Floats]

WIDTHS = {
    5: (1, 2, 2.67, 4, 8),
    6: (1, 1.5, 2, 2.67, 4, 8),
    8: (1, 1.5, 2, 2.67, 3.2, 4, 5.33, 8),
}
REPLICATES = (1, 3, 5)
NOISE = (0.005, 0.01, 0.02)  # nats, of one run
#: Nats, of one replicate at every width alike.
LUCK = 0.02
#: Nats per squared unit of ln m at a bowl's optimum: twice the width costs about 0.02.
CURVATURE = 0.05
#: Nats between the ends of a loss without a bowl.
FALL = 0.1


def bowl(best: float, p: float, q: float, curvature: float = CURVATURE) -> Loss:
    """E + a m^-p + b m^q with its minimum at `best` and a given curvature there in ln m."""
    g = 2 * curvature / (p + q)
    return lambda m: 3.4 + g * (((m / best) ** -p - 1) / p + ((m / best) ** q - 1) / q)


def falling(p: float) -> Loss:
    """E + a m^-p: ever flatter, and never up again."""
    return lambda m: 3.4 + FALL * (m**-p - 8**-p) / (1 - 8**-p)


def rising(q: float) -> Loss:
    """E + b m^q."""
    return lambda m: 3.4 + FALL * (m**q - 1) / (8**q - 1)


NO_CASE: dict[str, dict[str, Loss]] = {
    "flat": {"flat": lambda m: 3.4 + 0 * m},
    "monotone": {
        "linear in ln m": lambda m: 3.4 - FALL * np.log(m) / np.log(8),
        **{f"falls as m^-{p:g}": falling(p) for p in (0.5, 1, 2, 3, 5)},
        **{f"rises as m^{q:g}": rising(q) for q in (0.5, 1, 2, 3)},
    },
    "edge": {
        f"optimum at {best:g}, p = {p:g}, q = {q:g}": bowl(best, p, q)
        for best in (1, 8)
        for p, q in ((1, 1), (2, 0.5), (0.5, 2))
    }
    | {"optimum at 11, p = 1, q = 1": bowl(11, 1, 1)},
}
OPTIMA: dict[str, tuple[float, Loss]] = {
    f"optimum at {best:g}, p = {p:g}, q = {q:g}": (best, bowl(best, p, q))
    for best, p, q in (
        (2.83, 0.01, 0.01),
        (2.83, 1, 1),
        (2.83, 2, 0.5),
        (2.83, 0.5, 2),
        (2.83, 3, 0.3),
        (2, 2, 0.5),
        (4, 1, 1),
    )
}


def study(
    loss: Loss, widths: int, replicates: int, noise: float, seed: Sequence[int]
) -> tuple[Floats, Floats, Floats]:
    """Multiplier, loss and replicate of every run of one simulated sweep."""
    rng = np.random.default_rng(seed)
    m = np.repeat(np.array(WIDTHS[widths], float), replicates)
    replicate = np.tile(np.arange(replicates), widths)
    luck = LUCK * rng.standard_normal(replicates)[replicate]
    return m, loss(m) + luck + noise * rng.standard_normal(len(m)), replicate.astype(float)


@dataclass(frozen=True)
class Answer:
    """What a rule made of one study; not recommended where it could not be judged."""

    recommended: bool
    optimum: float = np.nan
    interval: tuple[float, float] = (np.nan, np.nan)


def present_rule(m: Floats, loss: Floats, replicate: Floats) -> Answer:
    found = find_optimum(m, loss, replicate, tolerance=0.01)
    if not isinstance(found, LossCurve):
        return Answer(False)
    return Answer(found.recommended, found.optimum, found.interval)


def quadratic_rule(m: Floats, loss: Floats, replicate: Floats, resamples: int = 2000) -> Answer:
    """One shape, the noise of the replicates (with one, of the scatter), 97.5 % inside."""
    means = width_means(np.log(m), loss, replicate)
    if means.widths < 6 and means.replicates < 2:
        return Answer(False)
    design = np.vander(means.x, 3)
    solve = np.linalg.pinv(design)
    spare = means.widths - 3
    residual = means.mean - design @ solve @ means.mean
    variance, df, covariance = residual @ residual / spare, spare, np.eye(means.widths)
    if means.variance is not None:
        variance, df, covariance = means.variance, means.df, means.covariance
    rng = np.random.default_rng(0)
    scale = np.sqrt(variance * df / rng.chisquare(df, resamples))
    normal = rng.standard_normal((resamples, means.widths)) @ np.linalg.cholesky(covariance).T
    a, b, _ = ((means.mean + scale[:, None] * normal) @ solve.T).T
    vertex = np.where(a > 0, -b / np.where(a > 0, 2 * a, 1), np.inf)
    inside = (vertex > means.x[0]) & (vertex < means.x[-1])
    at = np.clip(vertex, means.x[0], means.x[-1])
    low, middle, high = np.exp(np.quantile(at, [0.05, 0.5, 0.95]))
    return Answer(bool(inside.mean() >= 0.975), float(middle), (float(low), float(high)))


RULES: dict[str, Callable[[Floats, Floats, Floats], Answer]] = {
    "quadratic": quadratic_rule,
    "widthlab": present_rule,
}


@dataclass
class Tally:
    """Answers of one rule to studies that share a truth."""

    best: float | None
    answers: list[Answer] = field(default_factory=list)

    @property
    def recommended(self) -> float:
        return float(np.mean([answer.recommended for answer in self.answers]))

    def coverage(self, among_recommended: bool) -> float:
        """Share of intervals that hold the optimum; NaN where there are none."""
        assert self.best is not None
        judged = [
            answer.interval[0] <= self.best <= answer.interval[1]
            for answer in self.answers
            if answer.recommended or (not among_recommended and np.isfinite(answer.optimum))
        ]
        return float(np.mean(judged)) if judged else float("nan")

    @property
    def bias(self) -> float:
        """Of ln m*, among the recommended."""
        assert self.best is not None
        off = [np.log(answer.optimum / self.best) for answer in self.answers if answer.recommended]
        return float(np.mean(off)) if off else float("nan")


def simulate(
    name: str, loss: Loss, best: float | None, design: tuple[int, int], noise: float, studies: int
) -> dict[str, Tally]:
    """Every rule's answers to the same studies; no two cells of a table share their noise."""
    tallies = {rule: Tally(best) for rule in RULES}
    for number in range(studies):
        seed = [number, *design, round(1000 * noise), *name.encode()]
        data = study(loss, *design, noise, seed)
        for rule, judge in RULES.items():
            tallies[rule].answers.append(judge(*data))
    return tallies


def designs() -> Iterator[tuple[int, int]]:
    yield from ((widths, replicates) for widths in WIDTHS for replicates in REPLICATES)


def no_case_table(studies: int) -> None:
    print("Recommended where there is no case, % of studies: quadratic / widthlab", flush=True)
    print(f"{'':34}" + "".join(f"{f'{w} x {r}':>13}" for w, r in designs()))
    worst = dict.fromkeys(RULES, 0.0)
    for kind, losses in NO_CASE.items():
        pooled = {design: {rule: Tally(None) for rule in RULES} for design in designs()}
        for name, loss in losses.items():
            row = {design: {rule: Tally(None) for rule in RULES} for design in designs()}
            for design in designs():
                for noise in NOISE:
                    for rule, tally in simulate(name, loss, None, design, noise, studies).items():
                        row[design][rule].answers += tally.answers
                        pooled[design][rule].answers += tally.answers
                for rule, tally in row[design].items():
                    worst[rule] = max(worst[rule], tally.recommended)
            _no_case_row(name if kind == name else f"{kind}: {name}", row)
        if len(losses) > 1:
            _no_case_row(f"{kind}: all", pooled)
    print("worst cell: " + ", ".join(f"{rule} {100 * w:.1f} %" for rule, w in worst.items()))


def _no_case_row(label: str, row: dict[tuple[int, int], dict[str, Tally]]) -> None:
    cells = [
        " / ".join(f"{100 * tally.recommended:.1f}" for tally in tallies.values())
        for tallies in row.values()
    ]
    print(f"{label:34}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def optima_table(studies: int) -> None:
    print(
        "\nReal optima, widthlab (quadratic): power, coverage of the 90 % interval in all studies"
    )
    print("and among the recommended, bias of ln m* among the recommended")
    settings = [(design, noise) for design in designs() for noise in NOISE]
    pooled: dict[tuple[tuple[int, int], float], list[dict[str, Tally]]] = {s: [] for s in settings}
    for name, (best, loss) in OPTIMA.items():
        print(f"{name}")
        for design, noise in settings:
            found = simulate(name, loss, best, design, noise, studies)
            pooled[design, noise].append(found)
            _optimum_row(design, noise, [found])
    print("all of these, the bias without its sign")
    for (design, noise), each in pooled.items():
        _optimum_row(design, noise, each)


def _optimum_row(design: tuple[int, int], noise: float, found: list[dict[str, Tally]]) -> None:
    """Means over surfaces; a mean over none is not a number."""

    def mean(measure: Callable[[Tally], float], rule: str) -> float:
        values = np.array([measure(tallies[rule]) for tallies in found])
        known = values[np.isfinite(values)]
        return float(known.mean()) if len(known) else float("nan")

    def both(measure: Callable[[Tally], float], form: Callable[[float], str]) -> str:
        return f"{form(mean(measure, 'widthlab'))} ({form(mean(measure, 'quadratic'))})"

    size = abs if len(found) > 1 else float
    print(
        f"  {design[0]} x {design[1]}, noise {noise:5.3f}: "
        f"power {both(lambda tally: tally.recommended, _percent)} %   "
        f"coverage {both(lambda tally: tally.coverage(False), _percent)}, "
        f"{both(lambda tally: tally.coverage(True), _percent)} %   "
        f"bias {both(lambda tally: size(tally.bias), '{:+.3f}'.format)}",
        flush=True,
    )


def _percent(share: float) -> str:
    return "  -" if np.isnan(share) else f"{100 * share:3.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=60, help="a surface, design and noise")
    studies = parser.parse_args().studies
    start = time.monotonic()
    no_case_table(studies)
    optima_table(studies)
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
