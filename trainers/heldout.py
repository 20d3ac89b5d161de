"""Measurements on held-out tokens: the loss, and the spectra of every feed-forward layer.

The loss is that of a sample of windows, spread over the whole held-out split. Bits per byte count
the bytes of exactly the tokens that were measured.
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
    """The held-out windows that a trial is measured on, shared out over its ranks.

    Every trial of a sweep with the same context measures the same windows.

    Attributes:
        unigram_loss: Loss of a unigram model of the training split on the measured tokens, in nats
            a token.
    """

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
        #: The share of all windows of the split that is measured.
        self._share = len(windows) / windows_in(len(store.heldout), context)
        #: UTF-8 bytes of the text of the measured targets; 0 if encoding loses text.
        self._text_bytes = (
            int(store.heldout.text_bytes(starts + 1, context).sum()) if store.lossless else 0
        )
        self.unigram_loss = unigram_loss(store.unigram, windows[:, 1:])
        self._buckets: Tensor | None = None  # by token id
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
        """Measure the held-out loss after `step` updates. Collective.

        Returns:
            An evaluation row of the metrics table. `val_loss`, in nats a token, is the mean over
            the measured windows. `val_loss_se` is its standard error as an estimate of the loss
            over the whole split. Trials share their windows, so the standard error of a difference
            between two trials is smaller.

        Raises:
            DivergenceError: The loss is not finite.
        """
        engine.eval()
        # The mean loss of every window; each rank fills in its own part.
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
        """Start a snapshot of every layer and site after `step` updates. Collective.

        Args:
            engine: Runs the model.
            snapshots: Takes the snapshot; its rows are ready later.
            step: Updates that the weights have had.
            final: Whether this is the trial's last snapshot, which is always exact.

        Raises:
            DivergenceError: Activations, or their squares, are not finite.
        """
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
    """Return the standard error of the mean loss of a systematic sample of windows.

    The split is cut into strata of equal size, and one window is drawn from each. Neighbouring
    strata have nearly the same mean, so the squared differences of neighbours estimate the variance
    within strata (Wolter, Introduction to Variance Estimation, section 8.2, estimator v2). With the
    finite-population correction the error is 0 if every window was measured.

    Args:
        windows: Loss of each sampled window [n], in the order of the split.
        share: Share of all windows that was sampled.

    Returns:
        The standard error, in the unit of `windows`; None for a single window.
    """
    if share == 1:
        return 0.0
    if len(windows) < 2:
        return None
    variance = float(np.square(np.diff(windows)).sum()) / (2 * (len(windows) - 1))
    return math.sqrt(variance / len(windows) * (1 - share))


def unigram_loss(counts: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
    """Return the loss of a unigram model on `targets`, in nats a token.

    The model knows only how often each token id occurs in the training split. One is added to every
    count (Laplace smoothing), so that the loss of an id that training never saw is finite.

    Args:
        counts: Occurrences of each id in the training split [ids].
        targets: Token ids, of any shape.
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
