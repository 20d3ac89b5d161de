"""Sample the text that a BPE is trained on from the whole training split."""

import hashlib
from collections.abc import Iterator

from trainers.data.documents import Corpus
from trainers.data.tokenizer_parts import batches, pieces

#: UTF-8 bytes of training text at most; at least half as much if the corpus has it. Training takes
#: about a second, and more text does not change the merges of a vocabulary of thousands.
BPE_TRAINING_BYTES = 4_000_000
#: Number of pieces in a full sample, about.
_PLACES = 1000


def sample(corpus: Corpus) -> Iterator[str]:
    """Yield at most `BPE_TRAINING_BYTES` of the training split, spread over all of it.

    The split is read as a sequence of short pieces. One of every k consecutive pieces is kept; a
    hash of its position chooses it. Every part and every source is thus represented in proportion,
    and a corpus that alternates between sources cannot align with the sampling. When the sample
    grows too large, k doubles and one of each two kept pieces is dropped, so the length of the
    corpus need not be known. A small split is used whole.
    """
    taken: list[list[str]] = []
    size = 0
    every, chosen = 1, 0
    for number, piece in enumerate(_short_pieces(corpus)):
        if number % every == 0:
            chosen = number + _drawn(every, f"{every} {number}")
        if number != chosen:
            continue
        taken.append(piece)
        size += _utf8_bytes(piece)
        while size > BPE_TRAINING_BYTES and len(taken) > 1:
            every *= 2
            pairs = [taken[start : start + 2] for start in range(0, len(taken), 2)]
            taken = [
                pair[_drawn(2, f"{every} {place}") % len(pair)] for place, pair in enumerate(pairs)
            ]
            size = sum(map(_utf8_bytes, taken))
    for piece in taken:
        yield from piece


def _short_pieces(corpus: Corpus) -> Iterator[list[str]]:
    """Yield the training split as short runs of texts; a run may span documents."""
    size = max(BPE_TRAINING_BYTES // _PLACES, 1)
    return batches(
        (text for document in corpus.documents("train") for text in _short(document.text, size)),
        size,
    )


def _short(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of about `size` characters.

    A piece ends at the end of a word, unless no word ends within another `size` characters. Cutting
    inside a word matters little for training.
    """
    for piece in pieces(text, size):
        for start in range(0, len(piece), 2 * size):
            yield piece[start : start + 2 * size]


def _drawn(below: int, key: str) -> int:
    """Return a number from 0 to `below` - 1 that depends only on the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % below


def _utf8_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)
