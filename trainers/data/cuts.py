"""Cut one text in two, so that its last tenth can be held out.

The position of a cut is counted in bytes of the normalised text. Copies that differ in line ends,
white space or Unicode form are therefore cut at the same position.
"""

import re
import unicodedata

from trainers.data.documents import HELD_OUT_SHARE, normalised

#: How far from nine tenths a cut may be, as a share of the bytes.
_LEEWAY = 0.05
_CHUNK = 2**20  # characters

_LINE_END = r"(?>\r\n|\r|\n)"
_PLACES = (
    re.compile(rf"{_LINE_END}[^\S\r\n]*{_LINE_END}"),  # a blank line
    re.compile(_LINE_END),
    re.compile(r"\s+"),
)


def place_of_cut(text: str) -> int:
    """Return how many bytes of the normalised text precede its last tenth.

    The cut follows a blank line if there is one near, else a line end, else white space, else any
    character. It is the first such position at or after nine tenths of the bytes, or else the last
    one before, at most a twentieth of the bytes away.

    Args:
        text: holds at least two characters that are not white space.
    """
    first = re.search(r"[^\s\ufeff]", text)
    last = len(text.rstrip()) - 1
    assert first is not None
    assert first.start() < last
    low, aim, high = (
        min(max(_index(text, 1 - HELD_OUT_SHARE + leeway), first.start() + 1), last)
        for leeway in (-_LEEWAY, 0, _LEEWAY)
    )
    for place in _PLACES:
        found = None
        for match in place.finditer(text, low, high):
            found = match.end()
            if found >= aim:
                break
        if found is not None:
            return len(normalised(text[:found]))
    at = next((at for at in range(aim, high + 1) if _separable(text, at)), aim)
    return len(normalised(text[:at]))


def halves(text: str, place: int) -> tuple[str, str]:
    """Cut a text after `place` bytes of its normalised form.

    White space after the cut goes to the first part, except the indentation of the line that the
    second part starts with.

    Args:
        text: the text, or a copy that differs in white space or Unicode form.
        place: as `place_of_cut` returns it.
    """
    start = 0
    while True:  # find the chunk that contains the cut
        end = min(start + _CHUNK, len(text))
        while end < len(text) and not _separable(text, end):
            end += 1
        size = len(normalised(text[start:end]))
        if size >= place or end == len(text):
            break
        start, place = end, place - size
    low, high = start, end
    while low < high:
        middle = (low + high) // 2
        if len(normalised(text[start:middle])) < place:
            low = middle + 1
        else:
            high = middle
    at = low
    while at < len(text) and (text[at].isspace() or text[at] == "\ufeff"):
        at += 1
    line = max(text.rfind("\n", low, at), text.rfind("\r", low, at)) + 1
    at = line if line > low else at
    return text[:at], text[at:]


def _index(text: str, share: float) -> int:
    """Return the index of the character at which this share of the UTF-8 bytes is reached."""
    if text.isascii():
        return int(len(text) * share)
    encoded = text.encode()
    return len(encoded[: int(len(encoded) * share)].decode(errors="ignore"))


def _separable(text: str, at: int) -> bool:
    """Return whether the parts of a text before and after an index normalise independently."""
    before, after = text[at - 1], text[at]
    if unicodedata.combining(after):
        return False
    normal = [unicodedata.normalize("NFC", part) for part in (before + after, before, after)]
    return normal[0] == normal[1] + normal[2]
