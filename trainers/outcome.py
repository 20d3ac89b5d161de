"""The end of a trial that has an outcome: how its loop ended, its result, the time it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.collapse import Collapse
from analysis.stability import judge_stability
from trainers import accounting
from trainers.data.batches import windows_in
from trainers.data.store import TokenStore
from trainers.durable.writer import TrialWriter
from trainers.engine import hardware
from trainers.engine.engine import versions
from trainers.spec import SEMANTICS_VERSION, TrialSpec
from trialstore.records import METRICS

#: The final training loss is the mean over the last updates, this share of all.
FINAL_TRAIN_SHARE = 0.05


class DivergenceError(ArithmeticError):
    """The loss, the gradient or the activations are not finite: an outcome, not a failure."""


@dataclass(frozen=True)
class Ending:
    """How the training loop of a trial ended.

    Attributes:
        step: Updates that were made.
        on_collapse: The loop ended here because the layers had collapsed one snapshot earlier.
        divergence: What is not finite, and at which step; None if everything is.
    """

    step: int
    on_collapse: bool
    divergence: str | None


class Clock:
    """Seconds spent by kind of work, over all attempts that led to the result.

    Example:
        with clock("training"):
            ...
    """

    KINDS = ("start", "training", "evaluation", "spectra", "checkpoints")

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(self.KINDS, 0.0)

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - began

    def totals(self) -> dict[str, float]:
        """Return the seconds by kind, and their sum as "total"."""
        return {**self.seconds, "total": sum(self.seconds.values())}


def result_of(
    spec: TrialSpec,
    store: TokenStore,
    writer: TrialWriter,
    outcome: str,
    reason: str | None,
    collapse: Collapse | None,
    step: int,
    clock: Clock,
    unigram_loss: float,
) -> dict[str, Any]:
    """Return the content of result.json, but for what `TrialWriter.finish` adds.

    Args:
        spec: The trial.
        store: The tokens that it was trained on.
        writer: Its records; losses are read back from there.
        outcome: "completed", "collapsed" or "diverged".
        reason: Why it did not complete.
        collapse: Where the collapse of its layers began, if they have collapsed.
        step: Updates that were made.
        clock: The time that was spent.
        unigram_loss: Loss of a unigram model on the measured tokens, in nats a token.
    """
    columns = ["train_loss", "val_loss", "val_loss_se", "val_perplexity", "val_bits_per_byte"]
    rows = writer.read(METRICS, [*columns, "grad_norm"]).to_pylist()
    updates = [row for row in rows if row["kind"] == "train"]
    trained = [row["train_loss"] for row in updates if row["train_loss"] is not None]
    tail = trained[-max(1, round(FINAL_TRAIN_SHARE * len(trained))) :]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    final = {name: evaluations[-1][name] if evaluations else None for name in columns[1:]}
    if evaluations and evaluations[-1]["step"] != step:
        final = dict.fromkeys(final)  # it ended between evaluations
    best = min(evaluations, key=lambda row: row["val_loss"], default=None)
    flops_per_token = accounting.training_flops_per_token(spec.model)
    return {
        "trial_id": spec.id,
        "semantics_version": SEMANTICS_VERSION,
        "outcome": outcome,
        "reason": reason,
        "collapse": None if collapse is None else asdict(collapse),
        "step": step,
        "steps": spec.training.steps,
        "tokens": step * spec.training.batch_tokens,
        "final": {"train_loss": float(np.mean(tail)) if tail else None, **final},
        "best_val_loss": None if best is None else best["val_loss"],
        "best_val_loss_step": None if best is None else best["step"],
        "stability": judge_stability(
            *([row[name] for row in updates] for name in ("step", "train_loss", "grad_norm")),
            *([row[name] for row in evaluations] for name in ("step", "val_loss")),
        ).to_dict(),
        "data": {**supply(spec, store, step), "unigram_loss": unigram_loss},
        "parameters": asdict(accounting.parameters(spec.model)),
        "flops_per_token": flops_per_token,
        "inference_flops_per_token": accounting.inference_flops_per_token(spec.model),
        "flops": flops_per_token * step * spec.training.batch_tokens,
        "seconds": clock.totals(),
        "layout": {**spec.layout.model_dump(mode="json"), "device_name": hardware.device_name()},
        "versions": versions(),
        "finished_ms": time.time_ns() // 1_000_000,
    }


def supply(spec: TrialSpec, store: TokenStore, step: int) -> dict[str, Any]:
    """Return how many tokens a trial had, and how often training passed through them.

    `window_tokens` is the number of training tokens in one pass. Windows have one context each, so
    the last few tokens of a split are in none. `measured_tokens` are those of the held-out loss.
    """
    context = spec.model.context
    in_windows = windows_in(len(store.train), context) * context
    encoding = store.meta.contents.encoding
    return {
        "train_tokens": len(store.train),
        "heldout_tokens": len(store.heldout),
        "measured_tokens": spec.evaluation.tokens // context * context,
        "window_tokens": in_windows,
        "passes": step * spec.training.batch_tokens / in_windows,
        "lossless": store.lossless,
        "unknown_share": None if encoding is None else encoding.unknown_share,
    }
