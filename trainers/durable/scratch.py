"""Folders on this machine for what is only passing through, gone with whoever made them.

A checkpoint may be larger than all else on a node's disk. A process that is killed while it writes
one clears nothing away, and every such end would leave its folder there for ever.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: In a folder's root; held by its owner, and freed by the system should the owner die.
LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new, empty folder below TMPDIR for the time of the block.

    What processes of this machine have left there that were killed is removed first. Raises
    OSError where nothing can be written.
    """
    # Machines may share a TMPDIR, and its file system keep locks to each of them.
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
        # Before it was locked another process took it for abandoned.


def _remove_if_abandoned(root: Path) -> None:
    # An error says that it is another user's, that its owner is at work, or that it is gone.
    with contextlib.suppress(OSError), (root / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(root, ignore_errors=True)
