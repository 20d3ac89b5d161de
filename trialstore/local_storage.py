"""Objects as files of a local or a shared file system.

A put writes a temporary file beside the target, syncs it and renames it. A reader sees the old
object or the new one.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from trialstore.storage_errors import StorageFullError, naming_a_full_disk
from trialstore.storage_url import checked_key

#: File systems without hard links (FAT, buckets mounted as folders) fail with one of these.
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
#: Attempts to use a new folder before another process deletes it.
FOLDER_TRIES = 10
#: The name of a temporary file that an interrupted put left behind.
UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")


class LocalStorage:
    """A folder of a local or a shared file system, as a `trialstore.storage.Storage`.

    Args:
        root: The folder. It need not exist. A leading ``~`` is expanded.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @property
    def url(self) -> str:
        return str(self.root)

    @property
    def name(self) -> str:
        return self.root.name

    def url_of(self, key: str) -> str:
        return str(self.path(key))

    def path(self, key: str = "") -> Path:
        """Return the path of the object's file."""
        return self.root / checked_key(key)

    def put(self, key: str, data: bytes) -> None:
        with self._whole(key, len(data), os.replace) as temporary:
            temporary.write_bytes(data)

    def put_new(self, key: str, data: bytes) -> None:
        with self._whole(key, len(data), _place_new) as temporary:
            temporary.write_bytes(data)

    def put_file(self, key: str, path: Path) -> None:
        with self._whole(key, path.stat().st_size, os.replace) as temporary:
            shutil.copyfile(path, temporary)

    def get(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def open(self, key: str) -> IO[bytes]:
        try:
            return self.path(key).open("rb")
        except NotADirectoryError as error:  # a file has the name of the folder: no such object
            raise FileNotFoundError(*error.args, error.filename) from error

    def get_file(self, key: str, path: Path) -> None:
        with naming_a_full_disk(path, self.path(key).stat().st_size):
            shutil.copyfile(self.path(key), path)

    def list(self, prefix: str = "") -> list[str]:
        # Unfinished puts are dot files.
        return sorted(
            path.relative_to(self.root).as_posix()
            for path in _files(self.path(prefix))
            if not path.name.startswith(".")
        )

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found = {key: _stat(self.path(key)) for key in self.list(prefix)}
        return {key: about.st_size for key, about in found.items() if about}

    def unfinished(self, prefix: str = "", older_than_s: float = 0.0) -> dict[str, int]:
        latest = time.time() - older_than_s
        found = {
            path.relative_to(self.root).as_posix(): _stat(path)
            for path in sorted(_files(self.path(prefix)))
            if UNFINISHED.fullmatch(path.name)
        }
        return {
            key: about.st_size for key, about in found.items() if about and about.st_mtime <= latest
        }

    def delete(self, key: str) -> None:
        path = self.path(key)
        path.unlink(missing_ok=True)
        # Object stores have no empty folders. Leave none behind here either.
        for folder in path.parents:
            if folder != self.root and self.root not in folder.parents:
                break
            try:
                folder.rmdir()
            except OSError:
                break

    def child(self, folder: str) -> "LocalStorage":
        return LocalStorage(self.path(folder))

    @contextlib.contextmanager
    def _whole(self, key: str, nbytes: int, place: Callable[[Path, Path], None]) -> Iterator[Path]:
        """Yield a temporary file beside the target; on success sync it and `place` it."""
        target = self.path(key)
        with naming_a_full_disk(target, nbytes, StorageFullError):
            temporary = _temporary_beside(target)
            try:
                yield temporary
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                os.chmod(temporary, 0o644)  # mkstemp creates files with mode 0600
                place(temporary, target)
                _sync_folder(target.parent)
            finally:
                temporary.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    """Return every file below a folder, temporary files too.

    Raises OSError if a folder cannot be listed. An empty answer would look like a trial without
    checkpoints, and the trial would start again from step 0.
    """

    def unless_gone(error: OSError) -> None:
        # The folder never existed, is a file, or was deleted during the walk.
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for place, _, names in os.walk(folder, onerror=unless_gone):
        yield from (Path(place, name) for name in names)


def _temporary_beside(target: Path) -> Path:
    """Create an empty file in the folder of `target`; create the folder too.

    `LocalStorage.delete` removes empty folders. Another process may remove this one between its
    creation and its use, so try again.
    """
    for _ in range(FOLDER_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return _made_beside(target)
    return _made_beside(target)


def _made_beside(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    return Path(name)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # deleted after it was listed
        return None


def _place_new(temporary: Path, target: Path) -> None:
    """Move a file to `target`. Raises FileExistsError if there is a file already."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(temporary, target)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable: a manifest must not survive the files that it lists."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
