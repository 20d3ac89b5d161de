"""Group the files of a corpus into sources: a file, a folder, or a set of numbered shards."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from trainers.data.documents import shown
from trainers.data.readers import SourceFile

#: Most sources of one root. More would make the table of sources unreadable, so the files are then
#: grouped by suffix.
MOST_NAMES = 50


@dataclass(frozen=True)
class FileLocation:
    """The position of a file below the path that the user gave.

    Attributes:
        root: the folder that names are relative to.
        first: the name directly below `root`: the file's own, without its compression suffix, or
            that of the folder that contains it.
        compression: the compression suffix of a file directly below `root`, or "".
    """

    root: Path
    first: str
    compression: str

    @property
    def pattern(self) -> str:
        """The name with `*` for each run of digits, so the numbered shards of a set share it."""
        return re.sub(r"\d+", "*", self.first)


def source_names(files: Iterable[tuple[FileLocation, SourceFile]]) -> list[SourceFile]:
    """Return the files with their `source` set, the files of one source together.

    A source is a first-level name below its root. Names that differ only in runs of digits form one
    source, such as `shard-*.jsonl.zst`. If a root has more than `MOST_NAMES` names, its files are
    grouped by suffix.
    """
    members = list(files)
    patterns: dict[Path, set[str]] = {}
    for place, _ in members:
        patterns.setdefault(place.root, set()).add(place.pattern)
    groups: dict[tuple[Path, str], list[tuple[FileLocation, SourceFile]]] = {}
    for place, file in members:
        name = place.pattern
        if len(patterns[place.root]) > MOST_NAMES:
            name = f"*{PurePosixPath(place.first).suffix or '/'}"
        groups.setdefault((place.root, name), []).append((place, file))
    labels = _told_apart([(root, _label(name, [place for place, _ in group]))
                          for (root, name), group in groups.items()])  # fmt: skip
    return [
        replace(file, source=shown(label))
        for label, group in zip(labels, groups.values(), strict=True)
        for _, file in group
    ]


def _label(name: str, places: list[FileLocation]) -> str:
    alone = len({place.first for place in places}) == 1
    compressions = {place.compression for place in places}
    compression = compressions.pop() if len(compressions) == 1 else ""
    return (places[0].first if alone else name) + compression


def _told_apart(labels: list[tuple[Path, str]]) -> list[str]:
    """Prefix labels that occur more than once with enough parent folders to make them differ."""
    depth = 0
    named = [label for _, label in labels]
    while len(set(named)) < len(named) and depth < max(len(root.parts) for root, _ in labels):
        depth += 1
        doubled = {name for name in named if named.count(name) > 1}
        named = [
            "/".join((*root.parts[-depth:], label)) if name in doubled else name
            for name, (root, label) in zip(named, labels, strict=True)
        ]
    return named
