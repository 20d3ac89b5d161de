"""Tokens of a step depend on (corpus, replicate, step) alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from trainers.data.batches import heldout_windows, training_batch

TOKENS = np.arange(5000, dtype=np.uint16)
CORPUS = "0123456789abcdef"


def batch(replicate: int = 0, step: int = 0, sequences: int = 8, context: int = 16) -> np.ndarray:
    return training_batch(TOKENS, replicate, step, sequences, context, CORPUS)


def test_a_batch_is_windows_of_the_tokens() -> None:
    rows = batch()
    assert rows.shape == (8, 17)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows - rows[:, :1], np.tile(np.arange(17), (8, 1)))


def test_the_stream_of_version_one_is_fixed() -> None:
    # Golden: a change of these numbers changes what every stored id means.
    assert batch(replicate=3, step=41, sequences=6)[:, 0].tolist() == [
        1138,
        4334,
        3163,
        981,
        2069,
        4884,
    ]


@given(st.integers(0, 50), st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 40))
def test_a_smaller_batch_is_the_head_of_a_larger_one(
    replicate: int, step: int, few: int, more: int
) -> None:
    large = batch(replicate, step, few + more)
    np.testing.assert_array_equal(batch(replicate, step, few), large[:few])


def test_steps_replicates_and_corpora_have_streams_of_their_own() -> None:
    first = batch(sequences=64)
    assert not np.array_equal(first, batch(step=1, sequences=64))
    assert not np.array_equal(first, batch(replicate=1, sequences=64))
    assert not np.array_equal(first, training_batch(TOKENS, 0, 0, 64, 16, "another"))


def test_a_step_does_not_repeat_the_draws_of_its_neighbours() -> None:
    starts = np.concatenate([batch(step=step, sequences=3)[:, 0] for step in range(400)])
    # 1200 of 4984 places: the expected number of distinct ones is n (1 - (1 - 1/n)^1200) = 1066.
    assert abs(len(np.unique(starts)) - 1066) < 50


def test_starts_are_uniform_and_reach_both_ends() -> None:
    tokens = np.arange(20, dtype=np.uint16)
    starts = training_batch(tokens, 0, 0, 16000, 4, CORPUS)[:, 0]
    counts = np.bincount(starts, minlength=16)
    assert len(counts) == 16
    assert counts.sum() == 16000
    # Chi-square with 15 degrees of freedom; 37.7 is its 99.9th percentile.
    assert ((counts - 1000) ** 2 / 1000).sum() < 37.7


def test_the_shortest_corpus_that_serves_is_one_window() -> None:
    tokens = np.arange(17, dtype=np.uint32)
    np.testing.assert_array_equal(training_batch(tokens, 0, 9, 2, 16, CORPUS), [tokens, tokens])
    with pytest.raises(InputError, match=r"training split .* has 16 tokens, .* need 17"):
        training_batch(tokens[:16], 0, 0, 2, 16, CORPUS)


@given(st.integers(1, 40), st.integers(1, 4000))
def test_held_out_windows_predict_each_target_once(context: int, count_tokens: int) -> None:
    if count_tokens < context:
        count_tokens = context
    windows = heldout_windows(TOKENS, count_tokens, context)
    count = count_tokens // context
    assert windows.shape == (count, context + 1)
    np.testing.assert_array_equal(windows[:, :-1].ravel(), np.arange(count * context))
    np.testing.assert_array_equal(windows[:, 1:].ravel(), np.arange(1, count * context + 1))


def test_a_held_out_split_too_short_says_by_how_much() -> None:
    assert len(heldout_windows(TOKENS[:65], 64, 16)) == 4
    with pytest.raises(InputError, match=r"held-out split .* has 64 tokens, .* need 65"):
        heldout_windows(TOKENS[:64], 64, 16)
    with pytest.raises(InputError, match="15 held-out tokens are less than one context of 16"):
        heldout_windows(TOKENS, 15, 16)


def test_half_of_all_windows_is_seen_after_the_time_that_theory_says() -> None:
    places = len(TOKENS) - 16
    draws = math.ceil(places * math.log(2))
    seen = np.unique(batch(sequences=draws)[:, 0])
    assert abs(len(seen) / places - 0.5) < 0.03
