"""Do the 90 % intervals of the loss laws cover the truth? Simulated studies, counted.

    python benchmarks/fit_coverage.py [--sets 100] [--resamples 300] [--law chinchilla]

Truths are of published size, designs those of real studies, the noise of a run is 1 % of the
loss (0.02 to 0.05 nats), normal or heavy-tailed (Student's t with 3 degrees of freedom, the same
standard deviation). The reported interval is BCa for single runs and the percentiles for cells
with replicates; the other of the two stands beside it. Exits 1 where the coverage of an exponent
under normal noise leaves 85-95 % by more than two standard errors of the simulation.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from analysis.fit.batched_minimise import minimise
from analysis.fit.resamples import Resamples, resample
from analysis.fit.scaling_fit import intervals_of_form
from analysis.fit.scaling_laws import DELTA, Form, LossLaw, Variable, form_of, variables_array
from analysis.replicates import Floats

NOISE = 0.01
REPORTED, OTHER = "reported", "the other"
LOWEST, HIGHEST = 0.85, 0.95


@dataclass(frozen=True)
class Study:
    """A design and the truth that is planted in it."""

    law: LossLaw
    name: str
    columns: Mapping[Variable, Floats]
    theta: tuple[float, ...]  # as fitted: see Form
    replicates: int = 1

    @property
    def form(self) -> Form:
        return form_of(self.law, list(self.columns))


def studies() -> Iterator[Study]:
    chinchilla = (np.log(406.4), np.log(410.7), np.log(1.69), 0.34, 0.28)
    params, ratio = _grid(np.geomspace(2e7, 2e9, 8), (5, 10, 20, 40, 160))
    eight = {"params": params, "tokens": params * ratio}
    yield Study("chinchilla", "8 sizes x 5 tokens per parameter", eight, chinchilla)
    params, ratio = _grid(np.geomspace(2e7, 2e9, 6), (5, 20, 80, 320))
    six = {"params": params, "tokens": params * ratio}
    yield Study("chinchilla", "6 sizes x 4 tokens per parameter, 3 runs", six, chinchilla, 3)
    n_c, d_c = np.log(8.8e13), np.log(5.4e13)
    params, tokens = _grid(np.geomspace(1e6, 1e9, 8), np.geomspace(2e7, 2e10, 6))
    both = {"params": params, "tokens": tokens}
    yield Study(
        "kaplan", "8 sizes x 6 tokens", both, (0.076 / 0.095 * n_c, d_c, 0.076 / 0.095, 0.095)
    )
    yield Study(
        "kaplan",
        "12 sizes, 3 runs",
        {"params": np.geomspace(1e6, 1e9, 12)},
        (0.076 * n_c, 0.076),
        3,
    )
    width, depth, tokens = _grid(
        (256, 512, 1024, 2048), (3, 6, 12, 24, 48), np.geomspace(5e9, 1e11, 3)
    )
    both = {"width": width, "depth": depth}
    shape = (np.log(60), np.log(0.6), np.log(1.9), 0.8, 1.0)
    first = {name: values[::3] for name, values in both.items()}
    yield Study("width-depth", "4 widths x 5 depths, 3 runs", first, shape, 3)
    yield Study(
        "width-depth",
        "4 widths x 5 depths x 3 tokens",
        {**both, "tokens": tokens},
        (np.log(60), np.log(0.6), np.log(410.7), np.log(1.8), 0.8, 1.0, 0.28),
    )


def _grid(*axes: object) -> list[Floats]:
    return [axis.ravel() for axis in np.meshgrid(*[np.asarray(a, float) for a in axes])]


def coverage(
    study: Study, heavy: bool, sets: int, resamples: int
) -> tuple[dict[str, Floats], list[str]]:
    """Share of studies whose interval holds the truth, [P] per method, and the parameters."""
    form = study.form
    columns = {name: np.repeat(x, study.replicates) for name, x in study.columns.items()}
    model = form.model(np.log(variables_array(form, columns)))
    truth = np.asarray(study.theta)
    value = {name: float(of[0]) for name, of in form.natural(truth[None]).items()}
    clean = model.value(truth[None])[0]
    cell_of = np.repeat(np.arange(len(clean) // study.replicates), study.replicates)
    rng = np.random.default_rng(1)
    held: dict[str, list[list[bool]]] = {REPORTED: [], OTHER: []}
    for k in range(sets):
        noise = rng.standard_t(3, len(clean)) / 3**0.5 if heavy else rng.standard_normal(len(clean))
        y = clean + NOISE * noise
        theta = minimise(model, truth[None], y, delta=DELTA).theta[0]
        made = resample(model, theta, y, cell_of, delta=DELTA, count=resamples, seed=k)
        other = np.empty((0, len(theta)))
        if not len(made.left_out):  # percentiles are reported: BCa stands beside them
            kept = (cell_of != np.arange(cell_of.max() + 1)[:, None]).astype(float)
            starts = np.repeat(theta[None], len(kept), axis=0)
            other = minimise(model, starts, y, delta=DELTA, weights=kept).theta
        for method, left in ((REPORTED, made.left_out), (OTHER, other)):
            found = intervals_of_form(form, theta, Resamples(made.draws, left, made.method))
            held[method].append(
                [found[name][0] <= value[name] <= found[name][1] for name in form.names]
            )
    return {method: np.mean(rows, axis=0) for method, rows in held.items()}, list(form.names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--law", choices=["kaplan", "chinchilla", "width-depth"])
    options = parser.parse_args()
    slack = 2 * np.sqrt(0.09 / options.sets)
    good = True
    print(f"coverage of 90 % intervals in {options.sets} studies of {NOISE:.0%} noise")
    for study in studies():
        if options.law and study.law != options.law:
            continue
        for heavy in (False, True):
            began = time.perf_counter()
            found, names = coverage(study, heavy, options.sets, options.resamples)
            tails = "heavy-tailed" if heavy else "normal"
            print(
                f"\n{study.law}, {study.name}, {tails} noise ({time.perf_counter() - began:.0f} s)"
            )
            print(f"{'':12}" + "".join(f"{name:>9}" for name in names))
            for method, shares in found.items():
                print(f"{method:12}" + "".join(f"{share:9.0%}" for share in shares), flush=True)
            if not heavy:
                exponents = found[REPORTED][[name in study.form.exponents for name in names]]
                inside = (exponents >= LOWEST - slack) & (exponents <= HIGHEST + slack)
                good &= bool(inside.all())
    verdict = "holds" if good else "FAILS"
    print(f"\n{verdict}: exponents within {LOWEST:.0%} to {HIGHEST:.0%}, normal noise")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
