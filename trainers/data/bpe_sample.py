"""The text that a BPE is trained on: a little from all over the training split."""

import hashlib
from collections.abc import Iterator

from trainers.data.documents import Corpus
from trainers.data.tokenizer_parts import pieces

#: Text that a BPE is trained on, at most and at least half of it where there is so much: about a
#: second's work, and merges for a vocabulary of thousands do not change with more.
BPE_TRAINING_BYTES = 4_000_000
#: About how many places of the training split that text is taken from, at most.
_PLACES = 1000


def sample(corpus: Corpus) -> Iterator[str]:
    """At most `BPE_TRAINING_BYTES` of the training split, taken from all over it.

    The split is read as one run of short pieces. Of each k that follow one another one is taken,
    by its place alone: so every part and every source has its share, and a corpus in which
    sources take turns cannot fall into step. k is doubled whenever too much has been taken, by
    dropping one of each two: the length of the corpus need not be known. All of a small split.
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
    """The training split in short runs of about equal length, which may span documents; each is
    the texts in it."""
    enough = max(BPE_TRAINING_BYTES // _PLACES, 1)
    run: list[str] = []
    length = 0
    for document in corpus.documents("train"):
        for text in _short(document.text, enough):
            run.append(text)
            length += len(text)
            if length >= enough:
                yield run
                run, length = [], 0
    if run:
        yield run


def _short(text: str, size: int) -> Iterator[str]:
    """The text in pieces of about `size` characters, cut in mid-word only where no word ends for
    as long again: for training, that matters little."""
    for piece in pieces(text, size):
        for start in range(0, len(piece), 2 * size):
            yield piece[start : start + 2 * size]


def _drawn(below: int, key: str) -> int:
    """A number from 0 to `below` - 1, the same for the same key on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % below


def _utf8_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)
