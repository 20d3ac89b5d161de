"""Which tokens a step sees: a function of (corpus, replicate, step), and of nothing else.

Worker count and micro-batch only decide who takes which rows. All cells of a sweep with one
replicate number see the same tokens in the same order, so their differences are of the model.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.errors import InputError

Tokens = NDArray[np.unsignedinteger[Any]]


def training_batch(
    tokens: Tokens, replicate: int, step: int, sequences: int, context: int, fingerprint: str
) -> NDArray[np.int64]:
    """Uniformly random windows of the training split, [sequences, context + 1].

    Inputs are columns 0..context-1, targets columns 1..context. A smaller batch is the head of a
    larger one. `fingerprint` is the corpus's. Raises InputError for a split shorter than a window.
    """
    _require("training", tokens, context + 1, "one window")
    key = hashlib.sha256(f"{fingerprint} {replicate}".encode()).digest()[:16]
    # A counter-based generator needs no state of earlier steps: the step is part of its counter,
    # and the low word counts within a step. Raw draws, for NumPy promises their stream for ever
    # and that of `Generator.integers` not; the modulo's bias is below 2**-24 for any corpus.
    generator = np.random.Philox(
        key=np.frombuffer(key, "<u8"), counter=np.array([0, step, 0, 0], np.uint64)
    )
    windows = len(tokens) - context
    starts = (generator.random_raw(sequences) % np.uint64(windows)).astype(np.int64)
    return _windows(tokens, starts, context)


def heldout_windows(tokens: Tokens, count_tokens: int, context: int) -> NDArray[np.int64]:
    """The first count_tokens // context windows of the held-out split, [n, context + 1].

    Each target is predicted once: a window starts at the last target of the one before.
    Raises InputError where the split is too short.
    """
    count = count_tokens // context
    if count < 1:
        raise InputError(
            f"{count_tokens} held-out tokens are less than one context of {context}; ask for more"
        )
    needed = count * context + 1
    _require("held-out", tokens, needed, f"{count} windows of {context} tokens and a last target")
    return _windows(tokens, np.arange(count) * context, context)


def _windows(tokens: Tokens, starts: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    windows: NDArray[np.int64] = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return windows


def _require(split: str, tokens: Tokens, needed: int, purpose: str) -> None:
    if len(tokens) < needed:
        raise InputError(
            f"the {split} split of the corpus has {len(tokens)} tokens, and {purpose} "
            f"need {needed}; use a larger corpus, a shorter context, or fewer "
            "evaluation.tokens and spectra.tokens"
        )
