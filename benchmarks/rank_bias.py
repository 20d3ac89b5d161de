"""What the number of samples N does to ranks and their exponents, and what a correction leaves.

    python benchmarks/rank_bias.py [--sets 24] [--only planted|trained]

planted: samples with a known covariance at D = 32 to 256, with the same N at every width, as in a
sweep. The table has the fitted exponent minus that of the true ranks.
trained: activations of small models after training on Python source. The table has the rank of N
tokens over that of REFERENCE tokens, from which pairs of tokens of one window are left out.

    raw       the recorded hard rank
    debiased  `analysis.sampling_bias`, which assumes independent Gaussian samples
    any tail  Himeno & Yamada (2014): independent samples of any distribution; needs sum |x|^4
    windows   pairs of tokens in different windows only: independent windows

Figures are means with standard errors, in units of the last digits. About five minutes on one core;
"trained" leaves the token store in widthlab's cache.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.sampling_bias import debiased_hard_rank
from analysis.spectrum import measure, utilisation_index

Floats = NDArray[np.float64]

WIDTHS = (32, 64, 128, 256)
#: N / D at the largest width.
SAMPLING = (4, 16, 64)
#: Tokens of a window, which resemble each other in "windows of alike tokens".
WINDOW = 64
#: Share of the variance that the tokens of such a window have in common.
IN_COMMON = 0.2


# --- planted covariances -------------------------------------------------------------------


def _decaying(directions: float) -> Callable[[int], Floats]:
    return lambda width: np.exp(-np.arange(width) / directions)


#: Eigenvalues [D] by D. The true exponents of hard and soft rank are those that `true_ranks` have.
SPECTRA: dict[str, Callable[[int], Floats]] = {
    "1": lambda width: np.exp(-3 * np.arange(width) / width),
    "0.5": lambda width: _decaying(0.7 * width**0.5)(width),
    # Half of the variance in about sqrt(D) directions, half in all: soft grows faster than hard.
    "mixed": lambda width: (
        _decaying(0.7 * width**0.5)(width) / _decaying(0.7 * width**0.5)(width).sum()
        + np.full(width, 1 / width)
    ),
}


def gaussian(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    return rng.standard_normal(shape)


def heavy_tailed(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Rows of a multivariate t distribution with 6 degrees of freedom: E|x|^4 doubles."""
    scale = np.sqrt(4 / rng.chisquare(6, (shape[0], 1)))
    return scale * rng.standard_normal(shape)


def two_scales(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """One row in ten is three times as long: E|x|^4 is 2.8 times that of equal rows."""
    scale = np.where(rng.random((shape[0], 1)) < 0.1, 3.0, 1.0)
    return scale / np.sqrt(0.1 * 9 + 0.9) * rng.standard_normal(shape)


def squared_relu(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """ReLU(z)^2 of independent z, scaled to variance 1."""
    return np.maximum(rng.standard_normal(shape), 0) ** 2 / np.sqrt(1.5 - 0.25)


def alike(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Windows of tokens that share a part; windows are independent."""
    common = rng.standard_normal((shape[0] // WINDOW, 1, shape[1]))
    own = rng.standard_normal((shape[0] // WINDOW, WINDOW, shape[1]))
    both = np.sqrt(IN_COMMON) * common + np.sqrt(1 - IN_COMMON) * own
    return np.asarray(both.reshape(shape))


FAMILIES = {
    "Gaussian": gaussian,
    "heavy-tailed rows": heavy_tailed,
    "rows of two scales": two_scales,
    "ReLU^2": squared_relu,
    "windows of alike tokens": alike,
}


@dataclass(frozen=True)
class Ranks:
    """Ranks of one sample, in directions."""

    raw: float
    debiased: float
    any_tail: float
    windows: float
    soft: float
    edim: float
    edim_debiased: float  # with the debiased hard rank


NAMES = tuple(Ranks.__dataclass_fields__)


def ranks_of(samples: Floats, soft: bool = True) -> Ranks:
    """Every estimate from samples [N, D], whose rows are ordered by window."""
    count, width = samples.shape
    centred = samples - samples.mean(axis=0)
    scatter = (centred.T @ centred).astype(float)
    covariance = scatter / (count - 1)
    trace, squares = float(np.trace(covariance)), float(np.sum(covariance**2))
    raw = trace**2 / squares
    debiased = float(debiased_hard_rank(raw, count, width))
    lengths = np.einsum("nd,nd->n", centred, centred).astype(float)
    fourth = float(np.sum(lengths**2)) / (count - 1)
    of_squares = (count - 1) * (count - 2) * squares + trace**2 - count * fourth
    of_trace = 2 * squares + (count**2 - 3 * count + 1) * trace**2 - count * fourth
    by_window = centred.reshape(-1, WINDOW, width)
    inside = by_window @ by_window.transpose(0, 2, 1)
    between = float(np.sum(scatter**2)) - float(np.sum(inside.astype(float) ** 2))
    windows = np.trace(scatter) ** 2 / count**2 / (between / (count**2 - count * WINDOW))
    found = measure(np.linalg.eigvalsh(covariance)) if soft else None
    of_soft = float("nan") if found is None else float(found.soft_rank)
    return Ranks(
        raw=raw,
        debiased=debiased,
        any_tail=of_trace / of_squares,
        windows=float(windows),
        soft=of_soft,
        edim=float("nan") if found is None else float(found.edim),
        edim_debiased=1 + (width - 1) * float(utilisation_index(debiased, of_soft, width)),
    )


def exponent(ranks: list[float]) -> float:
    return float(np.polyfit(np.log(WIDTHS), np.log(ranks), 1)[0])


def planted(sets: int) -> None:
    """Print the error of each exponent, by distribution, spectrum and N/D."""
    columns = ("raw", "debiased", "any tail", "windows", "soft", "eDim", "eDim deb.", "s-h raw")
    print("Error of the exponent, in hundredths, with its standard error;")
    print(f"{sets} studies a line, N/D at D = {WIDTHS[-1]}, the same N at D = {WIDTHS[0]}")
    print(f"{'samples':<26}{'true':<18}{'N/D':>4}" + "".join(f"{c:>13}" for c in (*columns, "s-h")))
    for family, draw in FAMILIES.items():
        for spectrum, eigenvalues in SPECTRA.items():
            truth = [measure(eigenvalues(width)) for width in WIDTHS]
            hard, soft, edim = (
                exponent([float(getattr(each, name)) for each in truth])
                for name in ("hard_rank", "soft_rank", "edim")
            )
            errors: dict[int, list[list[float]]] = defaultdict(list)
            for number in range(sets):
                rng = np.random.default_rng([number, len(family), len(spectrum)])
                found: dict[int, list[Ranks]] = defaultdict(list)
                for width in WIDTHS:
                    whole = draw((SAMPLING[-1] * WIDTHS[-1], width), rng)
                    whole *= np.sqrt(eigenvalues(width))
                    for per_d in SAMPLING:
                        found[per_d].append(ranks_of(whole[: per_d * WIDTHS[-1]]))
                for per_d, ranks in found.items():
                    of = {name: exponent([getattr(r, name) for r in ranks]) for name in NAMES}
                    errors[per_d].append(
                        [of[name] - hard for name in ("raw", "debiased", "any_tail", "windows")]
                        + [of["soft"] - soft]
                        + [of["edim"] - edim, of["edim_debiased"] - edim]
                        + [of["soft"] - of[name] - (soft - hard) for name in ("raw", "debiased")]
                    )
            for per_d in SAMPLING:
                told = f"hard {hard:.2f} soft {soft:.2f}"
                print(
                    f"{family:<26}{told:<18}{per_d:>4}" + _cells(100 * np.array(errors[per_d])),
                    flush=True,
                )
    print()


def _cells(rows: Floats, digits: int = 1) -> str:
    mean = np.nanmean(rows, axis=0)
    error = np.nanstd(rows, axis=0, ddof=1) / np.sqrt(len(rows))
    return "".join(
        f"{f'{m:+.{digits}f} ({e:.{digits}f})':>13}" for m, e in zip(mean, error, strict=True)
    )


# --- activations of trained models ---------------------------------------------------------

#: Tokens of the reference, from other windows than those of the estimates.
REFERENCE = 49_152
#: N / D, and disjoint samples of tokens for each.
MEASURED, REPEATS = (4, 16), 4
UPDATES = 120


def trained_activations() -> Iterator[tuple[str, int, Floats]]:
    """Model, D and the samples [N, D] of every layer, at the site of the rank laws."""
    import torch
    from lanczos_accuracy import Trained, trained

    from trainers.data.batches import heldout_windows
    from trainers.data.sources import DataSource
    from trainers.data.store import open_store
    from trainers.models.build import feed_forwards

    torch.set_num_threads(1)
    store = open_store(DataSource())
    widths = (128, 256, 512)
    needed = REFERENCE + REPEATS * MEASURED[-1] * widths[-1]
    windows = heldout_windows(store.heldout, needed, WINDOW, store.data_spec.corpus_fingerprint)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(windows)[:, :-1])
    for model in (
        Trained("gpt2 pre-LN", "gpt2", "pre", widths, 1e-3, UPDATES),
        Trained("gpt2 post-LN", "gpt2", "post", widths, 4e-3, UPDATES),
        Trained("llama pre-LN", "llama", "pre", widths, 4e-3, UPDATES),
        Trained("ngpt", "ngpt", "ngpt", widths, 2e-2, UPDATES),
    ):
        decoder = trained(model, store, torch.device("cpu"))
        for ffn in feed_forwards(decoder):
            yield model.name, ffn.width, _inputs(decoder, ffn.down, shuffled)


def _inputs(decoder: Any, module: Any, windows: Any) -> Floats:
    """What passes into a module, [tokens, D], in float32, window after window."""
    seen: list[Any] = []
    hook = module.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach().float().numpy())
    )
    for batch in windows.split(64):
        decoder(batch)
    hook.remove()
    return np.concatenate([each.reshape(-1, each.shape[-1]) for each in seen])


def of_trained() -> None:
    """Print ranks of N tokens over those of the reference."""
    columns = ("raw", "debiased", "any tail", "windows", "soft")
    print(f"Rank of N tokens over that of {REFERENCE} others, minus 1, in %, {REPEATS} samples")
    head = f"{'model':<15}{'D':>5}{'hard':>7}{'soft':>7}{'N/D':>5}"
    print(head + "".join(f"{column:>13}" for column in columns))
    for name, width, samples in trained_activations():
        reference = ranks_of(samples[:REFERENCE])
        rest = samples[REFERENCE:]
        for per_d in MEASURED:
            size = per_d * width
            ratios = []
            for start in range(0, REPEATS * size, size):
                found = ranks_of(rest[start : start + size])
                hard = np.array([found.raw, found.debiased, found.any_tail, found.windows])
                ratios.append([*hard / reference.windows - 1, found.soft / reference.soft - 1])
            told = f"{name:<15}{width:>5}{reference.windows:>7.1f}{reference.soft:>7.1f}{per_d:>5}"
            print(told + _cells(100 * np.array(ratios)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=24)
    parser.add_argument("--only", choices=("planted", "trained"))
    asked = parser.parse_args()
    if asked.only != "trained":
        planted(asked.sets)
    if asked.only != "planted":
        of_trained()


if __name__ == "__main__":
    main()
