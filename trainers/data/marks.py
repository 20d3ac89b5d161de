"""Find text that looks like a mark between documents in text that was not split at it."""

import re
from collections.abc import Iterator

_LETTERS = "[A-Za-z][A-Za-z0-9_ ]{0,30}"
_NAMES = "(?i:eos|eot|eod|eop|bos|sep|endoftext|end_of_[a-z]{1,20})"
#: Marks for the end or the beginning of a text, at any position.
_ANYWHERE = re.compile(
    rf"<\|{_LETTERS}\|>|<\|>|<\uff5c[^\n<>]{{1,40}}\uff5c>|</s>|<{_NAMES}>|\[{_NAMES}\]"
)
#: Document tags at the beginning of a line.
_TAG = re.compile(r"^<(/?)(doc|document|article|text|page)\b[^>\n]{0,300}>", re.MULTILINE)
#: A line that consists of one sign, three times or more, or of a word in brackets.
_LINE = re.compile(
    r"^[ \t]*(?P<rule>([=*#~%@_+-])\2{2,}|<{1,3}[A-Z_ ]{3,20}>{1,3}|\[[A-Z_ ]{3,20}\]|%|\f)"
    r"[ \t]*\r?$",
    re.MULTILINE,
)
#: Replaces the attributes of a tag, which differ from document to document.
_ATTRIBUTES = " ..."
#: Fewest equal lines of signs in a text that count as marks; two may frame a heading.
_FEWEST_LINES = 3
#: Most marks of one corpus that are reported one by one; the rest are reported as a number.
MOST_MARKS = 5


class Marks:
    """Counts possible document marks, by mark and file, while a corpus is read."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}

    def look(self, text: str, file: str, lines: bool) -> None:
        """Count the possible marks in a text.

        Args:
            text: one document.
            file: the name to report.
            lines: whether lines of repeated signs count. They do in a `.txt`; elsewhere they are
                headings and rules.
        """
        if "<" in text or "[" in text:
            for match in _ANYWHERE.finditer(text):
                self._add(match.group(), file)
        if text.startswith("<") or "\n<" in text:
            for match in _TAG.finditer(text):
                has_attributes = match.group()[1 + len(match[1]) + len(match[2])] != ">"
                self._add(f"<{match[1]}{match[2]}{_ATTRIBUTES if has_attributes else ''}>", file)
        if lines:
            found: dict[str, int] = {}
            for match in _LINE.finditer(text):
                if not _ANYWHERE.fullmatch(match["rule"]):
                    found[match["rule"]] = found.get(match["rule"], 0) + 1
            for mark, count in found.items():
                if count >= _FEWEST_LINES:
                    self._add(mark, file, count)

    def _add(self, mark: str, file: str, count: int = 1) -> None:
        files = self._counts.setdefault(mark, {})
        files[file] = files.get(file, 0) + count

    def remarks(self, way_out: str) -> Iterator[str]:
        """Yield a sentence for each of the most frequent marks.

        Args:
            way_out: ends each sentence; `{mark}` in it is replaced by the mark as a YAML scalar.
        """
        often = sorted(self._counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))
        for mark, files in often[:MOST_MARKS]:
            file, count = max(files.items(), key=lambda item: item[1])
            total = sum(files.values())
            way = way_out.format(mark=_yaml(mark))
            if mark.endswith(f"{_ATTRIBUTES}>"):
                way = "no separator can name it; give a document a file, or a row of a table"
            others = f" (in {len(files)} files, {total} times)" if len(files) > 1 else ""
            yield (
                f"{file} holds {mark!r} {count} times{others}, which looks like a mark between "
                f"documents and is read as text: {way}"
            )
        if len(often) > MOST_MARKS:
            yield f"{len(often) - MOST_MARKS} other texts that look like marks were found"


def _yaml(mark: str) -> str:
    """Return the mark as a double-quoted YAML scalar."""
    return '"' + mark.replace("\\", "\\\\").replace('"', '\\"').replace("\f", "\\f") + '"'
