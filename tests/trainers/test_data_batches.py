"""Tokens of a step depend on (corpus, replicate, step) alone; held-out windows on the corpus."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.batches import heldout_starts, training_batch, windows_in
from trainers.data.shards import ShardedTokens, ShardWriter
from trialstore.errors import InputError

CORPUS = "0123456789abcdef"


def in_shards(folder: Path, tokens: np.ndarray, ends: list[int]) -> ShardedTokens:
    """The tokens in shards that end there."""
    metas = []
    for number, part in enumerate(np.split(tokens, ends)):
        writer = ShardWriter(folder, f"train/{number:05d}.arrow", [("token", tokens.dtype)])
        writer.add({"token": part})
        metas.append(writer.finish())
    return ShardedTokens(folder, metas)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> ShardedTokens:
    """0, 1, 2, ... 4999 in three shards: an id says where it stands."""
    folder = tmp_path_factory.mktemp("tokens")
    return in_shards(folder, np.arange(5000, dtype=np.uint16), [1700, 1701])


def batch(
    tokens: ShardedTokens, replicate: int = 0, step: int = 0, sequences: int = 8, context: int = 16
) -> np.ndarray:
    return training_batch(tokens, replicate, step, sequences, context, CORPUS)


def test_a_batch_is_windows_of_the_tokens(tokens: ShardedTokens) -> None:
    rows = batch(tokens, sequences=312)
    assert rows.shape == (312, 17)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows - rows[:, :1], np.tile(np.arange(17), (312, 1)))


def test_the_stream_of_version_two_is_fixed(tokens: ShardedTokens) -> None:
    # Golden: a change of these numbers changes what every stored id means.
    assert batch(tokens, replicate=3, step=41, sequences=6)[:, 0].tolist() == [
        4592, 1248, 1120, 1280, 1200, 2640
    ]  # fmt: skip


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> ShardedTokens:
    return in_shards(tmp_path_factory.mktemp("few"), np.arange(400, dtype=np.uint16), [100, 101])


@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 3), st.integers(0, 4))
@pytest.mark.long
def test_every_window_is_trained_on_once_a_pass(
    few: ShardedTokens, context: int, sequences: int, replicate: int, number: int
) -> None:
    count = windows_in(400, context)
    first, last = number * count, (number + 1) * count  # of this pass, in windows
    steps = range(first // sequences, -(-last // sequences))
    rows = np.concatenate([batch(few, replicate, s, sequences, context) for s in steps])
    begin = first - steps[0] * sequences
    starts = rows[begin : begin + count, 0]
    assert sorted(starts.tolist()) == [n * context for n in range(count)]
    # ... and the targets of a pass are every token but the first, and the last few.
    targets = rows[begin : begin + count, 1:]
    assert sorted(targets.ravel().tolist()) == list(range(1, count * context + 1))


@given(st.integers(0, 50), st.integers(0, 2**40), st.integers(1, 20))
def test_two_small_batches_are_one_large(
    tokens: ShardedTokens, replicate: int, step: int, sequences: int
) -> None:
    large = batch(tokens, replicate, step, 2 * sequences)
    halves = [batch(tokens, replicate, 2 * step + half, sequences) for half in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), large)


def test_passes_replicates_and_corpora_have_orders_of_their_own(tokens: ShardedTokens) -> None:
    count = windows_in(5000, 16)
    first = batch(tokens, sequences=count)
    assert not np.array_equal(first, batch(tokens, step=1, sequences=count))
    assert not np.array_equal(first, batch(tokens, replicate=1, sequences=count))
    assert not np.array_equal(first, training_batch(tokens, 0, 0, count, 16, "another"))


def test_the_shortest_corpus_that_serves_is_one_window(tmp_path: Path) -> None:
    window = np.arange(17, dtype=np.uint32)
    one = in_shards(tmp_path / "one", window, [])
    np.testing.assert_array_equal(training_batch(one, 0, 9, 2, 16, CORPUS), [window, window])
    short = in_shards(tmp_path / "short", window[:16], [])
    with pytest.raises(InputError, match=r"training split .* 16 tokens.* 17"):
        training_batch(short, 0, 0, 2, 16, CORPUS)


@given(
    st.integers(1, 40), st.integers(1, 60), st.lists(st.integers(1, 5000), min_size=1, max_size=6)
)
def test_the_held_out_sample_has_the_shares_of_the_split(
    context: int, wanted: int, sources: list[int]
) -> None:
    tokens = sum(sources) + context * wanted + 1
    sources[-1] += tokens - sum(sources)
    starts = heldout_starts(tokens, wanted * context, context, CORPUS)
    assert len(starts) == len(set(starts.tolist())) == wanted
    assert (starts % context == 0).all()
    assert (np.diff(starts) > 0).all()
    assert starts.max() + context < tokens
    edges = np.cumsum([0, *sources])
    there = windows_in(tokens, context) * context
    for begin, end in itertools.pairwise(edges):
        share = max(min(end, there) - min(begin, there), 0) / there
        inside = ((starts >= begin) & (starts < end)).sum()
        assert abs(inside - share * wanted) <= 2


def test_the_whole_split_is_measured_where_that_is_asked() -> None:
    assert heldout_starts(65, 64, 16, CORPUS).tolist() == [0, 16, 32, 48]


def test_each_window_is_measured_equally_often() -> None:
    drawn = [heldout_starts(16 * 12 + 1, 64, 16, f"corpus {n}") // 16 for n in range(6000)]
    counts = np.bincount(np.concatenate(drawn), minlength=12)
    # 4 of 12 windows: 2000 each. Chi-square of 4 strata of 3 has 8 degrees of freedom; 26.1 is
    # its 99.9th percentile.
    assert ((counts - 2000) ** 2 / 2000).sum() < 26.1


def test_a_held_out_split_too_short_says_by_how_much() -> None:
    with pytest.raises(InputError, match=r"held-out split .* has 64 tokens, .* need 65"):
        heldout_starts(64, 64, 16, CORPUS)
    with pytest.raises(InputError, match=r"15 held-out tokens.* context of 16"):
        heldout_starts(5000, 15, 16, CORPUS)
