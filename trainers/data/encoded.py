"""Account for the text behind token ids: the bytes that each id covers, and the characters lost.

Bits per byte are valid only if the predicted ids represent the whole text. A tokenizer may drop
characters that it does not know, replace them by one unknown id, or normalise the text first. The
functions here count such losses, so that the caller can refuse or report them.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]

#: The largest share of a corpus's characters, white space excepted, that may be lost. Losing 1 %
#: changes bits per byte by about 1 %, the smallest difference between widths that matters.
REFUSED_LOST_SHARE = 0.01

_SLICE = 2**20  # characters per step


@dataclass(frozen=True)
class Encoded:
    """The ids of one text, without a separator, and the text that they represent."""

    ids: Ids  # [n]
    text_bytes: NDArray[np.uint32]  # [n] UTF-8 bytes behind each id; they add up to the text's
    lost_characters: int  # not white space; represented by no id or only by the unknown id
    altered: bool  # the ids decode to another text
    characters: int  # of the text, white space excepted
    separators: int = 0  # ids within the text that equal the separator between documents
    lost_example: str = ""  # one lost character, or ""


def visible_characters(text: str) -> int:
    """Return how many characters of a text are not white space."""
    # In slices: the list of a text's words takes ten times the memory of the text.
    starts = range(0, len(text), _SLICE)
    return sum(len("".join(text[start : start + _SLICE].split())) for start in starts)


def bytes_before(text: str) -> NDArray[np.int64]:
    """Return the UTF-8 bytes before each character and before the end, [characters + 1]."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    # A character takes 1 byte of UTF-8, plus one for each of these code points that it reaches.
    widths = 1 + sum((points >= first).astype(np.int64) for first in (0x80, 0x800, 0x10000))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])


def bytes_by_offsets(text: str, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the UTF-8 bytes that each id accounts for, [n].

    An id accounts for all bytes from the end of the previous id to its own end; the last id also
    accounts for the rest. Text that no id represents is thus counted with the next id.

    Args:
        text: the text that was encoded.
        offsets: first character and end of each id, [n, 2].
    """
    if not len(offsets):
        return np.zeros(0, np.uint32)
    ends = np.maximum.accumulate(offsets[:, 1])
    ends[-1] = len(text)
    places = bytes_before(text)[ends]
    return np.diff(places, prepend=0).astype(np.uint32)


def lost_places(text: str, offsets: NDArray[np.int64]) -> list[int]:
    """Return the indices of the characters outside all offsets, white space excepted.

    A combining mark is lost only if its base letter is lost: a tokenizer that normalises to NFC has
    one id for both, with the offsets of the letter.

    Args:
        text: the text that was encoded.
        offsets: first character and end of each id that represents text, [n, 2].
    """
    change = np.zeros(len(text) + 1, np.int64)
    np.add.at(change, offsets[:, 0], 1)
    np.add.at(change, offsets[:, 1], -1)
    covered = np.cumsum(change)[:-1] > 0
    lost = []
    for place in np.flatnonzero(~covered).tolist():
        if text[place].isspace():
            continue
        letter = _letter_of_mark(text, place)
        if letter is None or not covered[letter]:
            lost.append(place)
    return lost


#: How far before a mark to search for its letter; real text has fewer marks on one letter.
_MOST_MARKS = 16


def _letter_of_mark(text: str, place: int) -> int | None:
    """Return the index of the letter that NFC composes with the mark at `place`, or None."""
    is_jamo = "\u1160" <= text[place] <= "\u11ff"  # the vowel or final of a Hangul syllable
    if not is_jamo and not unicodedata.category(text[place]).startswith("M"):
        return None
    for start in range(place - 1, max(place - _MOST_MARKS, 0) - 1, -1):
        if unicodedata.combining(text[start]):
            continue
        without = unicodedata.normalize("NFC", text[start:place])
        if len(unicodedata.normalize("NFC", text[start : place + 1])) <= len(without):
            return start
    return None


def is_refused(lost: int, characters: int) -> bool:
    """Return whether more than `REFUSED_LOST_SHARE` of the characters are lost."""
    return lost > REFUSED_LOST_SHARE * characters


def lost_text_problem(
    lost: int,
    characters: int,
    unknown_share: float = 0.0,
    examples: Sequence[str] = (),
    of: str = "the text's characters",
) -> str | None:
    """Describe lost text in one or two sentences, or return None if nothing is lost.

    Args:
        lost: characters without an id of their own, white space excepted.
        characters: all characters, white space excepted.
        unknown_share: share of the ids that are the unknown id.
        examples: some of the lost characters.
        of: names the characters in the sentence.
    """
    if not lost:
        return None
    shown = ", ".join(f"{one!r} (U+{ord(one):04X})" for one in examples if one)
    message = f"the tokenizer loses {_percent(lost / characters)} of {of}"
    if shown:
        message += f", such as {shown}"
    if unknown_share:
        message += f"; {_percent(unknown_share)} of the ids are its unknown id"
    if is_refused(lost, characters):
        return (
            f"{message}. At most {_percent(REFUSED_LOST_SHARE)} may be lost, because the loss over "
            "the remaining ids would not measure this text; use a tokenizer made for it, or "
            "tokenizer.kind bpe or bytes, which lose nothing"
        )
    return (
        f"{message}. Bits per byte cannot be given; tokenizer.kind bpe or bytes lose nothing of "
        "any text"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
