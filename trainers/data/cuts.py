"""Where one text is cut in two, so that its last tenth can be held out.

A cut is said in bytes of the normalised text, so that copies which differ in line ends, white
space or Unicode form are cut at the same place.
"""

import re
import unicodedata

from trainers.data.documents import HELD_OUT_SHARE, normalised

#: How far from a tenth a cut may be for the sake of a better place, as a share of the bytes.
_LEEWAY = 0.05
_CHUNK = 2**20  # characters

_LINE_END = r"(?>\r\n|\r|\n)"
_PLACES = (
    re.compile(rf"{_LINE_END}[^\S\r\n]*{_LINE_END}"),  # a blank line
    re.compile(_LINE_END),
    re.compile(r"\s+"),
)


def place_of_cut(text: str) -> int:
    """The bytes of the normalised text that come before its last tenth.

    The tenth begins after a blank line, else at a line, else after white space, else at any
    character: the first such place from nine tenths on, or the last before, within a twentieth.
    The text holds at least two characters that are not white space.
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
    """The text before a place, with the white space that follows it, and the text after. Where
    the second begins with a line, it begins with the line's indentation."""
    start = 0
    while True:  # the chunk in which the place lies
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
    """The character at which a share of the UTF-8 bytes has gone by."""
    if text.isascii():
        return int(len(text) * share)
    encoded = text.encode()
    return len(encoded[: int(len(encoded) * share)].decode(errors="ignore"))


def _separable(text: str, at: int) -> bool:
    """Whether normalising leaves what comes before a character apart from what comes after."""
    before, after = text[at - 1], text[at]
    if unicodedata.combining(after):
        return False
    normal = [unicodedata.normalize("NFC", part) for part in (before + after, before, after)]
    return normal[0] == normal[1] + normal[2]
