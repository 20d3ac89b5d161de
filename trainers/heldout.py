"""What is measured on held-out tokens: the loss, and the spectra of every feed-forward layer.

A sample of windows spread over the whole held-out split stands for it; bits per byte are over the
bytes of the very tokens that were measured.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.records import Row
from trainers.data.batches import heldout_starts, heldout_windows, windows_in
from trainers.data.store import TokenStore
from trainers.engine import Engine, Ranks
from trainers.models.build import token_loss
from trainers.outcome import DivergenceError
from trainers.spec import TrialSpec
from trainers.spectra.buckets import token_buckets
from trainers.spectra.snapshots import NonFiniteActivationsError, Snapshots
from trainers.writer import stamp


class Heldout:
    """The held-out tokens: the same for every trial of a sweep, shared out over ranks."""

    def __init__(self, spec: TrialSpec, store: TokenStore, ranks: Ranks) -> None:
        self._spec, self._ranks = spec, ranks
        context, fingerprint = spec.model.context, spec.data.corpus_fingerprint
        starts = heldout_starts(len(store.heldout), spec.evaluation.tokens, context, fingerprint)
        windows = store.heldout.windows(starts, context + 1)
        self._evaluation = self._mine(windows)
        self._spectra = self._mine(
            heldout_windows(store.heldout, spec.spectra.tokens, context, fingerprint)
        )
        self._count = len(windows)
        #: Of all windows of the split, those that are measured.
        self._share = len(windows) / windows_in(len(store.heldout), context)
        #: UTF-8 bytes that the measured targets stand for; 0 where encoding loses text.
        self._text_bytes = (
            int(store.heldout.text_bytes(starts + 1, context).sum()) if store.lossless else 0
        )
        self.unigram_loss = unigram_loss(store.unigram, windows[:, 1:])
        self._buckets: Tensor | None = None  # of every id
        if spec.spectra.buckets:
            counts = np.zeros(store.vocab_size, np.int64)
            there = min(len(counts), len(store.unigram))
            counts[:there] = store.unigram[:there]
            self._buckets = torch.from_numpy(token_buckets(counts)).to(ranks.device)

    def _mine(self, windows: NDArray[np.int64]) -> Tensor:
        each = len(windows) // self._ranks.world_size
        return torch.from_numpy(windows[self._ranks.rank * each :][:each])

    def _batches(self, windows: Tensor) -> Iterator[Tensor]:
        spec = self._spec
        size = spec.layout.micro_batch or spec.sequences // spec.layout.workers
        return (batch.to(self._ranks.device) for batch in torch.split(windows, size))

    @torch.no_grad()
    def evaluate(self, engine: Engine, step: int) -> Row:
        """An evaluation row. Raises DivergenceError for a loss that is not finite.

        `val_loss_se` is the standard error of `val_loss` as an estimate of the loss over the whole
        held-out split: the spread of the windows' own losses, with the correction for a finite
        population; 0 where every window is measured. It is the same tokens for every trial: a
        difference between two trials has a smaller one.
        """
        engine.eval()
        # The sum over windows of their mean losses, and of the squares.
        total = torch.zeros(2, dtype=torch.float64, device=self._ranks.device)
        for batch in self._batches(self._evaluation):
            losses = token_loss(engine.forward(batch[:, :-1]), batch[:, 1:]).double()
            means = losses.view(len(batch), -1).mean(dim=1)
            total[0] += means.sum()
            total[1] += means.square().sum()
        total = self._ranks.sum(total)
        loss = float(total[0]) / self._count
        if not math.isfinite(loss):
            raise DivergenceError(f"the held-out loss is {loss} at step {step}")
        nats = loss * self._count * self._spec.model.context
        return {
            **stamp(self._spec, step),
            "kind": "evaluation",
            "val_loss": loss,
            "val_loss_se": self._standard_error(loss, float(total[1])),
            "val_perplexity": math.exp(min(loss, 700.0)),
            "val_bits_per_byte": nats / self._text_bytes / math.log(2)
            if self._text_bytes
            else None,
        }

    def _standard_error(self, mean: float, squares: float) -> float | None:
        count = self._count
        if count < 2:
            return 0.0 if self._share == 1 else None
        variance = max(squares / count - mean**2, 0.0) * count / (count - 1)
        return math.sqrt(variance / count * (1 - self._share))

    def measure_spectra(self, engine: Engine, snapshots: Snapshots, step: int, final: bool) -> None:
        """Have a snapshot taken of every layer and site. Raises DivergenceError."""
        engine.eval()

        def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
            for batch in self._batches(self._spectra):
                tokens = batch[:, :-1]
                yield tokens, None if self._buckets is None else self._buckets[tokens]

        try:
            snapshots.take(engine.module, engine.forward, batches, stamp(self._spec, step), final)
        except NonFiniteActivationsError as error:
            raise DivergenceError(str(error)) from error


def unigram_loss(counts: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
    """Nats a token that a model pays for `targets` [any shape] which knows how often every id
    occurs in the training split, `counts` [ids], and no more.

    One is added to every count (Laplace), so that an id that training never saw has a price.
    """
    shares = (counts + 1) / (counts.sum() + len(counts))
    return float(-np.log(shares[targets]).mean())
