"""Choose the tokens of each update: a function of corpus, replicate and step only.

A split is cut into consecutive windows of `context` tokens. The last target of a window is the
first input of the next, so every token except the first is a target once. The tokens left over at
the end of a split, fewer than one context, are unused.

Training visits the windows in the order of a keyed permutation: each window once per pass. The key
is the corpus fingerprint, the replicate and the number of the pass. The number of workers and the
micro-batch size only decide which process gets which rows, and resuming in the middle of a pass
needs no saved state. Cells of a sweep with equal replicate and context see the same tokens in the
same order, so their losses differ because of the model only.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from trainers.data.permutation import permuted
from trainers.data.shards import ShardedTokens
from trialstore.errors import InputError


def windows_in(tokens: int, context: int) -> int:
    """Return how many windows of `context` tokens a split of `tokens` tokens holds.

    The last target of the last window must lie inside the split: (tokens - 1) // context.
    """
    return (tokens - 1) // context


def training_batch(
    tokens: ShardedTokens,
    replicate: int,
    step: int,
    sequences: int,
    context: int,
    fingerprint: str,
) -> NDArray[np.int64]:
    """Return the windows of update `step` + 1 as token ids, [sequences, context + 1].

    Inputs are columns 0..context-1, targets are columns 1..context. Consecutive updates take
    consecutive places of the permutation, so two batches of n sequences equal one batch of 2n.

    Args:
        tokens: the training split.
        replicate: the trial's replicate number; each has an order of its own.
        step: updates done so far.
        sequences: windows of the update, over all processes.
        context: tokens per window.
        fingerprint: the corpus's; part of the key of the permutation.

    Raises:
        InputError: the split is shorter than one window.
    """
    count = windows_in(len(tokens), context)
    if count < 1:
        raise _too_short("training", len(tokens), context + 1, "one window")
    places = step * sequences + np.arange(sequences)
    passes, within = np.divmod(places, count)
    windows = np.empty(sequences, np.int64)
    for number in np.unique(passes):
        rows = passes == number
        windows[rows] = permuted(within[rows], count, f"{fingerprint} {replicate} {number}")
    return tokens.windows(windows * context, context + 1)


def heldout_starts(
    tokens: int, count_tokens: int, context: int, fingerprint: str
) -> NDArray[np.int64]:
    """Return the first tokens of the held-out windows to measure, in order.

    The windows of the split are divided into equal strata, and a keyed draw takes one window from
    each. Every stretch of the split, and so every source, is represented in proportion to its
    tokens, to within two windows. The choice depends only on the corpus, the count and the context:
    all trials of a sweep measure the same windows.

    Args:
        tokens: tokens of the held-out split.
        count_tokens: tokens to measure; rounded down to whole windows.
        context: tokens per window.
        fingerprint: the corpus's; part of the key of the draw.

    Returns:
        [count_tokens // context] indices of tokens.

    Raises:
        InputError: `count_tokens` is less than one window, or the split is too short.
    """
    wanted = count_tokens // context
    if wanted < 1:
        raise InputError(
            f"{count_tokens} held-out tokens are less than one context of {context} tokens; raise "
            "evaluation.tokens or spectra.tokens, or use a shorter context"
        )
    available = windows_in(tokens, context)
    if available < wanted:
        purpose = f"{wanted} windows of {context} tokens and a last target"
        raise _too_short("held-out", tokens, wanted * context + 1, purpose)
    edges = np.arange(wanted + 1) * available // wanted
    key = hashlib.shake_256(f"{fingerprint} held-out {wanted}".encode()).digest(8 * wanted)
    # The bias of taking a remainder is below 2**-24 for any corpus.
    drawn = np.frombuffer(key, "<u8") % np.diff(edges).astype(np.uint64)
    return (edges[:-1] + drawn.astype(np.int64)) * context


def heldout_windows(
    tokens: ShardedTokens, count_tokens: int, context: int, fingerprint: str
) -> NDArray[np.int64]:
    """Return the windows that `heldout_starts` chooses, [n, context + 1].

    Inputs and targets are laid out as in `training_batch`, which also describes the arguments.
    Raises InputError if the split is too short.
    """
    return tokens.windows(
        heldout_starts(len(tokens), count_tokens, context, fingerprint), context + 1
    )


def _too_short(split: str, tokens: int, needed: int, purpose: str) -> InputError:
    return InputError(
        f"the {split} split of the corpus has {tokens} tokens, and {purpose} "
        f"need {needed}; use a larger corpus, a shorter context, or fewer "
        "evaluation.tokens and spectra.tokens"
    )
