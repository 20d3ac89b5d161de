"""Temporary folders on this machine that do not outlive their process for long.

A checkpoint may be the largest thing on a node's disk. A process that is killed while it writes one
cannot clean up, so the next process that needs such a folder removes the abandoned ones.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: Lock file in a folder's root. Its owner holds the lock; the system frees it if the owner dies.
LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new, empty folder below TMPDIR, and remove it after the block.

    Folders that killed processes of this machine have left there are removed first.

    Raises:
        OSError: The folder cannot be written.
    """
    # Machines may share a TMPDIR whose file system does not share locks between them.
    prefix = f"widthlab-scratch-{os.uname().nodename}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_if_abandoned(left)
    root, lock = _locked_folder(prefix)
    try:
        folder = root / "files"
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(root, ignore_errors=True)
        lock.close()


def _locked_folder(prefix: str) -> tuple[Path, IO[bytes]]:
    while True:
        root = Path(tempfile.mkdtemp(prefix=prefix))
        with contextlib.suppress(FileNotFoundError):
            lock = (root / LOCK).open("ab")
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_nlink:
                return root, lock
            lock.close()
        # Another process took the folder for abandoned before it was locked.


def _remove_if_abandoned(root: Path) -> None:
    # An error means that the folder is another user's, in use, or already removed.
    with contextlib.suppress(OSError), (root / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(root, ignore_errors=True)
