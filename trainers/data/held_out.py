"""Choose the documents to hold out, so that they make up about a tenth of a corpus's bytes.

The rule depends only on contents and sizes, not on names or the order of files. A text that makes
up more than a tenth of all bytes, copies included, is cut in two, and its last tenth is held out.
Of the other texts, whole documents are held out in the order of their digests until a tenth is
reached. Copies of a text are always treated alike.
"""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.data.documents import HELD_OUT_SHARE

#: Normalised bytes below which a text is never cut, because its tail would be a few words.
SHORTEST_CUT = 100

TRAIN, HELD_OUT, CUT = 0, 1, 2

_BUCKET_BITS = 16
_CHUNK = 2**20  # documents per step, which bounds the memory for temporary arrays

Codes = NDArray[np.uint8]


class Sizes:
    """The digest and size of every document, in order, in 17 bytes of memory per document."""

    def __init__(self) -> None:
        self._digests, self._bytes, self._long = array("Q"), array("Q"), array("B")
        self.total = 0

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, digest: int, size: int, bare: int) -> None:
        """Add the next document.

        Args:
            digest: of the normalised text.
            size: UTF-8 bytes of the text.
            bare: bytes of the normalised text, which has no white space.
        """
        self._digests.append(digest)
        self._bytes.append(size)
        self._long.append(bare >= SHORTEST_CUT)
        self.total += size

    @property
    def digests(self) -> NDArray[np.uint64]:
        """Digests of the normalised texts, [documents]."""
        return np.frombuffer(self._digests, np.uint64)

    @property
    def bytes(self) -> NDArray[np.uint64]:
        """UTF-8 bytes of the texts, [documents]."""
        return np.frombuffer(self._bytes, np.uint64)

    @property
    def long(self) -> NDArray[np.bool_]:
        """Whether each document is long enough to be cut, [documents]."""
        return np.frombuffer(self._long, np.bool_)


@dataclass(frozen=True)
class Heavy:
    """A text that makes up more than a tenth of all bytes, its copies included."""

    digest: int
    bytes: int
    long: bool  # long enough to be cut


def heavy_texts(sizes: Sizes) -> list[Heavy]:
    """Return the texts that make up more than a tenth of all bytes, in the order of their digests.

    There are at most nine. `sizes` holds at least one document.
    """
    share = sizes.total / round(1 / HELD_OUT_SHARE)  # exact if the total is a multiple of ten
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
    """Return TRAIN, HELD_OUT or CUT for every document, or None if nothing can be held out.

    Heavy texts that are long enough are cut. Whole documents fill the rest of the tenth. Heavy
    texts too short to be cut are trained on; if there is nothing else, the smallest of them is held
    out.

    Args:
        sizes: all documents.
        heavy: the result of `heavy_texts`.
        tail_bytes: UTF-8 bytes held out of the texts that are cut.
    """
    codes = np.zeros(len(sizes), np.uint8)
    cut = [text for text in heavy if text.long]
    solid = [text for text in heavy if not text.long]
    heavy_digests = np.array([text.digest for text in heavy], np.uint64)
    if sum(text.bytes for text in heavy) < sizes.total:
        aim = HELD_OUT_SHARE * sizes.total - tail_bytes
        boundary = _boundary(sizes, heavy_digests, aim)
        if boundary is not None:
            codes[sizes.digests <= boundary] = HELD_OUT
            codes[np.isin(sizes.digests, heavy_digests)] = TRAIN
    elif not cut:
        if len(solid) < 2:
            return None
        smallest = min(solid, key=lambda text: (text.bytes, text.digest))
        codes[sizes.digests == np.uint64(smallest.digest)] = HELD_OUT
    codes[np.isin(sizes.digests, np.array([text.digest for text in cut], np.uint64))] = CUT
    return codes


def _boundary(sizes: Sizes, without: NDArray[np.uint64], aim: float) -> np.uint64 | None:
    """Return the digest up to which documents come nearest to `aim` bytes in total.

    Documents in `without` do not count. None means that holding out no document comes nearest.
    """
    by_bucket = _bytes_by_bucket(sizes, without)
    up_to = np.cumsum(by_bucket)
    bucket = int(np.searchsorted(up_to, aim))  # the first to reach the aim
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
    # Hold out all buckets before this one, if they hold documents.
    return None if not len(earlier) else np.uint64((int(earlier[-1]) + 1) << _SHIFT) - np.uint64(1)


_SHIFT = 64 - _BUCKET_BITS


def _bytes_by_bucket(
    sizes: Sizes, without: NDArray[np.uint64] | None = None
) -> NDArray[np.float64]:
    """Sum the UTF-8 bytes of documents by the highest bits of their digests, [2**16].

    The sums are exact, because they stay below 2**53.
    """
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
    """Return the indices of the documents whose digests are in a bucket."""
    found = [
        start + np.flatnonzero(sizes.digests[start : start + _CHUNK] >> np.uint64(_SHIFT) == bucket)
        for start in range(0, len(sizes), _CHUNK)
    ]
    return np.concatenate(found)
