"""Which tokens a step sees: a function of (corpus, replicate, step), and of nothing else.

A split is cut into windows of `context` tokens that follow each other; the last target of a window
is the first input of the next, so every token but the first is a target once. The last tokens of
a split, fewer than a context, are in no window.

Training walks a keyed permutation of the windows: every window once before any comes twice. The
key is the corpus, the replicate and the number of the pass. Worker count and micro-batch only
decide who takes which rows, and nothing needs to be remembered to go on in the middle of a pass.
All cells of a sweep with one replicate number and one context see the same tokens in the same
order, so their differences are of the model.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from trainers.data.permutation import permuted
from trainers.data.shards import ShardedTokens
from trialstore.errors import InputError


def windows_in(tokens: int, context: int) -> int:
    """Windows of a split of that many tokens; each has a target after its last token."""
    return (tokens - 1) // context


def training_batch(
    tokens: ShardedTokens,
    replicate: int,
    step: int,
    sequences: int,
    context: int,
    fingerprint: str,
) -> NDArray[np.int64]:
    """The windows of update `step` + 1, [sequences, context + 1].

    Inputs are columns 0..context-1, targets columns 1..context. Updates follow each other in the
    permutation, so that two small batches are one larger one. `fingerprint` is the corpus's.
    Raises InputError for a split shorter than a window.
    """
    count = windows_in(len(tokens), context)
    if count < 1:
        raise _too_short("training", len(tokens), context + 1, "one window")
    places = step * sequences + np.arange(sequences)
    passes, within = np.divmod(places, count)
    windows = np.empty(sequences, np.int64)
    for number in np.unique(passes):
        now = passes == number
        windows[now] = permuted(within[now], count, f"{fingerprint} {replicate} {number}")
    return tokens.windows(windows * context, context + 1)


def heldout_starts(
    tokens: int, count_tokens: int, context: int, fingerprint: str
) -> NDArray[np.int64]:
    """First tokens of count_tokens // context windows spread over the held-out split, in order.

    The windows of the split are cut into equal strata, and one of each is taken, by a keyed draw:
    every stretch of the split, and so every source, is measured in proportion to its tokens, to
    within two windows. They depend on the corpus, the count and the context alone, so all trials
    of a sweep measure the same. Raises InputError where the split is too short.
    """
    wanted = count_tokens // context
    if wanted < 1:
        raise InputError(
            f"{count_tokens} held-out tokens are less than one context of {context}; ask for more"
        )
    there = windows_in(tokens, context)
    if there < wanted:
        purpose = f"{wanted} windows of {context} tokens and a last target"
        raise _too_short("held-out", tokens, wanted * context + 1, purpose)
    edges = np.arange(wanted + 1) * there // wanted
    key = hashlib.shake_256(f"{fingerprint} held-out {wanted}".encode()).digest(8 * wanted)
    # The remainder's bias is below 2**-24 for any corpus.
    drawn = np.frombuffer(key, "<u8") % np.diff(edges).astype(np.uint64)
    return (edges[:-1] + drawn.astype(np.int64)) * context


def heldout_windows(
    tokens: ShardedTokens, count_tokens: int, context: int, fingerprint: str
) -> NDArray[np.int64]:
    """The windows of `heldout_starts`, [n, context + 1]: inputs and targets as in training."""
    return tokens.windows(
        heldout_starts(len(tokens), count_tokens, context, fingerprint), context + 1
    )


def _too_short(split: str, tokens: int, needed: int, purpose: str) -> InputError:
    return InputError(
        f"the {split} split of the corpus has {tokens} tokens, and {purpose} "
        f"need {needed}; use a larger corpus, a shorter context, or fewer "
        "evaluation.tokens and spectra.tokens"
    )
