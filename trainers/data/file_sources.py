"""What files are counted under: each file, folder, or set of shards a source of its own."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from trainers.data.documents import shown
from trainers.data.readers import SourceFile

#: A folder of more names than this, each a source, would fill a table without telling anything:
#: its files are then counted by their kind.
MOST_NAMES = 50


@dataclass(frozen=True)
class FileLocation:
    """Where a file stands: `first` is its name, or that of the folder that it lies in, directly
    below `root`; a file's is without the ending of its compression."""

    root: Path
    first: str
    compression: str

    @property
    def pattern(self) -> str:
        """The name with `*` for runs of digits, which number shards."""
        return re.sub(r"\d+", "*", self.first)


def source_names(files: Iterable[tuple[FileLocation, SourceFile]]) -> list[SourceFile]:
    """The files with the names of their sources, those of one source together.

    A source is a first-level name below its root; names that differ only in runs of digits are
    one, such as `shard-*.jsonl.zst`.
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
    """Labels that stand in several places, with as many folders before them as it takes."""
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
