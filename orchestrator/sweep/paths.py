"""Resolve the relative paths of a sweep.

Paths in the file start from the file's folder, paths given with `--set` from the current folder.
They become absolute when the file is read, so that `plan`, `run` and every process of a trial use
the same files.
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
#: Keys with one path or a list. Other values there, such as {split: validation}, are not paths.
PATHS = (("corpus", "paths"), ("corpus", "heldout"))
#: (section, kind, key) of keys with a folder or the name of a repository on the hub.
NAMES = (("corpus", "hub", "dataset"), ("tokenizer", "pretrained", "path"))


@dataclass(frozen=True)
class PathKey:
    """A path in a sweep.

    `keys` lead to it. `maybe_hub` is whether its text can also be the OWNER/NAME of a repository.
    """

    keys: Keys
    text: str
    maybe_hub: bool

    @property
    def place(self) -> str:
        """The key as users write it, such as corpus.paths."""
        return ".".join(map(str, self.keys[:2]))

    @property
    def relative(self) -> bool:
        """Whether the path starts from some folder: neither empty, absolute nor from home."""
        return bool(self.text.strip()) and not self.text.startswith(("/", "~"))


def paths_of(config: SweepConfig) -> Iterator[PathKey]:
    """Yield every path of a sweep, section by section."""
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
    """Return the sweep with absolute paths.

    Args:
        file: The file that was read, for its messages and to tell which paths `--set` gave.
        config: The sweep.
        folder: Folder of the sweep file.

    Raises:
        InputError: A path does not exist in `folder` but exists in the current folder.
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
    """Whether `--set` gave a key, by the origin of the key or of its nearest known parent."""
    above = (keys[:length] for length in range(len(keys), 0, -1))
    origin = next((file.origins[key] for key in above if key in file.origins), "")
    return origin.startswith(SET)


def _found(file: File, path: PathKey, folder: Path) -> str:
    """The absolute path, or the unchanged name of a repository on the hub."""
    there = seen_from(folder, path.text)
    if _is_there(there):
        return there
    here = seen_from(Path.cwd(), path.text)
    if folder != Path.cwd() and _is_there(here):
        way = (
            f"write {here}, or move the file"
            if not path.maybe_hub
            else f"write {here} for that folder, or run from another folder for the hub's"
        )
        raise file.error(
            path.keys,
            f"{path.text!r} does not exist in the folder of the sweep file, where relative paths "
            f"start (looked for {there}), but {here} exists: {way}",
        )
    return path.text if path.maybe_hub else there


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists() or (
            glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None
        )
    except (OSError, ValueError):  # not a valid name; opening it reports that
        return False
