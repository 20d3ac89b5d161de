"""A sweep as a trainer leaves it, and what MLflow must then hold: for tests of the exporter."""

import math
import shutil
import sqlite3
import statistics
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from analysis.sampling_bias import debiased_hard_rank
from orchestrator.mlflow.export_sweep import Exporter
from trialstore import records
from trialstore.records import METRICS, SPECTRA, Manifest, encode_json, put_part
from trialstore.storage import LocalStorage

START_MS = 1_760_000_000_000
WIDTH, D_MODEL, DEPTH = 256, 64, 2
WIDTHS = {"D": WIDTH, "d_model": D_MODEL}

#: Names of metrics in MLflow by the columns of the records that they come from. People's charts
#: and queries name them: they are written here once more, so that none is renamed unnoticed.
METRIC_NAMES = {
    "train": {
        "train_loss": "train/loss",
        "learning_rate": "train/learning_rate",
        "grad_norm": "train/grad_norm",
        "tokens_per_s": "throughput/tokens_per_s",
        "mfu": "throughput/mfu",
    },
    "evaluation": {
        "val_loss": "val/loss",
        "val_loss_se": "val/loss_se",
        "val_perplexity": "val/perplexity",
        "val_bits_per_byte": "val/bits_per_byte",
    },
}
LAYER_METRICS = (
    "hard_rank", "soft_rank", "edim", "hard_utilisation", "soft_utilisation", "concentration",
    "top1_share", "js_divergence",
)  # fmt: skip
MEDIAN_METRICS = (*LAYER_METRICS, "sui", "n_over_d")

TrialId = str


# --- trial directories ---------------------------------------------------------------------


def spec(trial_id: TrialId, seed: int = 0) -> dict[str, Any]:
    return {
        "id": trial_id,
        "model": {
            "architecture": "gpt2",
            "norm": "pre",
            "d_model": D_MODEL,
            "head_dim": 16,
            "ffn_widths": [WIDTH] * DEPTH,
            "context": 64,
            "vocab_size": 512,
        },
        "training": {"steps": 40, "batch_tokens": 2048, "learning_rate": 6e-3},
        "data": {"corpus_fingerprint": "c" * 16, "tokenizer_hash": "t" * 16},
        "evaluation": {"every": 20, "tokens": 16384},
        "spectra": {"every": 20, "tokens": 8192, "sites": ["post"]},
        "layout": {"workers": 1, "device": "cpu"},
        "source": {"corpus": {"kind": "python-source"}, "tokenizer": {"kind": "bpe"}},
        "replicate": seed,
        "axes": {"architecture": "gpt2", "norm": "pre", "depth": DEPTH, "width_multiplier": 4.01},
    }


def train_row(step: int, shift_ms: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": step * 2048,
        "time_ms": START_MS + step * 100 + shift_ms,
        "kind": "train",
        "train_loss": 6.0 - step / 100 + shift_ms * 1e-9,
        "learning_rate": 1e-3 * step,
        "grad_norm": 1.0 / step,
        "tokens_per_s": 1000.0 + step,
        **values,
    }


def evaluation_row(step: int, shift_ms: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": step * 2048,
        "time_ms": START_MS + step * 100 + 50 + shift_ms,
        "kind": "evaluation",
        "val_loss": 6.1 - step / 100,
        "val_perplexity": math.exp(6.1 - step / 100),
        "val_bits_per_byte": 2.5 - step / 1000,
        **values,
    }


def snapshot(step: int, shift_ms: int = 0) -> list[dict[str, Any]]:
    shared = dict.fromkeys(records.SPECTRUM_COLUMNS, 0.25)
    return [
        {
            **shared,
            "step": step,
            "tokens": step * 2048,
            "time_ms": START_MS + step * 100 + 60 + shift_ms,
            "site": "post",
            "layer": layer,
            "bucket": "all",
            "D": WIDTH,
            "N": 8192,
            "n_over_d": 8192 / WIDTH,
            "method": "exact",
            "status": "well sampled",
            "eigenvalues": [1.0] * WIDTH,
            "hard_rank": 10.0 + step + layer,
            "soft_rank": 30.0 + step + layer,
        }
        for layer in range(DEPTH)
    ]


def rows_of(first: int, last: int, shift_ms: int = 0) -> dict[str, list[dict[str, Any]]]:
    """What a trainer records of updates first..last; evaluations and snapshots every 20 steps."""
    metrics = [train_row(step, shift_ms) for step in range(max(first, 1), last + 1)]
    measured = [step for step in range(first, last + 1) if step % 20 == 0]
    metrics += [evaluation_row(step, shift_ms) for step in measured]
    spectra = [row for step in measured for row in snapshot(step, shift_ms)]
    return {METRICS: sorted(metrics, key=lambda row: row["step"]), SPECTRA: spectra}


def put_rows(trial: LocalStorage, attempt: int, first: int, last: int, shift_ms: int = 0) -> None:
    for table, rows in rows_of(first, last, shift_ms).items():
        if rows:
            put_part(trial, table, attempt, rows)


def checkpoint(trial: LocalStorage, step: int, attempt: int) -> None:
    manifest = Manifest(trial.root.name, step, attempt, {}, records.live_parts(trial))
    trial.put(records.manifest_key(step), manifest.to_json())


def finish_trial(trial: LocalStorage, outcome: str = "completed", attempt: int = 1) -> None:
    parts = records.live_parts(trial)
    tables = records.compact(trial, attempt, parts)
    result = {
        "trial_id": trial.root.name,
        "outcome": outcome,
        "step": 40,
        "steps": 40,
        "final": {},
        "reason": None if outcome == "completed" else f"it {outcome}",
        "records": tables,
        "finished_ms": START_MS + 10_000,
    }
    trial.put(records.RESULT, encode_json(result))
    records.discard_parts(trial, tables.values())


def give_up(trial: LocalStorage, attempt: int = 1) -> None:
    failure = {"stage": "train", "message": "out of memory", "attempt": attempt, "gave_up": True}
    trial.put(records.FAILURE, encode_json({**failure, "time_ms": START_MS + 9_000}))


class Bench:
    """A sweep in a folder of its own, and the database that it is exported to."""

    def __init__(self, root: Path, template: Path, trials: int = 1) -> None:
        self.root = root
        self.database = root / "mlflow.db"
        shutil.copyfile(template, self.database)
        self.uri = f"sqlite:///{self.database}"
        self.sweep = LocalStorage(root / "small")
        self.ids = [f"{number:012x}" for number in range(1, trials + 1)]
        cells = [
            {
                "id": trial_id,
                "holds": ["none"],
                "axes": WIDTHS,
                "parameters": {"total": 131072},
            }
            for trial_id in self.ids
        ]
        resolved = {"corpus_fingerprint": "c" * 16, "trials": cells}
        content = {"name": "small", "training": {"steps": 40}, "resolved": resolved}
        self.sweep.put("sweep.yaml", yaml.safe_dump(content).encode())

    def begin(self, number: int = 0) -> LocalStorage:
        trial = self.sweep.child(f"trials/{self.ids[number]}")
        trial.put(records.SPEC, encode_json(spec(self.ids[number], seed=number)))
        return trial

    def put(self, table: str, trial: LocalStorage, rows: list[dict[str, Any]]) -> str:
        """Rows as one part of the first attempt."""
        return put_part(trial, table, 1, rows)

    def exporter(self) -> Exporter:
        return Exporter(self.sweep, self.uri)

    @property
    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.uri)

    def runs(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name("widthlab")
        return list(self.client.search_runs([experiment.experiment_id]))

    def child(self, number: int = 0) -> Any:
        (run,) = [run for run in self.runs() if run.data.tags.get("trial_id") == self.ids[number]]
        return run

    def parent(self) -> Any:
        (run,) = [run for run in self.runs() if "trial_id" not in run.data.tags]
        return run

    def points(self, number: int = 0) -> Counter[tuple[str, int, float, int]]:
        """(metric, step, value, timestamp) of everything the trial's run has, with multiplicity."""
        # Read from the database itself: by MLflow's own calls it is one for every metric.
        with closing(sqlite3.connect(self.database)) as database:
            rows = database.execute(
                "SELECT key, step, value, timestamp FROM metrics WHERE run_uuid = ?",
                (self.child(number).info.run_id,),
            )
            return Counter(rows.fetchall())


def expected(rows: dict[str, list[dict[str, Any]]]) -> Counter[tuple[str, int, float, int]]:
    """What MLflow must hold, written down independently of the exporter."""
    points = [
        (name, row["step"], row[column], row["time_ms"])
        for row in rows[METRICS]
        for column, name in METRIC_NAMES[row["kind"]].items()
        if row.get(column) is not None
    ]
    for row in rows[SPECTRA]:
        layer = f"spectra/post/L{row['layer']:02d}"
        points += [
            (f"{layer}/{name}", row["step"], row[name], row["time_ms"])
            for name in LAYER_METRICS
            if name in row
        ]
    for step in sorted({row["step"] for row in rows[SPECTRA]}):
        layers = [row for row in rows[SPECTRA] if row["step"] == step]
        for name in MEDIAN_METRICS:
            if name in layers[0]:
                median = statistics.median(row[name] for row in layers)
                place = f"spectra/post/median/{name}"
                points.append((place, step, median, layers[0]["time_ms"]))
        # The numbers of this function are checked where it is tested.
        debiased = [
            float(debiased_hard_rank(row["hard_rank"], row["N"], row["D"]))
            for row in layers
            if {"hard_rank", "N", "D"} <= row.keys()
        ]
        if known := [rank for rank in debiased if math.isfinite(rank)]:
            place = "spectra/post/median/hard_rank_debiased"
            points.append((place, step, statistics.median(known), layers[0]["time_ms"]))
    return Counter(points)
