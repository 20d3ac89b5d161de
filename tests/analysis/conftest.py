"""A sweep's directory, made up: spectra and losses with a planted truth, as a run leaves them."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from analysis.spectrum import js_divergence, measure, sampling_status
from trialstore import records
from trialstore.records import SPECTRUM_COLUMNS
from trialstore.storage import LocalStorage

D_MODEL, HEADS, DEPTH, STEPS, BATCH = 64, 4, 2, 250, 2048
MULTIPLIERS = (1.0, 1.5, 2.0, 2.67, 4.0, 5.33, 8.0)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is planted in one group."""

    best: float = 2.8  # multiplier of the lowest loss at equal budget
    curvature: float = 0.05  # nats per squared unit of ln multiplier
    slope: float = 0.0  # nats per unit of ln multiplier: monotone where curvature is 0
    floor: float = 3.4
    noise: float = 0.002  # nats, of one run
    decay: float = 1.2  # eigenvalue k is k^-decay: the ranks follow
    directions: float = np.inf  # eigenvalues beyond this many fall away: the ranks level off
    first_layer: float = np.inf  # the same of layer 0 alone
    jitter: float = 0.02  # of the eigenvalues' decay, from trial to trial


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the grid, before it is trained."""

    architecture: str
    norm: str
    multiplier: float
    seed: int
    d_model: int
    width: int
    holds: tuple[str, ...]
    extra: tuple[tuple[str, Any], ...] = ()

    @property
    def id(self) -> str:
        plain = re.sub(r"[^0-9A-Za-z_-]+", "_", self.name)
        if plain == self.name and len(plain) <= 64:
            return plain
        return f"{plain[:40]}-{abs(hash_of(self.name)):x}"  # an odd name cannot be an id

    @property
    def name(self) -> str:
        extra = "".join(f"-{value}" for _, value in self.extra)
        return f"{self.architecture}-{self.norm}-{self.d_model}-{self.width}-{self.seed}{extra}"

    @property
    def axes(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "norm": self.norm,
            "depth": DEPTH,
            "width_multiplier": self.multiplier,
            "seed": self.seed,
            **dict(self.extra),
            "d_model": self.d_model,
            "D": self.width,
        }

    @property
    def parameters(self) -> dict[str, int]:
        attention = DEPTH * 4 * self.d_model**2
        ffn = DEPTH * 2 * self.d_model * self.width
        table = 512 * self.d_model
        return {
            "total": attention + ffn + 2 * table,
            "non_embedding": attention + ffn,
            "embedding": table,
            "head": table,
            "attention": attention,
            "ffn": ffn,
            "norm": 0,
        }

    @property
    def flops(self) -> int:
        used = self.parameters["non_embedding"] + self.parameters["head"]
        return 6 * used * STEPS * BATCH


def grid_cells(
    groups: Iterable[tuple[str, str]],
    multipliers: Iterable[float],
    seeds: Iterable[int],
    holds: tuple[str, ...],
    extra: tuple[tuple[str, Any], ...] = (),
) -> list[Cell]:
    """Every cell, those that coincide merged, as the grid does it."""
    cells: dict[str, Cell] = {}
    for architecture, norm in groups:
        for seed in seeds:
            for hold in holds:
                for m in multipliers:
                    if hold == "none":
                        d_model, width = D_MODEL, 8 * round(m * D_MODEL / 8)
                    else:
                        # 4 d^2 + 2 m d^2 equal to that of the 4x model
                        fit = D_MODEL * np.sqrt((4 + 2 * 4.0) / (4 + 2 * m))
                        d_model = HEADS * 2 * round(fit / HEADS / 2)
                        width = 8 * round(m * d_model / 8)
                    cell = Cell(architecture, norm, m, seed, d_model, width, (hold,), extra)
                    known = cells.get(cell.id)
                    both = (*known.holds, hold) if known else (hold,)
                    cells[cell.id] = dataclasses.replace(cell, holds=tuple(dict.fromkeys(both)))
    return list(cells.values())


def spectra_rows(
    cell: Cell, truth: Truth, samples: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    decays = truth.decay + truth.jitter * rng.standard_normal(DEPTH)
    for step in range(0, STEPS + 1, 50):
        for layer in range(DEPTH):
            decay = decays[layer] * (1 - np.exp(-step / 60)) + 0.02 * rng.standard_normal()
            k = np.arange(1.0, cell.width + 1)
            noise = np.exp(0.1 * rng.standard_normal(cell.width))
            end = min(truth.directions, truth.first_layer if layer == 0 else np.inf)
            planted = k**-decay * np.exp(-((k / end) ** 2))
            eigenvalues = np.sort(planted * noise)[::-1]
            found = measure(eigenvalues)
            rows.append(
                {
                    "step": step,
                    "tokens": step * BATCH,
                    "time_ms": 1_000 + step,
                    "site": "post",
                    "layer": layer,
                    "bucket": "all",
                    "D": cell.width,
                    "N": samples,
                    "n_over_d": samples / cell.width,
                    "method": "exact",
                    "status": sampling_status(samples, cell.width),
                    "eigenvalues": eigenvalues.tolist(),
                    **{name: float(getattr(found, name)) for name in SPECTRUM_COLUMNS},
                    "js_divergence": float(js_divergence(eigenvalues, k)),
                }
            )
    return rows


def metrics_rows(loss: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        at = loss + 2.8 * np.exp(-step / 40) - 2.8 * np.exp(-STEPS / 40)
        shared = {"step": step, "tokens": step * BATCH, "time_ms": 1_000 + step}
        if step % 50 == 0:
            rows.append({**shared, "kind": "evaluation", "val_loss": at})
        if step:
            noisy = at + 0.02 * rng.standard_normal()
            rows.append({**shared, "kind": "train", "train_loss": noisy, "learning_rate": 6e-3})
    return rows


def write_trial(
    trial: LocalStorage,
    cell: Cell,
    truth: Truth,
    outcome: str,
    samples: int,
    replicate_luck: float,
    passes: float,
    rise: float,
) -> None:
    """A finished trial, or what a failed, retried or stale one leaves. Its final loss is by `rise`
    above its best; it has passed `passes` times over its training data."""
    if outcome == "waiting":
        return
    lease = {"attempt": 1, "step": 7, "steps": STEPS, "loss": None, "heartbeat_ms": 1}
    trial.put(records.LEASE, records.encode_json(lease))
    if outcome in ("failed", "retried"):
        failure = {"stage": "train", "message": "no disk", "gave_up": outcome == "failed"}
        trial.put(records.FAILURE, records.encode_json({**failure, "attempt": 1}))
    if outcome in ("failed", "retried", "stale"):
        return
    rng = np.random.default_rng(abs(hash_of(cell.name)))
    at = np.log(cell.width / cell.d_model)
    loss = truth.floor + truth.curvature * (at - np.log(truth.best)) ** 2 + truth.slope * at
    # The budget of the 4x model: cells of equal budget miss it a little.
    loss -= 0.1 * np.log(cell.parameters["non_embedding"] / 98_304)
    loss += truth.noise * rng.standard_normal() + replicate_luck
    final: float | None = loss if outcome in ("completed", "collapsed") else None
    parts = {
        "metrics": records.put_part(trial, "metrics", 1, metrics_rows(loss, rng)),
        "spectra": records.put_part(trial, "spectra", 1, spectra_rows(cell, truth, samples, rng)),
    }
    seconds = cell.flops / 2e9
    windows = round(STEPS * BATCH / passes)
    result = {
        "trial_id": cell.id,
        "semantics_version": 2,
        "outcome": outcome,
        "reason": None if outcome == "completed" else f"made up to be {outcome}",
        "step": STEPS,
        "steps": STEPS,
        "tokens": STEPS * BATCH,
        "attempts": 1,
        "final": {
            "train_loss": final,
            "val_loss": final,
            "val_loss_se": None if final is None else 0.0123,
            "val_perplexity": None if final is None else float(np.exp(final)),
            "val_bits_per_byte": None if final is None else final / 2,
        },
        "best_val_loss": None if final is None else final - rise,
        "best_val_loss_step": None if final is None else STEPS - 50 * (rise > 0),
        "data": {
            "train_tokens": windows + 7,
            "heldout_tokens": 100_000,
            "measured_tokens": 16_384,
            "window_tokens": windows,
            "passes": STEPS * BATCH / windows,
            "lossless": True,
            "unknown_share": 0.0,
        },
        "parameters": cell.parameters,
        "flops_per_token": cell.flops // (STEPS * BATCH),
        "inference_flops_per_token": cell.flops // (3 * STEPS * BATCH),
        "flops": cell.flops,
        "seconds": {"training": seconds, "spectra": 0.1 * seconds, "total": 1.1 * seconds},
        "layout": {"workers": 1, "device": "cpu", "zero_stage": 0},
        "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
        "records": parts,
        "finished_ms": 2_000,
    }
    trial.put(records.RESULT, records.encode_json(result))


def hash_of(text: str) -> int:
    """Stable between runs, which Python's own hash is not."""
    return int.from_bytes(text.encode()) % (2**61 - 1)


@pytest.fixture(scope="session")
def build_sweep_in() -> Callable[..., LocalStorage]:
    """Writes a sweep into a folder and returns its storage."""

    def build(
        folder: Path,
        groups: Mapping[tuple[str, str], Truth | Mapping[str, Any]] | None = None,
        *,
        multipliers: Iterable[float] = MULTIPLIERS,
        seeds: Iterable[int] = (0,),
        holds: tuple[str, ...] = ("none", "params"),
        outcomes: Callable[[Cell], str] = lambda cell: "completed",
        samples: int = 8192,
        name: str = "made-up",
        cells: list[Cell] | None = None,
        analysis: Mapping[str, Any] | None = None,
        rates: Sequence[float] = (),
        passes: float = 0.5,
        rises: Callable[[Cell], float] = lambda cell: 0.0,
        corpus: Mapping[str, Any] | None = None,
    ) -> LocalStorage:
        truths = {
            group: Truth(**planted) if isinstance(planted, Mapping) else planted
            for group, planted in (groups or {("gpt2", "pre"): Truth()}).items()
        }
        multipliers, seeds = list(multipliers), list(seeds)
        planned = cells or [
            cell
            for rate in rates or [None]
            for cell in grid_cells(
                truths, multipliers, seeds, holds, (("learning_rate", rate),) if rate else ()
            )
        ]
        sweep = LocalStorage(folder / name)
        luck = np.random.default_rng(5).normal(0, 0.02, 1 + max(cell.seed for cell in planned))
        for cell in planned:
            write_trial(
                sweep.child(f"trials/{cell.id}"),
                cell,
                truths[cell.architecture, cell.norm],
                outcomes(cell),
                samples,
                float(luck[cell.seed]),
                passes,
                rises(cell),
            )
        axis = {"learning_rate": list(rates)} if rates else {}
        content = {
            "name": name,
            "model": {"d_model": D_MODEL, "head_dim": D_MODEL // HEADS},
            "grid": {
                "width_multiplier": multipliers,
                "seed": seeds,
                **axis,
            },
            "hold": list(holds),
            "training": {"steps": STEPS, "batch_tokens": BATCH, "learning_rate": 6e-3},
            "analysis": dict(analysis or {"tolerance_nats": 0.01, "aggregate_last": 5}),
            "resolved": {
                "semantics_version": 2,
                **({} if corpus is None else {"corpus": dict(corpus)}),
                "corpus_fingerprint": "0123456789abcdef",
                "tokenizer_hash": "fedcba9876543210",
                "vocab_size": 512,
                "trials": [
                    {
                        "id": cell.id,
                        "holds": list(cell.holds),
                        "axes": cell.axes,
                        "parameters": cell.parameters,
                        "flops": cell.flops,
                    }
                    for cell in planned
                ],
                "dropped": [],
                "merged": [],
            },
        }
        sweep.put("sweep.yaml", yaml.safe_dump(content, sort_keys=False).encode())
        return sweep

    return build


@pytest.fixture
def build_sweep(
    build_sweep_in: Callable[..., LocalStorage], tmp_path: Path
) -> Callable[..., LocalStorage]:
    """Writes a sweep and returns its storage."""
    return functools.partial(build_sweep_in, tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn, which takes most of an analysis: for tests of its words and
    tables. Every file is there, of an empty drawing."""
    blank = {"svg": b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "png": b"\x89PNG"}
    monkeypatch.setattr("analysis.pipeline.render", lambda figure: dict(blank))
