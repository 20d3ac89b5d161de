"""How often the intervals of the laws hold the truth, and what the saturation test finds.

    python benchmarks/law_coverage.py [--sets 500] [--only PART]

Draws sweeps from planted laws and judges each with the functions that judge real ones. Three kinds
of noise, always with replicate levels that all widths share:

    noise    of single runs only
    misfit   whole widths scatter about the law, whatever the replicate
    slopes   each replicate has an exponent of its own

The coverage of 90 % intervals is claimed to be 85-95 % where the assumptions of the method hold:
independent errors of the widths, and, where replicates differ in slope, three or more of them.
Cells where they do not hold are marked with a star. About five minutes on one core.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws.layers import LayerAdvice, advise_layers
from analysis.laws.power_law import PowerLaw, fit_asymmetry, fit_power_law
from analysis.laws.saturation import Saturation, judge_saturation

Floats = NDArray[np.float64]

WIDTHS = (4, 5, 6, 7, 8)
REPLICATES = (1, 2, 3, 4, 5)
KINDS = ("noise", "misfit", "slopes")
#: Claimed for cells whose assumptions hold.
CLAIMED = (0.85, 0.95)
#: Widths run from D_MIN to eight times that, as in the shipped sweeps.
D_MIN, SPAN = 256, 8


@dataclass(frozen=True)
class Planted:
    """A law and the size of its noises in ln y."""

    beta: float
    run: float  # of a single run
    level: float  # of a replicate, shared by its widths
    width: float  # of a width, under "misfit"
    slope: float  # of a replicate's exponent, under "slopes"


SOFT = Planted(0.80, 0.03, 0.04, 0.04, 0.06)
HARD = Planted(0.50, 0.05, 0.06, 0.06, 0.10)
LOSS = Planted(-0.05, 0.002, 0.004, 0.003, 0.004)


@dataclass(frozen=True)
class Design:
    """Cells of one sweep: [n] each."""

    x: Floats  # D
    replicate: NDArray[np.intp]

    @classmethod
    def full(cls, widths: int, replicates: int) -> "Design":
        at = np.geomspace(D_MIN, SPAN * D_MIN, widths)
        return cls(np.repeat(at, replicates), np.tile(np.arange(replicates), widths))

    def without(self, lost: int, rng: np.random.Generator) -> "Design":
        """Cells taken away at random, but none that is the last of its width."""
        keep = np.ones(len(self.x), bool)
        while lost:
            cell = rng.integers(len(keep))
            if keep[cell] and np.sum(keep & (self.x == self.x[cell])) > 1:
                keep[cell], lost = False, lost - 1
        return Design(self.x[keep], self.replicate[keep])


def draw(planted: Planted, kind: str, design: Design, rng: np.random.Generator) -> Floats:
    """y [n] of one sweep."""
    log_x = np.log(design.x / D_MIN)
    widths, width_of = np.unique(design.x, return_inverse=True)
    count = int(design.replicate.max()) + 1
    log_y = planted.beta * log_x + planted.run * rng.standard_normal(len(log_x))
    log_y += planted.level * rng.standard_normal(count)[design.replicate]
    if kind == "misfit":
        log_y += planted.width * rng.standard_normal(len(widths))[width_of]
    if kind == "slopes":
        log_y += planted.slope * rng.standard_normal(count)[design.replicate] * log_x
    return np.exp(log_y)


def covers(law: object, beta: float) -> bool:
    assert isinstance(law, PowerLaw)
    low, high = law.beta_interval
    return low <= beta <= high


def judged(kind: str, design: Design, rng: np.random.Generator) -> list[bool]:
    """Whether the intervals of the exponent, the asymmetry and the width law hold the truth.

    Half of what moves the soft rank of a cell moves its hard rank too.
    """
    soft, own = draw(SOFT, kind, design, rng), draw(HARD, kind, design, rng)
    shared = soft / design.x**SOFT.beta
    hard = own * shared**0.5
    loss = draw(LOSS, kind, design, rng)
    return [
        covers(fit_power_law(design.x, soft, design.replicate), SOFT.beta),
        covers(
            fit_asymmetry(design.x, soft, hard, design.replicate),
            SOFT.beta - HARD.beta,
        ),
        covers(fit_power_law(design.x, loss, design.replicate), LOSS.beta),
    ]


def assumptions_hold(kind: str, replicates: int) -> bool:
    return kind != "slopes" or replicates >= 3


def coverage(sets: int, rng: np.random.Generator) -> bool:
    """Prints the table; whether every cell whose assumptions hold is within the claim."""
    print(f"Coverage of 90 % intervals in %, {sets} data sets a cell: exponent / asymmetry / loss")
    print(f"claimed {CLAIMED[0]:.0%} to {CLAIMED[1]:.0%}; * the assumptions do not hold\n")
    low, high = _limits(sets)
    good = True
    for kind in KINDS:
        print(f"{kind:<8}" + "".join(f"{f'R = {r}':^18}" for r in REPLICATES))
        for widths in WIDTHS:
            cells = []
            for replicates in REPLICATES:
                design = Design.full(widths, replicates)
                found = np.mean([judged(kind, design, rng) for _ in range(sets)], axis=0)
                held = assumptions_hold(kind, replicates)
                good &= not held or bool(np.all((found >= low) & (found <= high)))
                shares = " / ".join(f"{100 * share:.0f}" for share in found)
                cells.append(f"{shares + ('' if held else ' *'):^18}")
            print(f"W = {widths:<4}" + "".join(cells), flush=True)
        print()
    return good


def missing(sets: int, rng: np.random.Generator) -> bool:
    """The same with a fifth of the cells missing, at six widths."""
    print("A fifth of the cells missing at random, 6 widths: exponent / asymmetry / loss\n")
    low, high = _limits(sets)
    good = True
    for replicates in (3, 5):
        for kind in KINDS:
            full = Design.full(6, replicates)
            lost = len(full.x) // 5
            found = np.mean(
                [judged(kind, full.without(lost, rng), rng) for _ in range(sets)], axis=0
            )
            good &= bool(np.all((found >= low) & (found <= high)))
            shares = " / ".join(f"{100 * share:.1f}" for share in found)
            print(f"R = {replicates}  {kind:<8} {shares}", flush=True)
    print()
    return good


#: Sizes of the second noise, against what the runs' noise alone does to the exponent.
RATIOS = (0.5, 1.0, 2.0, 4.0)


def ratios(sets: int, rng: np.random.Generator) -> bool:
    """The exponent's interval where a second noise is just too small to be seen, and beyond."""
    print(
        "Coverage of the exponent in % where misfit or slopes are 0.5 / 1 / 2 / 4 times the noise"
    )
    low, high = _limits(sets)
    good = True
    for kind in ("misfit", "slopes"):
        for replicates in (2, 3, 5):
            for widths in (4, 6, 8):
                design = Design.full(widths, replicates)
                log_x = np.log(np.unique(design.x))
                spread = float(np.sum((log_x - log_x.mean()) ** 2))
                found = []
                for ratio in RATIOS:
                    planted = replace(
                        SOFT,
                        width=ratio * SOFT.run / np.sqrt(replicates),
                        slope=ratio * SOFT.run / np.sqrt(spread),
                    )
                    laws = (
                        fit_power_law(design.x, draw(planted, kind, design, rng), design.replicate)
                        for _ in range(sets)
                    )
                    found.append(np.mean([covers(law, SOFT.beta) for law in laws]))
                held = assumptions_hold(kind, replicates)
                good &= not held or bool(min(found) >= low and max(found) <= high)
                shares = " / ".join(f"{100 * share:.0f}" for share in found)
                mark = "" if held else " *"
                print(f"{kind:<8} R = {replicates}  W = {widths}  {shares}{mark}", flush=True)
    print()
    return good


#: Truths for the saturation test: exponent, break in units of the smallest width.
STEEP, GENTLE = 0.6, 0.3


def saturation(sets: int, rng: np.random.Generator) -> bool:
    """False positives on power laws, power on plateaus, and the coverage of the onset."""
    print(f"Saturation test at 5 %, share of {sets} data sets that it rejects in %;")
    print("noise of a run 0.03, widths scatter by 0 or 0.04 (misfit); [onset covered]\n")
    truths: list[tuple[str, float, float | None]] = [
        *((f"power law {beta:g}", beta, None) for beta in (STEEP, GENTLE, 0.0)),
        *(
            (f"{beta:g}, flat from {at:g}x", beta, at)
            for beta in (STEEP, GENTLE)
            for at in (2.67, 4.0)
        ),
    ]
    header = [f"W {w}, R {r}, {k}" for k in ("noise", "misfit") for w in (6, 8) for r in (1, 3)]
    print(f"{'':<20}" + "".join(f"{cell:>17}" for cell in header))
    good = True
    for name, beta, at in truths:
        cells = []
        for kind in ("noise", "misfit"):
            for widths in (6, 8):
                for replicates in (1, 3):
                    design = Design.full(widths, replicates)
                    found = [_one_saturation(beta, at, kind, design, rng) for _ in range(sets)]
                    share = float(np.mean([each.saturates for each in found]))
                    text = f"{100 * share:.1f}"
                    if at is None:
                        good &= share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)
                    else:
                        within = [
                            each.onset_interval[0] <= D_MIN * at <= each.onset_interval[1]
                            for each in found
                        ]
                        text += f" [{100 * np.mean(within):.0f}]"
                    cells.append(f"{text:>17}")
        print(f"{name:<20}" + "".join(cells), flush=True)
    print()
    return good


def _one_saturation(
    beta: float, at: float | None, kind: str, design: Design, rng: np.random.Generator
) -> Saturation:
    planted = Planted(0.0, 0.03, 0.04, 0.04, 0.0)
    end = np.inf if at is None else D_MIN * at
    y = draw(planted, kind, design, rng) * np.minimum(design.x, end) ** beta
    found = judge_saturation(design.x, y, design.replicate)
    assert isinstance(found, Saturation)
    return found


#: Layers of the model whose layer advice is judged, and what one of them grows faster by.
LAYERS, FASTER = 12, 0.2


def layers(sets: int, rng: np.random.Generator) -> bool:
    """Layer advice where all layers are alike, and where one is not."""
    sets = max(sets // 5, 1)
    print(f"Layer advice, {LAYERS} layers, {sets} data sets: % with any false advice where all are")
    print(f"alike; % in which one layer that grows faster by {FASTER} is found\n")
    good = True
    for kind in KINDS:
        for widths in (5, 8):
            for replicates in (2, 3):
                design = Design.full(widths, replicates)
                false = [_advice(kind, design, 0.0, rng) for _ in range(sets)]
                true = [_advice(kind, design, FASTER, rng) for _ in range(sets)]
                wrong = float(np.mean([bool(each.widen or each.narrow) for each in false]))
                found = float(np.mean([0 in each.widen for each in true]))
                good &= bool(wrong <= 0.10 + 3 * np.sqrt(0.09 / sets))
                print(
                    f"{kind:<8} W = {widths}  R = {replicates}  false {100 * wrong:3.0f}  "
                    f"found {100 * found:3.0f}",
                    flush=True,
                )
    print()
    return good


def _advice(kind: str, design: Design, faster: float, rng: np.random.Generator) -> LayerAdvice:
    names = [f"trial {n}" for n in range(len(design.x))]
    used = pd.DataFrame({"id": names, "D": design.x, "replicate": design.replicate})
    shape = (len(names), LAYERS)
    edim = np.stack([draw(HARD, kind, design, rng) for _ in range(LAYERS)], axis=1)
    edim[:, 0] *= design.x**faster
    trial, layer = np.indices(shape)
    spectra = pd.DataFrame(
        {
            "id": np.asarray(names)[trial.ravel()],
            "site": "post",
            "step": 100,
            "layer": layer.ravel(),
            "edim": edim.ravel(),
        }
    )
    found = advise_layers(spectra, used)
    assert isinstance(found, LayerAdvice)
    return found


def _limits(sets: int) -> tuple[float, float]:
    """The claim, widened by two standard errors of a share."""
    low, high = CLAIMED
    return (
        float(low - 2 * np.sqrt(low * (1 - low) / sets)),
        float(high + 2 * np.sqrt(high * (1 - high) / sets)),
    )


PARTS: dict[str, Callable[[int, np.random.Generator], bool]] = {
    "coverage": coverage,
    "missing": missing,
    "ratios": ratios,
    "saturation": saturation,
    "layers": layers,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--only", choices=sorted(PARTS))
    asked = parser.parse_args()
    good = True
    for name, part in PARTS.items():
        if asked.only in (None, name):
            good &= part(asked.sets, np.random.default_rng(0))
    print("every claim holds" if good else "A CLAIM DOES NOT HOLD")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
