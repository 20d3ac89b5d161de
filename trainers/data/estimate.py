"""Estimate the tokens of a corpus from excerpts spread over it, in about a second."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainers.data.contents import SPLITS, Contents, SourcePart, added, ordered
from trainers.data.documents import Corpus, Document, Split
from trainers.data.split_writer import Lost, encoding_of, refuse_lost, with_remarks
from trainers.data.tokenizer import Tokenizer

#: A corpus up to this size, in UTF-8 bytes, is encoded whole. From a larger one, about this much
#: is encoded, in excerpts spread evenly.
SAMPLE_BYTES = 4_000_000
#: Largest number of characters in an excerpt.
EXCERPT = 4096


@dataclass
class _Sampled:
    """The excerpts of one source and split taken so far."""

    part: SourcePart
    next_mark: float  # bytes of this source and split before the middle of the next excerpt
    ratios: list[float] = field(default_factory=list)  # tokens per byte
    fallback: str = ""  # an excerpt for a source too small to contain a mark


def estimated_contents(corpus: Corpus, tokenizer: Tokenizer) -> Contents:
    """Count the documents and bytes of a corpus, and estimate its tokens, in one pass.

    A corpus of at most `SAMPLE_BYTES` is encoded whole, and its token counts are exact. From a
    larger one, an excerpt is taken at every k-th byte of each source. The mean of their tokens per
    byte, times the bytes, is an unbiased estimate, because every byte is sampled with the same
    probability.

    Raises:
        InputError: the tokenizer loses more text than allowed, or has no id for a part of it.
    """
    total = corpus.total_bytes or 0
    whole = total <= SAMPLE_BYTES
    apart = EXCERPT * max(total / SAMPLE_BYTES, 1.0)
    sampled: dict[tuple[str, Split], _Sampled] = {}
    lost: dict[Split, Lost] = {split: Lost() for split in SPLITS}
    waiting: list[tuple[_Sampled, str, bool]] = []
    for split, document in corpus.assigned():
        at = sampled.get((document.source, split))
        if at is None:
            at = _Sampled(SourcePart(document.source, split, 0, 0, 0), apart / 2)
            at.fallback = document.text[:EXCERPT]
            sampled[document.source, split] = at
        if whole:
            waiting.append((at, document.text, True))
        else:
            waiting += [(at, text, ends) for text, ends in _excerpts(at, document, apart)]
        at.part = added(at.part, 1, len(document.text.encode()))
        if len(waiting) >= 256:
            _encode(tokenizer, waiting, lost, whole)
            waiting = []
    _encode(tokenizer, waiting, lost, whole)
    if not whole:
        for at in sampled.values():
            if not at.ratios:
                _encode(tokenizer, [(at, at.fallback, False)], lost, whole)
            at.part = added(
                at.part, tokens=at.part.documents + round(at.part.bytes * np.mean(at.ratios))
            )
    contents = Contents(
        split_rule=corpus.split_rule,
        sources=ordered(
            at.part for at in sorted(sampled.values(), key=lambda at: at.part.split == "heldout")
        ),
        left_out=corpus.left_out,
        remarks=corpus.remarks,
        encoding=encoding_of(lost.values(), tokenizer),
        estimated=not whole,
    )
    contents = with_remarks(contents, tokenizer)
    refuse_lost(lost)
    return contents


def _excerpts(at: _Sampled, document: Document, apart: float) -> list[tuple[str, bool]]:
    """Return the text at each sampling mark in a document, and whether it is the whole document."""
    text = document.text
    length = len(text.encode())
    found = []
    while at.next_mark < at.part.bytes + length:
        if len(text) <= EXCERPT:
            found.append((text, True))
        else:
            middle = round((at.next_mark - at.part.bytes) / length * len(text))
            begin = min(max(middle - EXCERPT // 2, 0), len(text) - EXCERPT)
            found.append((text[begin : begin + EXCERPT], False))
        at.next_mark += apart
    return found


def _encode(
    tokenizer: Tokenizer,
    waiting: Sequence[tuple[_Sampled, str, bool]],
    lost: dict[Split, Lost],
    whole: bool,
) -> None:
    texts = [text for _, text, _ in waiting]
    if tokenizer.lossless:
        counts = [len(ids) for ids in tokenizer.encode_batch(texts)]
    else:
        measured = tokenizer.measure_batch(texts)
        counts = [len(one.ids) for one in measured]
        for (at, _, is_document), one in zip(waiting, measured, strict=True):
            lost[at.part.split].note(one, tokenizer.unknown_id, is_document)
    for (at, text, _), count in zip(waiting, counts, strict=True):
        if whole:
            at.part = added(at.part, tokens=count + 1)
        else:
            at.ratios.append(count / max(len(text.encode()), 1))
