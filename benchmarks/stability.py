"""Whether planted instability is found, and whether healthy sweeps are left in peace.

    python benchmarks/stability.py [--sets 500] [--only healthy|planted|bunches]

Draws loss curves of whole sweeps and judges them with the functions that judge real ones. A healthy
curve is a power law with a warm-up, the fall that the decay of a cosine brings, noise of the
batches, and a slow wander of the weights that shrinks with the rate. A planted spike rises by 0.5
to 3 nats within one to five updates and decays over 1 to 10 % of the training, or five updates if
that is longer; one in five never recovers. A spiked trial ends higher by up to a tenth of its rise.
About 15 minutes on one core.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.signal import lfilter

from analysis.stability import Stability, judge_stability
from analysis.verdict.bunches import find_bunches
from analysis.verdict.trained_enough import judge_training

Floats = NDArray[np.float64]

MULTIPLIERS = np.array([1.0, 1.5, 2.0, 2.67, 4.0, 5.33, 8.0])
REPLICATES = 3
EVALUATIONS = 40


@dataclass(frozen=True)
class Curve:
    """How the loss curves of one sweep are drawn. Losses in nats per token."""

    name: str
    steps: int
    every: int = 1  # updates between two recorded training losses
    noise: float = 0.05  # of the mean loss of one batch
    tails: float = np.inf  # degrees of freedom of that noise; few have heavy tails
    wander: float = 0.01  # of the weights, at the peak rate
    cosine: bool = True  # or a constant rate after the warm-up
    start: float = 6.2  # loss of the untrained model: ln(vocabulary)

    def expected(self) -> tuple[Floats, Floats]:
        """[T] the expected loss before each update, and the rate as a share of its peak."""
        t = np.arange(self.steps) / self.steps
        warm = np.minimum(1.0, t / 0.1)
        after = np.clip((t - 0.1) / 0.9, 0, 1)
        rate = warm * (0.55 + 0.45 * np.cos(np.pi * after) if self.cosine else 1.0)
        learnt = np.cumsum(rate) / 20  # progress in units of the time scale of the law
        final = 3.4 + (self.start - 3.4) * (1 + learnt) ** -0.6
        return final + 0.05 * rate * (t > 0.02), rate

    def draw(self, rng: np.random.Generator) -> Floats:
        """[T] the training losses of a healthy trial."""
        loss, rate = self.expected()
        if np.isfinite(self.tails):
            shock = rng.standard_t(self.tails, self.steps)
        else:
            shock = rng.standard_normal(self.steps)
        slow = _autoregressive(rng.standard_normal(self.steps), 0.95)
        return loss + self.noise * shock + self.wander * rate * slow


CURVES = (
    Curve("50 updates", 50),
    Curve("200 updates", 200),
    Curve("200 updates, noisy batches", 200, noise=0.15),
    Curve("500 updates, noisy batches", 500, noise=0.15),
    Curve("500 updates, heavy tails", 500, tails=3),
    Curve("500 updates, constant rate, wander 0.03", 500, cosine=False, wander=0.03),
    Curve("5,000 updates, every tenth recorded", 5000, every=10),
    Curve("1,000 updates, large vocabulary", 1000, start=10.8),
)
PLANTED = (CURVES[1], CURVES[3], CURVES[6])


@dataclass(frozen=True)
class Spike:
    """A planted spike."""

    at: int  # update
    rise: float  # nats
    decay: float  # updates; infinite if it never recovers

    @classmethod
    def draw(cls, steps: int, rng: np.random.Generator) -> "Spike":
        decay = max(5.0, steps * np.exp(rng.uniform(np.log(0.01), np.log(0.10))))
        return cls(
            at=int(steps * rng.uniform(0.15, 0.9)),
            rise=float(np.exp(rng.uniform(np.log(0.5), np.log(3.0)))),
            decay=np.inf if rng.random() < 0.2 else float(decay),
        )

    def shape(self, steps: int, rng: np.random.Generator) -> Floats:
        """[T] what it adds to the loss."""
        since = np.arange(steps) - self.at
        climb = np.clip((since + 1) / rng.integers(1, 6), 0, 1)
        return self.rise * climb * np.exp(-np.maximum(since, 0) / self.decay)


def judged(curve: Curve, loss: Floats) -> Stability:
    at = np.arange(1, curve.steps + 1)
    kept = at % curve.every == 0
    every = max(1, curve.steps // EVALUATIONS)
    evaluated = at[at % every == 0]
    return judge_stability(
        at[kept], loss[kept], np.full(int(kept.sum()), np.nan), evaluated, loss[evaluated - 1]
    )


def sweep(curve: Curve, share: float, rng: np.random.Generator) -> tuple[pd.DataFrame, Floats]:
    """The trials of a sweep as they enter the verdict, and which of them were spiked."""
    trials = len(MULTIPLIERS) * REPLICATES
    hit = np.zeros(trials, bool)
    hit[rng.permutation(trials)[: round(share * trials)]] = True
    rows = []
    for i, m in enumerate(np.repeat(MULTIPLIERS, REPLICATES)):
        final = 3.4 + 0.02 * np.log(m / 2.67) ** 2 + 0.005 * rng.standard_normal()
        loss = curve.draw(rng)
        if hit[i]:
            spike = Spike.draw(curve.steps, rng)
            loss = loss + spike.shape(curve.steps, rng)
            lost = 1.0 if np.isinf(spike.decay) else 0.1 * rng.random()
            final += lost * spike.rise
        rows.append(_row(i, float(m), final, judged(curve, loss)))
    return pd.DataFrame(rows), hit


def _row(i: int, multiplier: float, final: float, found: Stability) -> dict[str, Any]:
    loss = found.loss
    assert loss is not None
    return {
        "id": str(i),
        "width_multiplier": multiplier,
        "val_loss": final,
        "spikes": float(loss.count),
        "spike_rise": loss.largest,
        "spikes_recovered": loss.recovered,
        "unstable": loss.unstable,
    }


def healthy(sets: int) -> Iterator[str]:
    yield "| healthy sweeps of 21 trials | accused | refused | with a brief spike |"
    yield "|---|---|---|---|"
    for curve in CURVES:
        accused, refused, brief = [], [], []
        for seed in range(sets):
            trials, _ = sweep(curve, 0.0, np.random.default_rng([1, seed]))
            found = judge_training(trials)
            accused.append(found.needs_lower_rate)
            refused.append(found.refusal is not None)
            brief.append(bool(found.spiked))
        yield f"| {curve.name} | {_share(accused)} | {_share(refused)} | {_share(brief)} |"


def planted(sets: int) -> Iterator[str]:
    yield (
        "| spikes in | curve | spiked trials found | found unstable | others accused | sweeps with "
        "the caveat | refused |"
    )
    yield "|---|---|---|---|---|---|---|"
    for share in (0.2, 1.0):
        for curve in PLANTED:
            found, unstable, wrong, caveat, refused = [], [], [], [], []
            for seed in range(sets):
                trials, hit = sweep(curve, share, np.random.default_rng([2, seed]))
                spiked = trials["spikes"].to_numpy() > 0
                found += list(spiked[hit])
                unstable += list(trials["unstable"].to_numpy(bool)[hit])
                wrong += list(spiked[~hit])
                told = judge_training(trials)
                caveat.append(told.needs_lower_rate)
                refused.append(told.refusal is not None)
            cells = [_share(x) if x else "" for x in (found, unstable, wrong, caveat, refused)]
            yield f"| {100 * share:.0f} % | {curve.name} | " + " | ".join(cells) + " |"


#: E + a m^-p + b m^q: convex in ln m, as every curve of a verdict is.
SURFACES: Mapping[str, tuple[float, float, float, float]] = {
    "flat": (0, 1, 0, 1),
    "bowl": (0.1, 1.0, 0.02, 1.0),
    "steep bowl": (1.0, 2.0, 0.02, 1.5),
    "falls": (1.0, 1.0, 0.0, 1.0),
    "falls steeply": (1.0, 3.0, 0.0, 1.0),
    "rises": (0.0, 1.0, 0.1, 1.0),
}
DESIGNS = ((6, 1), (7, 1), (5, 3), (7, 3))


def bunches(sets: int) -> Iterator[str]:
    yield "| two bunches | " + " | ".join(f"{w} x {r}" for w, r in DESIGNS) + " |"
    yield "|---" * (len(DESIGNS) + 1) + "|"
    for noise in (0.02, 0.05, 0.1):
        for name, surface in SURFACES.items():
            yield _bunched(f"none, {name}, noise {noise:g}", surface, noise, 0.0, sets)
    for distance, noise in ((0.2, 0.02), (0.6, 0.02), (0.6, 0.05), (0.6, 0.1)):
        name = f"{distance:g} nats apart, bowl, noise {noise:g}"
        yield _bunched(name, SURFACES["bowl"], noise, distance, sets)


def _bunched(
    name: str, surface: tuple[float, float, float, float], noise: float, distance: float, sets: int
) -> str:
    a, p, b, q = surface
    cells = []
    for widths, replicates in DESIGNS:
        m = np.repeat(np.geomspace(1, 8, widths), replicates)
        found = []
        for seed in range(sets):
            rng = np.random.default_rng([3, seed])
            y = 3.4 + a * m**-p + b * m**q + noise * rng.standard_normal(len(m))
            y += distance * (rng.permutation(len(m)) < len(m) / 2)
            found.append(find_bunches(m, y) is not None)
        cells.append(_share(found))
    return f"| {name} | " + " | ".join(cells) + " |"


def _autoregressive(shocks: Floats, memory: float) -> Floats:
    """[T] a stationary series of variance 1."""
    return np.asarray(lfilter([np.sqrt(1 - memory**2)], [1, -memory], shocks))


def _share(flags: list[bool]) -> str:
    """A share in percent with its standard error."""
    p = float(np.mean(flags))
    return f"{100 * p:.1f} ({100 * np.sqrt(p * (1 - p) / len(flags)):.1f})"


PARTS = {"healthy": healthy, "planted": planted, "bunches": bunches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", type=int, default=500, help="sweeps per figure")
    parser.add_argument("--only", choices=PARTS, help="one part")
    given = parser.parse_args()
    for name, part in PARTS.items():
        if given.only in (None, name):
            for line in part(given.sets):
                print(line, flush=True)
            print()


if __name__ == "__main__":
    main()
