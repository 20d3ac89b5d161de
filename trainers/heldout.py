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

from trainers.data.batches import heldout_starts, heldout_windows, windows_in
from trainers.data.store import TokenStore
from trainers.durable.writer import stamp
from trainers.engine.engine import Engine, Ranks
from trainers.models.build import token_loss
from trainers.outcome import DivergenceError
from trainers.spec import TrialSpec
from trainers.spectra.snapshots import NonFiniteActivationsError, Snapshots
from trialstore.records import BUCKETS, Row


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
        held-out split. It is the same sample for every trial: a difference between two trials has
        a smaller one.
        """
        engine.eval()
        # The mean loss of every window; each rank fills in its own.
        means = torch.zeros(self._count, dtype=torch.float64, device=self._ranks.device)
        place = self._ranks.rank * (self._count // self._ranks.world_size)
        for batch in self._batches(self._evaluation):
            losses = token_loss(engine.forward(batch[:, :-1]), batch[:, 1:]).double()
            means[place : place + len(batch)] = losses.view(len(batch), -1).mean(dim=1)
            place += len(batch)
        windows = self._ranks.sum(means).cpu().numpy()
        loss = float(windows.mean())
        if not math.isfinite(loss):
            raise DivergenceError(f"the held-out loss is {loss} at step {step}")
        nats = loss * self._count * self._spec.model.context
        return {
            **stamp(self._spec, step),
            "kind": "evaluation",
            "val_loss": loss,
            "val_loss_se": standard_error(windows, self._share),
            "val_perplexity": math.exp(min(loss, 700.0)),
            "val_bits_per_byte": nats / self._text_bytes / math.log(2)
            if self._text_bytes
            else None,
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


def standard_error(windows: NDArray[np.float64], share: float) -> float | None:
    """Of the mean over `windows` [n], one of each stratum and in the order of the split, as an
    estimate of the mean over all windows, of which they are `share`; None for a single one.

    Neighbours differ by what a stratum holds and hardly by where it lies, so their squared
    differences tell the variance within strata (Wolter, Introduction to Variance Estimation,
    section 8.2, estimator v2). The correction for a finite population makes it 0 where every
    window was measured.
    """
    if share == 1:
        return 0.0
    if len(windows) < 2:
        return None
    variance = float(np.square(np.diff(windows)).sum()) / (2 * (len(windows) - 1))
    return math.sqrt(variance / len(windows) * (1 - share))


def unigram_loss(counts: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
    """Nats a token that a model pays for `targets` [any shape] which knows how often every id
    occurs in the training split, `counts` [ids], and no more.

    One is added to every count (Laplace), so that an id that training never saw has a price.
    """
    shares = (counts + 1) / (counts.sum() + len(counts))
    return float(-np.log(shares[targets]).mean())


def token_buckets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Group token ids by frequency: head, mid and tail, each a third of all occurrences.

    Ids are sorted by falling frequency, equal ones by id, and cut into equal shares of the
    occurrences. An id belongs to the share that contains the middle of its occurrences. Ids that
    never occur are in the tail.

    Args:
        counts: Occurrences of every id, [vocab_size].

    Returns:
        The bucket of every id, [vocab_size]: an index into `trialstore.records.BUCKETS`.
    """
    order = np.argsort(-counts, kind="stable")
    occurrences = counts[order]
    middle = np.cumsum(occurrences) - occurrences / 2
    share = middle / max(int(occurrences.sum()), 1)
    buckets = np.empty(len(counts), np.int64)
    buckets[order] = np.minimum((share * len(BUCKETS)).astype(np.int64), len(BUCKETS) - 1)
    buckets[counts == 0] = len(BUCKETS) - 1
    return buckets
