"""Which documents are held out so that about a tenth of a corpus's bytes is.

The rule sees only contents and sizes. A text that makes up more than a tenth of all bytes, its
copies included, is cut in two, and its last tenth held out; of the others, whole documents are
held out in the order of their digests until a tenth is reached. Nothing depends on names or on
the order of files, and copies of a text are always treated alike.
"""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.data.documents import HELD_OUT_SHARE

#: A text of fewer UTF-8 bytes, without white space, is never cut: its tail would be a few words.
SHORTEST_CUT = 100

TRAIN, HELD_OUT, CUT = 0, 1, 2

_BUCKET_BITS = 16
_CHUNK = 2**20  # documents looked at at a time, which bounds what is held beside their numbers

Codes = NDArray[np.uint8]


class Sizes:
    """Digest, bytes, and whether it is long enough to be cut, of every document in order: 17
    bytes of memory a document."""

    def __init__(self) -> None:
        self._digests, self._bytes, self._long = array("Q"), array("Q"), array("B")
        self.total = 0

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, digest: int, size: int, bare: int) -> None:
        """The next document: `size` is its UTF-8 bytes, `bare` those without white space."""
        self._digests.append(digest)
        self._bytes.append(size)
        self._long.append(bare >= SHORTEST_CUT)
        self.total += size

    @property
    def digests(self) -> NDArray[np.uint64]:
        """[documents]"""
        return np.frombuffer(self._digests, np.uint64)

    @property
    def bytes(self) -> NDArray[np.uint64]:
        """UTF-8 bytes, [documents]"""
        return np.frombuffer(self._bytes, np.uint64)

    @property
    def long(self) -> NDArray[np.bool_]:
        """Whether a document may be cut, [documents]"""
        return np.frombuffer(self._long, np.bool_)


@dataclass(frozen=True)
class Heavy:
    """A text that with its copies makes up more than a tenth of all bytes."""

    digest: int
    bytes: int
    long: bool  # enough to be cut


def heavy_texts(sizes: Sizes) -> list[Heavy]:
    """In the order of their digests; at most nine. `sizes` holds at least one document."""
    share = sizes.total / round(1 / HELD_OUT_SHARE)  # exact where it comes out even
    found = []
    for bucket in np.flatnonzero(_bytes_by_bucket(sizes) > share):
        at = _in_bucket(sizes, int(bucket))
        digests, groups = np.unique(sizes.digests[at], return_inverse=True)
        summed = np.bincount(groups, sizes.bytes[at])
        for group in np.flatnonzero(summed > share):
            long = bool(sizes.long[at[groups == group]].all())
            found.append(Heavy(int(digests[group]), int(summed[group]), long))
    return found


def held_out_codes(sizes: Sizes, heavy: list[Heavy], tail_bytes: int) -> Codes | None:
    """TRAIN, HELD_OUT or CUT for every document; None where nothing can be held out.

    `heavy` is what `heavy_texts` gave, and `tail_bytes` what is held out of those that are long:
    the rest of a tenth is made up of whole documents. Heavy texts too short to be cut are trained
    on; where there is nothing else, the smallest of them is held out.
    """
    codes = np.zeros(len(sizes), np.uint8)
    cut = [text for text in heavy if text.long]
    solid = [text for text in heavy if not text.long]
    kept_out = np.array([text.digest for text in heavy], np.uint64)
    if sum(text.bytes for text in heavy) < sizes.total:
        aim = HELD_OUT_SHARE * sizes.total - tail_bytes
        boundary = _boundary(sizes, kept_out, aim)
        if boundary is not None:
            codes[sizes.digests <= boundary] = HELD_OUT
            codes[np.isin(sizes.digests, kept_out)] = TRAIN
    elif not cut:
        if len(solid) < 2:
            return None
        smallest = min(solid, key=lambda text: (text.bytes, text.digest))
        codes[sizes.digests == np.uint64(smallest.digest)] = HELD_OUT
    codes[np.isin(sizes.digests, np.array([text.digest for text in cut], np.uint64))] = CUT
    return codes


def _boundary(sizes: Sizes, without: NDArray[np.uint64], aim: float) -> np.uint64 | None:
    """The digest up to which documents other than `without` come nearest to `aim` bytes; None
    where holding out none of them comes nearest."""
    by_bucket = _bytes_by_bucket(sizes, without)
    up_to = np.cumsum(by_bucket)
    bucket = int(np.searchsorted(up_to, aim))  # the first with which the aim is reached
    bucket = min(bucket, int(np.flatnonzero(by_bucket)[-1]))
    before = up_to[bucket] - by_bucket[bucket]
    at = _in_bucket(sizes, bucket)
    at = at[~np.isin(sizes.digests[at], without)]
    digests, groups = np.unique(sizes.digests[at], return_inverse=True)
    reached = before + np.concatenate([[0.0], np.cumsum(np.bincount(groups, sizes.bytes[at]))])
    best = int(np.argmin(np.abs(reached - aim)))
    if best > 0:
        return np.uint64(digests[best - 1])
    earlier = np.flatnonzero(by_bucket[:bucket])
    # All of the buckets before this one, where there are any.
    return None if not len(earlier) else np.uint64((int(earlier[-1]) + 1) << _SHIFT) - np.uint64(1)


_SHIFT = 64 - _BUCKET_BITS


def _bytes_by_bucket(
    sizes: Sizes, without: NDArray[np.uint64] | None = None
) -> NDArray[np.float64]:
    """UTF-8 bytes of the documents by the highest bits of their digests, [2**16]; exact, for
    sums stay below 2**53."""
    summed = np.zeros(2**_BUCKET_BITS)
    for start in range(0, len(sizes), _CHUNK):
        digests = sizes.digests[start : start + _CHUNK]
        weights = sizes.bytes[start : start + _CHUNK].astype(np.float64)
        if without is not None:
            weights[np.isin(digests, without)] = 0
        buckets = (digests >> np.uint64(_SHIFT)).astype(np.int64)
        summed += np.bincount(buckets, weights, minlength=len(summed))
    return summed


def _in_bucket(sizes: Sizes, bucket: int) -> NDArray[np.int64]:
    """Which documents have digests of a bucket."""
    found = [
        start + np.flatnonzero(sizes.digests[start : start + _CHUNK] >> np.uint64(_SHIFT) == bucket)
        for start in range(0, len(sizes), _CHUNK)
    ]
    return np.concatenate(found)
