"""Remember which files matched their hash, so that they are not read again until they change.

A note records inode, size and times. Changing a file changes its `ctime`, which ordinary users
cannot set. The device number is excluded, because each node that mounts a file system has its own.
Notes are kept only in folders that no other user can write to.
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
    """Return whether the content of a file matches a hash, reading it only if no note says so.

    Args:
        path: the file.
        sha256: the expected hash.
        root: the folder for notes; if other users can write to it, the user's own cache is used.
        digest: computes the file's hash.
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
    """Return the folder if it exists and only this user can write to it."""
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
        # The temporary folder is removed even if writing fails.
        with tempfile.TemporaryDirectory(dir=note.parent) as folder:
            written = Path(folder) / note.name
            written.write_text(json.dumps(seen), encoding="utf-8")
            os.replace(written, note)
    except OSError as error:  # without a note, the file is hashed again next time
        log.info("%s: %s", note, error)
