"""A permutation of any size, of which any place can be asked for."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.permutation import permuted


@given(st.integers(1, 3000), st.text(max_size=20))
def test_every_number_comes_up_once(size: int, key: str) -> None:
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


@given(st.integers(2, 2**40), st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.text())
def test_a_place_is_the_same_whoever_asks_with_it(size: int, asked: list[int], key: str) -> None:
    places = np.array([place % size for place in asked])
    together = permuted(places, size, key)
    alone = [int(permuted(np.array([place]), size, key)[0]) for place in places]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < size)).all()
    assert len(set(together.tolist())) == len(set(places.tolist()))


def test_the_permutation_is_fixed_for_ever() -> None:
    # Golden: a change of these numbers changes what every stored id means.
    assert permuted(np.arange(8), 1000, "0123456789abcdef 3 0").tolist() == [
        923, 151, 105, 777, 707, 360, 308, 145
    ]  # fmt: skip


@pytest.mark.parametrize("size", [2, 3, 5])
def test_small_permutations_begin_with_every_pair_about_equally_often(size: int) -> None:
    pairs = size * (size - 1)
    keys = 60 * pairs
    heads = [tuple(permuted(np.arange(2), size, f"k{key}").tolist()) for key in range(keys)]
    counts = np.array([heads.count(pair) for pair in itertools.permutations(range(size), 2)])
    expected = keys / pairs
    # Chi-square: mean `pairs - 1`, and six standard deviations above it.
    assert ((counts - expected) ** 2 / expected).sum() < pairs - 1 + 6 * (2 * (pairs - 1)) ** 0.5


def test_neighbours_land_far_from_each_other() -> None:
    size = 10_007
    landed = permuted(np.arange(size), size, "key") / size
    # Of independent uniforms |a - b| has mean 1/3 and standard deviation 0.236.
    gaps = np.abs(np.diff(landed))
    assert abs(gaps.mean() - 1 / 3) < 5 * 0.236 / size**0.5
    assert abs(np.corrcoef(np.arange(size), landed)[0, 1]) < 5 / size**0.5
