"""What is measured on held-out tokens: the loss, and the spectra of every feed-forward layer."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from analysis.records import Row
from trainers.data.batches import heldout_windows
from trainers.data.store import TokenStore
from trainers.engine import Engine, Ranks
from trainers.models.build import token_loss
from trainers.outcome import DivergenceError
from trainers.spec import TrialSpec
from trainers.spectra.buckets import token_buckets, token_counts
from trainers.spectra.snapshots import NonFiniteActivationsError, Snapshots
from trainers.writer import stamp


class Heldout:
    """The held-out tokens: the same for every trial of a sweep, shared out over ranks."""

    def __init__(self, spec: TrialSpec, store: TokenStore, ranks: Ranks) -> None:
        self._spec, self._ranks = spec, ranks
        context = spec.model.context
        self._evaluation = self._mine(
            heldout_windows(store.heldout, spec.evaluation.tokens, context)
        )
        self._spectra = self._mine(heldout_windows(store.heldout, spec.spectra.tokens, context))
        self._tokens_per_byte = len(store.heldout) / store.heldout_bytes
        self._buckets: Tensor | None = None  # of every id
        if spec.spectra.buckets:
            counts = token_counts(store.train, store.vocab_size)
            self._buckets = torch.from_numpy(token_buckets(counts)).to(ranks.device)

    def _mine(self, windows: np.ndarray) -> Tensor:
        each = len(windows) // self._ranks.world_size
        return torch.from_numpy(windows[self._ranks.rank * each :][:each])

    def _batches(self, windows: Tensor) -> Iterator[Tensor]:
        spec = self._spec
        size = spec.layout.micro_batch or spec.sequences // spec.layout.workers
        return (batch.to(self._ranks.device) for batch in torch.split(windows, size))

    @torch.no_grad()
    def evaluate(self, engine: Engine, step: int) -> Row:
        """An evaluation row. Bits per byte takes the tokens per byte of the whole split."""
        engine.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self._ranks.device)
        for batch in self._batches(self._evaluation):
            losses = token_loss(engine.forward(batch[:, :-1]), batch[:, 1:])
            total[0] += losses.double().sum()
            total[1] += losses.numel()
        loss = float(self._ranks.sum(total)[0] / total[1])
        if not math.isfinite(loss):
            raise DivergenceError(f"the held-out loss is {loss} at step {step}")
        return {
            **stamp(self._spec, step),
            "kind": "evaluation",
            "val_loss": loss,
            "val_perplexity": math.exp(min(loss, 700.0)),
            "val_bits_per_byte": loss * self._tokens_per_byte / math.log(2),
        }

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
