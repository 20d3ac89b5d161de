"""Every way of laying a trial out is the same training: ZeRO stage, ranks, accumulation.

All are compared with a loop in plain PyTorch and float32 on the same tokens. World size 2 runs in
two processes of their own, world size 1 in one; each trains a whole list of trials.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from repository import SUPPORT

from trainers.spec import TrialSpec

CONTEXT, SEQUENCES = 16, 8
#: Largest relative difference of a loss from that of plain PyTorch in float32.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"architecture": "llama"},
    "llama, shared keys": {
        "architecture": "llama",
        "kv_heads": 2,
        "tie_embeddings": True,
        "qk_norm": True,
    },
    "ngpt": {"architecture": "ngpt", "norm": "ngpt"},
    "llama, weight_norm": {"architecture": "llama", "ffn_weight": "weight_norm"},
    "llama, spectral_norm": {"architecture": "llama", "ffn_weight": "spectral_norm"},
    "llama, hyperspherical": {"architecture": "llama", "ffn_weight": "hyperspherical"},
    "gpt2, weight_norm": {"ffn_weight": "weight_norm"},
}


class Cell(NamedTuple):
    """One trial of the matrix. Without accumulation it is also resumed halfway."""

    model: str
    optimizer: str
    precision: str
    stage: int
    ranks: int
    accumulation: int

    def spec(self, steps: int) -> TrialSpec:
        training: dict[str, Any] = {
            "steps": steps,
            "batch_tokens": SEQUENCES * CONTEXT,
            "learning_rate": 1e-2,
            "optimizer": self.optimizer,
            "precision": self.precision,
        }
        if self.optimizer == "muon":
            training["gradient_clipping"] = 0
        if self.model == "ngpt":
            training["weight_decay"] = 0
        model = {
            "architecture": "gpt2",
            "norm": "pre",
            "d_model": 32,
            "head_dim": 8,
            "ffn_widths": [40, 24],
            "context": CONTEXT,
            "vocab_size": 64,
            **MODELS[self.model],
        }
        return TrialSpec.model_validate(
            {
                "model": model,
                "training": training,
                "data": {"corpus_fingerprint": "0" * 12, "tokenizer_hash": "0" * 12},
                "replicate": 0,
                "layout": {
                    "zero_stage": self.stage,
                    "workers": self.ranks,
                    "micro_batch": SEQUENCES // self.ranks // self.accumulation,
                },
            }
        )


class Trained(NamedTuple):
    """What zero_rank.py found of a cell."""

    losses: list[float]
    norms: list[float | None]
    plain: list[float]  # losses of plain PyTorch
    masters: float  # largest distance of a vector's norm from 1, for nGPT
    weights: float
    resumed: list[float] | None = None

    @property
    def deviation(self) -> float:
        """The largest relative difference of a loss from plain PyTorch."""
        pairs = zip(self.losses, self.plain, strict=True)
        return max(abs(loss - plain) / plain for loss, plain in pairs)


def train(cells: Iterable[Cell], steps: int, folder: Path) -> dict[Cell, Trained]:
    """Train cells, those of one number of ranks in one go."""
    found = {}
    for number, group in itertools.groupby(sorted(cells, key=ranks_of), key=ranks_of):
        together = list(group)
        specs = [cell.spec(steps) for cell in together]
        jobs = [
            {"spec": spec.model_dump(mode="json"), "resume": cell.accumulation == 1}
            for cell, spec in zip(together, specs, strict=True)
        ]
        found.update(zip(together, run_ranks(jobs, number, folder), strict=True))
    return found


def ranks_of(cell: Cell) -> int:
    return cell.ranks


def run_ranks(content: list[dict[str, Any]], number: int, folder: Path) -> list[Trained]:
    """What as many processes of zero_rank.py find."""
    folder = folder / f"{number}-ranks"
    folder.mkdir()
    jobs, results, store = (folder / name for name in ("jobs.json", "results.json", "store"))
    jobs.write_text(json.dumps(content))
    script = SUPPORT / "zero_rank.py"
    ranks, logs = [], [folder / f"rank-{rank}.log" for rank in range(number)]
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as stream:
                command = [sys.executable, script, jobs, results, rank, number, store]
                ranks.append(
                    subprocess.Popen(
                        list(map(str, command)),
                        stdout=stream,
                        stderr=stream,
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                    )
                )
        codes = wait(ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)
    return [Trained(**found) for found in json.loads(results.read_text())]


def wait(ranks: list["subprocess.Popen[bytes]"]) -> list[int]:
    """Their exit codes; once one has failed, those of the others do not matter."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        waiting = [pool.submit(rank.wait) for rank in ranks]
        for done in as_completed(waiting):
            if done.result() != 0:  # the others would wait for it for ever
                for rank in ranks:
                    rank.kill()
        return [one.result() for one in waiting]


def check(cell: Cell, trained: Trained) -> None:
    """All that is claimed of a cell."""
    assert trained.losses[-1] < trained.losses[0], cell  # it learned
    assert trained.deviation < TOLERANCE[cell.precision], cell
    if cell.precision == "bf16":
        assert trained.losses != trained.plain, cell  # it was not float32
    if cell.accumulation == 1:
        assert trained.resumed == trained.losses[len(trained.losses) // 2 :], cell
    assert trained.masters < 1e-5, cell
    assert trained.weights < 1e-2, cell


# --- a slice -------------------------------------------------------------------------------

#: Every model, and every stage with one rank and with two, with both optimisers and precisions.
SLICE = [
    Cell("gpt2", "muon", "bf16", 0, 1, 1),
    Cell("llama, weight_norm", "adamw", "fp32", 1, 1, 4),
    Cell("llama, spectral_norm", "adamw", "bf16", 1, 1, 1),
    Cell("llama, shared keys", "muon", "fp32", 2, 1, 4),
    Cell("gpt2", "muon", "bf16", 2, 1, 1),
    Cell("gpt2, weight_norm", "muon", "bf16", 3, 1, 1),
    Cell("ngpt", "adamw", "fp32", 0, 2, 4),
    Cell("ngpt", "muon", "bf16", 1, 2, 1),
    Cell("ngpt", "adamw", "bf16", 2, 2, 1),
    Cell("llama", "muon", "fp32", 2, 2, 1),
    Cell("ngpt", "adamw", "fp32", 3, 2, 1),
    Cell("llama, spectral_norm", "adamw", "bf16", 3, 2, 1),
    Cell("llama, hyperspherical", "muon", "fp32", 3, 2, 1),
]


@pytest.fixture(scope="module")
def slice_trained(tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, Trained]:
    return train(SLICE, 8, tmp_path_factory.mktemp("slice"))


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("cell", SLICE, ids=lambda cell: "-".join(map(str, cell)))
def test_a_layout_changes_no_loss_and_resumes_exactly(
    slice_trained: dict[Cell, Trained], cell: Cell
) -> None:
    check(cell, slice_trained[cell])


@pytest.mark.processes
@pytest.mark.slow
def test_the_gradient_norm_is_that_of_the_gradient_or_none(
    slice_trained: dict[Cell, Trained],
) -> None:
    """With Muon, ZeRO knows only the norm of the update."""
    for cell, trained in slice_trained.items():
        known = cell.optimizer == "adamw" or cell.stage == 0
        assert all((norm is not None) == known for norm in trained.norms), cell


# --- the matrix ----------------------------------------------------------------------------

AXES = (["adamw", "muon"], ["fp32", "bf16"], [0, 1, 2, 3], [1, 2], [1, 4])


@pytest.fixture(scope="module")
def matrix_trained(tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, Trained]:
    cells = [Cell(model, *rest) for model in MODELS for rest in itertools.product(*AXES)]
    return train(cells, 20, tmp_path_factory.mktemp("matrix"))


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("model", MODELS)
def test_no_layout_changes_a_loss_and_all_resume_exactly(
    matrix_trained: dict[Cell, Trained], model: str, precision: str
) -> None:
    """What it prints (pytest -rP) is what the documentation says."""
    cells = [cell for cell in matrix_trained if (cell.model, cell.precision) == (model, precision)]
    assert len(cells) == 32
    for cell in cells:
        check(cell, matrix_trained[cell])
    worst = max(cells, key=lambda cell: matrix_trained[cell].deviation)
    print(f"largest deviation {matrix_trained[worst].deviation:.1e}: {worst}")
