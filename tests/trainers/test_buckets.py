"""Token-frequency buckets hold equal shares of what occurs."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainers.heldout import token_buckets


def test_tokens_of_equal_frequency_fall_into_three_equal_parts() -> None:
    assert token_buckets(np.full(6, 10)).tolist() == [0, 0, 1, 1, 2, 2]


def test_the_most_frequent_come_first_and_what_never_occurs_last() -> None:
    counts = np.array([0, 1, 50, 30, 9, 10])
    assert token_buckets(counts).tolist() == [2, 2, 0, 1, 2, 2]


@given(arrays(np.int64, st.integers(1, 200), elements=st.integers(0, 1000)))
def test_a_bucket_holds_a_third_but_for_one_token_at_either_end(counts: np.ndarray) -> None:
    found = token_buckets(counts)
    total, largest = counts.sum(), counts.max(initial=0)
    for bucket in range(3):
        share = counts[found == bucket].sum()
        assert abs(share - total / 3) <= largest + 1
    frequent = [counts[found == bucket] for bucket in range(3)]
    for often, seldom in itertools.pairwise(frequent):
        if often.size and seldom.size:
            assert often.min() >= seldom.max()
