"""How often layers are called two kinds, where they are and where they are not.

    python benchmarks/layer_kinds.py [--sets 500] [--only alike|others] [--layers 2 6 12]

Draws a rank for every layer, width and replicate of a sweep. All layers of a trial share a part of
the noise. Three further kinds of noise, as in benchmarks/law_coverage.py: of single layers and
trials only; widths that scatter about a layer's law (misfit); replicates whose slopes differ by
layer. Prints the share of studies in which layers are called two kinds, with its standard error.
"""

import argparse
import sys

import numpy as np
from numpy.typing import NDArray

from analysis.laws.layer_kinds import DIFFERENT, difference_p, two_bunches
from analysis.laws.power_law import PowerLaw, fit_power_law

Floats = NDArray[np.float64]

D_MIN, SPAN = 256, 8
#: In ln rank: of a trial, of a layer of a trial, of a width in a layer, and of a replicate's slope.
TRIAL, LAYER, WIDTH, SLOPE = 0.03, 0.04, 0.04, 0.06
KINDS = ("noise", "misfit", "slopes")
#: Claimed at most where layers are not of two kinds, and at least where kinds differ by 0.5 or 1.
FALSE, FOUND = 0.05, 0.9


def truths(layers: int, rng: np.random.Generator) -> dict[str, tuple[bool, Floats]]:
    """Whether there are two kinds, and the exponent [layers] of every layer."""
    half = np.arange(layers) < layers / 2
    return {
        "all alike, 0.5": (False, np.full(layers, 0.5)),
        "normal, 0.5 +- 0.15": (False, rng.normal(0.5, 0.15, layers)),
        "even from 0 to 1": (False, np.linspace(0, 1, layers)),
        "kinds 0.4 and 0.6": (True, np.where(half, 0.4, 0.6)),
        "kinds 0.25 and 0.75": (True, np.where(half, 0.25, 0.75)),
        "kinds 0 and 1": (True, np.where(half, 0.0, 1.0)),
        "a third 0, the rest 1": (True, np.where(np.arange(layers) < layers / 3, 0.0, 1.0)),
    }


def called_two_kinds(
    exponents: Floats, kind: str, widths: int, replicates: int, rng: np.random.Generator
) -> bool:
    """Judge one made-up sweep; the layers' own laws are fitted only where they matter."""
    at = np.geomspace(D_MIN, SPAN * D_MIN, widths)
    log_x, layers = np.log(at / D_MIN), len(exponents)
    shape = (replicates, widths, layers)
    log_y = log_x[:, None] * exponents + LAYER * rng.standard_normal(shape)
    log_y = log_y + TRIAL * rng.standard_normal((replicates, widths, 1))
    if kind == "misfit":
        log_y += WIDTH * rng.standard_normal((1, widths, layers))
    if kind == "slopes":
        log_y += SLOPE * rng.standard_normal((replicates, 1, layers)) * log_x[:, None]
    replicate, width = (index.ravel() for index in np.indices(shape[:2]))

    def laws(log_ranks: Floats) -> list[PowerLaw]:
        of_layers = np.exp(log_ranks).reshape(-1, layers).T
        fitted = [fit_power_law(at[width], rank, replicate) for rank in of_layers]
        return [law for law in fitted if isinstance(law, PowerLaw)]

    if difference_p(laws(log_y - log_y.mean(axis=2, keepdims=True))) >= DIFFERENT:
        return False
    betas = np.array([law.beta for law in laws(log_y)])
    return two_bunches([*range(layers)], betas) is not None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--only", choices=("alike", "others"))
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 6, 12])
    asked = parser.parse_args()
    sets = asked.sets
    print(f"% of {sets} studies in which layers are called two kinds (standard error)\n")
    designs = [(7, 1), (5, 3)]
    heads = "".join(f"{f'{w} x {r}':>14}" for w, r in designs)
    print(f"{'noise':<8}{'layers':>6}  {'exponents':<24}{heads}")
    worst = 0.0
    lowest = 1.0
    for kind in KINDS:
        for layers in asked.layers:
            for name in truths(layers, np.random.default_rng(0)):
                if asked.only not in (None, "alike" if name.startswith("all") else "others"):
                    continue
                cells = []
                for widths, replicates in designs:
                    rng = np.random.default_rng([layers, widths, replicates])
                    called = []
                    for _ in range(sets):
                        two, exponents = truths(layers, rng)[name]
                        called.append(called_two_kinds(exponents, kind, widths, replicates, rng))
                    share = float(np.mean(called))
                    # Two layers that differ are always two kinds, so only alike ones are false.
                    if name.startswith("all") or (not two and layers > 6):
                        worst = max(worst, share)
                    elif two and "0.6" not in name and (kind != "slopes" or replicates > 1):
                        lowest = min(lowest, share)
                    error = 100 * np.sqrt(share * (1 - share) / sets)
                    cells.append(f"{f'{100 * share:.1f} ({error:.1f})':>14}")
                print(f"{kind:<8}{layers:>6}  {name:<24}{''.join(cells)}", flush=True)
    print(
        f"\nfalse {100 * worst:.1f} % at most; "
        f"kinds 0.5 or more apart {100 * lowest:.1f} % at least"
    )
    return 0 if worst <= FALSE and lowest >= FOUND else 1


if __name__ == "__main__":
    sys.exit(main())
