"""Files whose content has been compared with its hash need not be read again until they change.

What was compared is noted by inode, size and times: whoever changes a file changes its `ctime`,
which no ordinary user can set. The device is no part of it: every node that mounts a file system
has a number of its own for it. Notes are kept only where nobody but this user can write.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

NOTES = "verified"


def verified_once(path: Path, sha256: str, root: Path, digest: Callable[[], str]) -> bool:
    """Whether a file has the content of that hash; `digest` reads it where no note says so.

    Notes lie in `root`, or in the user's own cache where others can write to `root`.
    """
    notes = _private(root) or _private(Path.home() / ".cache" / "widthlab")
    stat = path.stat()
    seen = [
        str(path.absolute()), sha256,
        stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns,
    ]  # fmt: skip
    note = None if notes is None else notes / NOTES / f"{sha256}.json"
    if note is not None and _noted(note) == seen:
        return True
    if digest() != sha256:
        return False
    if note is not None:
        _write(note, seen)
    return True


def _private(folder: Path) -> Path | None:
    """The folder, where it is there and only this user can write to it."""
    try:
        stat = folder.stat()
    except OSError:
        return None
    return folder if stat.st_uid == os.getuid() and not stat.st_mode & 0o022 else None


def _noted(note: Path) -> object:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(note: Path, seen: object) -> None:
    try:
        note.parent.mkdir(mode=0o700, exist_ok=True)
        # In a folder of its own, which goes whatever fails.
        with tempfile.TemporaryDirectory(dir=note.parent) as folder:
            written = Path(folder) / note.name
            written.write_text(json.dumps(seen), encoding="utf-8")
            os.replace(written, note)
    except OSError as error:  # it is read again next time
        log.info("%s: %s", note, error)
