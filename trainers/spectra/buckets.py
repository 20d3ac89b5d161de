"""Tokens by how often they occur: head, mid and tail, each a third of all occurrences."""

import numpy as np
from numpy.typing import NDArray

from trialstore.records import BUCKETS


def token_buckets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of every id, [vocab_size]: an index into `trialstore.records.BUCKETS`.

    Ids in order of falling frequency (equal ones in order of id) are cut into equal shares of
    occurrences; an id belongs where the middle of its occurrences lies. One that never occurs is
    in the tail.
    """
    order = np.argsort(-counts, kind="stable")
    occurrences = counts[order]
    middle = np.cumsum(occurrences) - occurrences / 2
    share = middle / max(int(occurrences.sum()), 1)
    buckets = np.empty(len(counts), np.int64)
    buckets[order] = np.minimum((share * len(BUCKETS)).astype(np.int64), len(BUCKETS) - 1)
    buckets[counts == 0] = len(BUCKETS) - 1
    return buckets
