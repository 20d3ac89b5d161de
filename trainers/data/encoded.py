"""What the ids of a text stand for: how many of its bytes each accounts for, and what was lost.

Bits per byte means something only where the ids that a model predicts stand for the text, all of
it. A tokenizer may drop what it does not know, write one unknown id for it, or change the text
before it looks at it; here that is counted, so that it can be refused, or said.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]

#: The largest share of a corpus' characters, white space apart, that its ids may lose. One in a
#: hundred moves bits per byte by about 1 %, the least difference between widths that matters.
REFUSED_LOST_SHARE = 0.01

_SLICE = 2**20  # characters looked at at a time


@dataclass(frozen=True)
class Encoded:
    """The ids of one text, without a separator, and what they stand for."""

    ids: Ids  # [n]
    text_bytes: NDArray[np.uint32]  # [n] UTF-8 bytes of the text; together all of it if n > 0
    lost_characters: int  # not white space, and no id, or only the unknown id, stands for them
    altered: bool  # the ids decode to another text
    characters: int  # of the text that are not white space
    separators: int = 0  # ids within the text that equal the separator between documents
    lost_example: str = ""  # one lost character, "" where none is


def visible_characters(text: str) -> int:
    """How many characters of a text are not white space."""
    # In slices: the words of a text weigh ten times what it does.
    starts = range(0, len(text), _SLICE)
    return sum(len("".join(text[start : start + _SLICE].split())) for start in starts)


def bytes_before(text: str) -> NDArray[np.int64]:
    """[characters + 1] UTF-8 bytes before each character of a text, and of all of it."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    # UTF-8 writes a character in 1 byte, and one more from each of these code points on.
    widths = 1 + sum((points >= first).astype(np.int64) for first in (0x80, 0x800, 0x10000))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])


def bytes_by_offsets(text: str, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """[n] bytes that each id accounts for, from `offsets` [n, 2], its characters in the text.

    An id accounts for all bytes from the end of the one before it to its own end, and the last
    for the rest: what no id stands for is counted with the id that comes after.
    """
    if not len(offsets):
        return np.zeros(0, np.uint32)
    ends = np.maximum.accumulate(offsets[:, 1])
    ends[-1] = len(text)
    places = bytes_before(text)[ends]
    return np.diff(places, prepend=0).astype(np.uint32)


def lost_places(text: str, offsets: NDArray[np.int64]) -> list[int]:
    """The characters of a text, white space apart, outside all `offsets` [n, 2], by index.

    A mark that composes with the letter before it is lost only where that letter is: a tokenizer
    that normalises to NFC has one id for the two, and the offsets of the letter.
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


#: How far before a mark its letter is looked for: none has so many marks.
_MOST_MARKS = 16


def _letter_of_mark(text: str, place: int) -> int | None:
    """Where the letter stands that NFC composes with the character at a place; None where it
    composes with none."""
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
    """Whether a corpus loses more of its `characters` (white space apart) than may be lost."""
    return lost > REFUSED_LOST_SHARE * characters


def lost_text_problem(
    lost: int,
    characters: int,
    unknown_share: float = 0.0,
    examples: Sequence[str] = (),
    of: str = "the text's characters",
) -> str | None:
    """What to say of text of which `lost` of its `characters` (white space apart) have no id of
    their own; `unknown_share` of its ids are the unknown id, and `of` names it. None where
    nothing is lost."""
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
            f"{message}. No more than {_percent(REFUSED_LOST_SHARE)} may be lost, for a loss over "
            "ids that stand for nothing is not one of this text: use a tokenizer made for it, or "
            "tokenizer.kind bpe or bytes, which lose nothing"
        )
    return (
        f"{message}. Bits per byte cannot be given; tokenizer.kind bpe or bytes lose nothing of "
        "any text"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
