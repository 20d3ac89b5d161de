"""A keyed permutation of 0..size-1 with random access.

A Feistel network permutes the numbers of 2b bits, whatever its round function. Values at or above
`size` are permuted again until they fall below it; the result is a permutation of 0..size-1 (cycle
walking: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). It uses integers
only, so results are the same on every machine and with every version of NumPy.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8


def permuted(places: NDArray[np.integer], size: int, key: str) -> NDArray[np.int64]:
    """Return the images of `places` under a permutation of 0..size-1.

    Args:
        places: [n] numbers from 0 to size - 1.
        size: how many numbers are permuted.
        key: chooses the permutation.
    """
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
    """Apply the finaliser of splitmix64: every bit of the input affects every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
