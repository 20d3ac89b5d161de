"""A keyed permutation of 0..size-1 of which any place can be asked for without the others.

A Feistel network permutes the numbers of 2b bits, whatever its round function is; what lands
beyond `size` is permuted again until it does not, which leaves a permutation of the rest (cycle
walking: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). Integers only:
every machine and every version of NumPy gives the same places.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8


def permuted(places: NDArray[np.integer], size: int, key: str) -> NDArray[np.int64]:
    """Where a permutation sends `places` [n] of 0..size-1. `key` chooses the permutation."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)  # bits
    keys = np.frombuffer(hashlib.shake_256(key.encode()).digest(8 * ROUNDS), "<u8")
    found = _network(places.astype(np.uint64), half, keys)
    beyond = np.flatnonzero(found >= size)
    while beyond.size:
        found[beyond] = _network(found[beyond], half, keys)
        beyond = beyond[found[beyond] >= size]
    return found.astype(np.int64)


def _network(values: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << bits) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the input reaches every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
