"""What a sweep's relative paths mean: the folder of its file, and of --set the current folder.

They are made absolute when the file is read, so `plan`, `run` and every process of a trial look in
one place, wherever they are called.
"""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.errors import File
from orchestrator.sweep.strict_yaml import Path as Keys
from trainers.data.paths import seen_from

SET = "--set "
#: Keys that hold a path or several; what else stands there, such as a split, is none.
PATHS = (("corpus", "paths"), ("corpus", "heldout"))
#: Keys that hold a folder or the name of a repository of the hub, by kind of section.
NAMES = (("corpus", "hub", "dataset"), ("tokenizer", "pretrained", "path"))


@dataclass(frozen=True)
class PathKey:
    """A path that a sweep names: `keys` lead to it, and `maybe_hub` says that OWNER/NAME may stand
    in its place."""

    keys: Keys
    text: str
    maybe_hub: bool

    @property
    def place(self) -> str:
        """The key as a user writes it, such as corpus.paths."""
        return ".".join(map(str, self.keys[:2]))

    @property
    def relative(self) -> bool:
        """Whether it depends on a folder, as far as its text tells."""
        return bool(self.text.strip()) and not self.text.startswith(("/", "~"))


def paths_of(config: SweepConfig) -> Iterator[PathKey]:
    """Every path of a sweep, in the order of its sections."""
    for section, key in PATHS:
        value = getattr(getattr(config, section), key, None)
        if isinstance(value, str):
            yield PathKey((section, key), value, maybe_hub=False)
        elif isinstance(value, list | tuple):
            for index, text in enumerate(value):
                yield PathKey((section, key, index), text, maybe_hub=False)
    for section, kind, key in NAMES:
        source = getattr(config, section)
        if source.kind == kind:
            text = getattr(source, key)
            named = text.startswith((".", "/", "~")) or text.count("/") > 1
            yield PathKey((section, key), text, maybe_hub=not named)


def resolved(file: File, config: SweepConfig, folder: Path) -> SweepConfig:
    """The sweep with absolute paths; `folder` is that of its file.

    Raises InputError for a path that is not there and would be in the current folder.
    """
    sections: dict[str, dict[str, Any]] = {}
    for path in paths_of(config):
        if path.relative:
            found = _found(file, path, Path.cwd() if _is_set(file, path.keys) else folder)
            section, key, *index = map(str, path.keys)
            changed = sections.setdefault(section, {})
            if index:
                whole = changed.setdefault(key, list(getattr(getattr(config, section), key)))
                whole[int(index[0])] = found
            else:
                changed[key] = found
    return config.model_copy(
        update={
            section: getattr(config, section).model_copy(update=changed)
            for section, changed in sections.items()
        }
    )


def _is_set(file: File, keys: Keys) -> bool:
    """Whether --set gave a key, or the nearest above it that is known to come from anywhere."""
    above = (keys[:length] for length in range(len(keys), 0, -1))
    origin = next((file.origins[key] for key in above if key in file.origins), "")
    return origin.startswith(SET)


def _found(file: File, path: PathKey, folder: Path) -> str:
    """The absolute path, or a name of the hub as it is."""
    there = seen_from(folder, path.text)
    if _is_there(there):
        return there
    here = seen_from(Path.cwd(), path.text)
    if folder != Path.cwd() and _is_there(here):
        way = (
            f"write {here}, or move the file"
            if not path.maybe_hub
            else (f"write {here} for that folder, or run this elsewhere for the hub's")
        )
        raise file.error(
            path.keys,
            f"{path.text!r} is not beside the sweep file, and relative paths of a sweep file mean "
            f"its folder (looked for {there}); there is {here}: {way}",
        )
    return path.text if path.maybe_hub else there


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists() or (
            glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None
        )
    except (OSError, ValueError):  # too long for a name, or no name: told when it is opened
        return False
