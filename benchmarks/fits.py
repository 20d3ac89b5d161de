"""How long a Chinchilla fit takes, beside a loop over scipy.optimize.minimize doing the same.

    python benchmarks/fits.py [--points 240] [--sample 60]

One simulated table: every start of the published grid (arXiv 2203.15556, approach 3), then 1,000
bootstrap refits from the best. SciPy's L-BFGS-B runs from a sample of the starts with the same
objective and its exact gradient, once as it comes and once with its tolerances set so tight that
it goes on as far as it can; its time is scaled to all starts.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy import optimize

from analysis.fit.batched_minimise import huber, minimise
from analysis.fit.log_sum_exp import LogSumExp
from analysis.fit.resamples import resample
from analysis.fit.scaling_fit import REACHED, ROUGHLY
from analysis.fit.scaling_laws import DELTA, form_of
from analysis.replicates import Floats

RESAMPLES = 1000
#: Goals, seconds on two cores.
STARTS_WITHIN, RESAMPLES_WITHIN = 20, 60
TIGHT = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000, "maxfun": 50_000}


def table(points: int) -> tuple[Floats, Floats]:
    """ln N and ln D [2, n], and ln loss [n], with 1 % noise."""
    rng = np.random.default_rng(0)
    params = np.exp(rng.uniform(np.log(1e7), np.log(1e10), points))
    tokens = params * np.exp(rng.uniform(np.log(5), np.log(500), points))
    loss = 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28
    noise = 0.01 * rng.standard_normal(points)
    return np.log(np.stack([params, tokens])), np.log(loss) + noise


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall seconds and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    done = work()
    return done, time.perf_counter() - wall, time.process_time() - processor


def with_scipy(model: LogSumExp, y: Floats, starts: Floats, options: dict[str, Any]) -> Floats:
    """The objectives at which L-BFGS-B ends."""

    def objective(theta: Floats) -> tuple[float, Floats]:
        at = model.derivatives(theta[None])
        residual = at.value[0] - y
        pull = np.clip(residual, -DELTA, DELTA)
        return float(huber(residual, DELTA).sum()), at.slopes[0] @ pull

    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(
            [
                optimize.minimize(
                    objective, start, jac=True, method="L-BFGS-B", options=options
                ).fun
                for start in starts
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=240)
    parser.add_argument("--sample", type=int, default=60, help="starts that SciPy runs from")
    options = parser.parse_args()
    x, y = table(options.points)
    form = form_of("chinchilla", ["params", "tokens"])
    model, starts = form.model(x), form.starts(x, y)
    print(
        f"{options.points} points, {len(starts)} starts, NumPy {np.__version__}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )

    found, wall, processor = timed(lambda: minimise(model, starts, y, delta=DELTA, settled=ROUGHLY))
    best = int(np.argmin(found.objective))
    lowest = float(found.objective[best])

    def report(name: str, seconds: float, own: float, ends: Floats) -> None:
        reached = np.mean(ends <= (1 + REACHED) * lowest)
        print(
            f"{name:44}{seconds:9.1f}{own:9.1f}{reached:9.1%}   {np.min(ends):.6e}",
            flush=True,
        )

    print(f"{'':44}{'wall s':>9}{'cpu s':>9}{'reached':>9}   lowest objective")
    report("all starts, batched", wall, processor, found.objective)
    _, again, own = timed(
        lambda: resample(
            model,
            found.theta[best],
            y,
            np.arange(len(y)),
            delta=DELTA,
            count=RESAMPLES,
            seed=0,
        )
    )
    print(f"{f'{RESAMPLES} bootstrap refits and the jackknife':44}{again:9.1f}{own:9.1f}")
    sample = np.random.default_rng(1).choice(len(starts), options.sample, replace=False)
    scale = len(starts) / len(sample)
    for name, chosen in (("L-BFGS-B, defaults", {}), ("L-BFGS-B, tight", TIGHT)):
        ends, seconds, own = timed(partial(with_scipy, model, y, starts[sample], chosen))
        report(f"{name}, {len(sample)} starts, scaled", scale * seconds, scale * own, ends)
    good = wall <= STARTS_WITHIN and again <= RESAMPLES_WITHIN
    print(
        f"{'holds' if good else 'FAILS'}: starts within {STARTS_WITHIN} s, "
        f"refits within {RESAMPLES_WITHIN} s"
    )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
