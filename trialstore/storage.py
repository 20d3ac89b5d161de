"""Where trial directories live: whole objects under keys, on disk or in an object store.

widthlab puts, gets, lists and deletes whole objects. It uses no rename, append or lock, because
object stores have none. A reader never sees half an object, except on HDFS.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Protocol

from trialstore.arrow_storage import CHUNK as CHUNK
from trialstore.arrow_storage import ArrowStorage as ArrowStorage
from trialstore.errors import InputError
from trialstore.local_storage import LocalStorage as LocalStorage
from trialstore.storage_errors import NO_ROOM as NO_ROOM
from trialstore.storage_errors import StorageFullError as StorageFullError
from trialstore.storage_errors import is_away as is_away
from trialstore.storage_errors import naming_a_full_disk as naming_a_full_disk
from trialstore.storage_errors import unreadable as unreadable
from trialstore.storage_url import (
    FILE,
    REMEDY,
    file_url_path,
    in_one_request,
    refuse_fragment,
    refuse_secrets,
)


class Storage(Protocol):
    """Objects under keys such as ``trials/0a1b/result.json``.

    A key is a relative path. Every method raises ValueError for a key that leaves the root, and
    OSError where the storage does not answer (`is_away`) or refuses.
    """

    @property
    def url(self) -> str:
        """The path or URL of the root, as a user would write it. `open_storage` opens it again."""

    @property
    def name(self) -> str:
        """The last folder of the root, without URL escapes."""

    def url_of(self, key: str) -> str:
        """Return the path or URL of an object or folder. `open_storage` opens a folder's."""

    def put(self, key: str, data: bytes) -> None:
        """Store an object whole; replace an older one. Raises StorageFullError on a full disk."""

    def put_new(self, key: str, data: bytes) -> None:
        """Store an object whole. Raises FileExistsError if the key is taken.

        Atomic on a file system with hard links. Elsewhere the storage looks, then writes: two
        processes that call it at the same moment can both succeed.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Store a copy of a local file. Like `put`, for files larger than memory."""

    def get(self, key: str) -> bytes:
        """Return the object's bytes. Raises FileNotFoundError if there is no such object."""

    def open(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """Open an object for reading. Raises FileNotFoundError if there is no such object."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy the object to a local file. Raises FileNotFoundError if there is no such object."""

    def list(self, prefix: str = "") -> list[str]:
        """Return the sorted keys of all objects below the folder `prefix`, at any depth.

        Raises OSError rather than returning a shorter list when the storage cannot answer.
        """

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every object below the folder `prefix`, by key."""

    def unfinished(self, prefix: str = "", older_than_s: float = 0.0) -> dict[str, int]:
        """Return the size in bytes of every temporary file below the folder `prefix`, by key.

        A put that is running, or that SIGKILL interrupted, has such a file. `list` never shows
        it. `delete` removes it; a put that is still running then fails.

        Args:
            older_than_s: Leave out files that were written to in these last seconds.
        """

    def delete(self, key: str) -> None:
        """Remove an object. A missing object is no error."""

    def child(self, folder: str) -> "Storage":
        """Open a folder of this storage as a storage."""


def open_storage(location: str | Path) -> Storage:
    """Open a storage. Creates nothing.

    Args:
        location: A local path, a ``file://`` URL, or a URL that pyarrow opens, with its options:
            ``s3://bucket/runs?region=eu-central-1``, ``gs://``, ``abfs://``, ``hdfs://``,
            ``viewfs://``.

    Raises:
        InputError: The location is empty, holds a password, or no file system opens it.
        OSError: The storage does not answer. pyarrow asks S3 for the region of a bucket whose
            URL has none.
    """
    text = str(location)
    refuse_secrets(text)
    if text.startswith(FILE):
        return LocalStorage(file_url_path(text))
    if "://" not in text:
        if not text:
            raise InputError("storage: the path is empty; use . for the current folder")
        try:
            # `./~x` is a folder named ~x. Path("./~x") loses the `./` and means a home folder.
            return LocalStorage(Path(text) if text.startswith("~") else Path(text).absolute())
        except RuntimeError as error:  # expanduser: no user of that name
            raise InputError(f"storage {text!r}: {error}") from error
    refuse_fragment(text)
    from pyarrow import ArrowException, fs

    try:
        filesystem, root = fs.FileSystem.from_uri(in_one_request(text))
    except (ArrowException, OSError, ValueError) as error:
        if is_away(error):
            raise
        why = str(error).replace(in_one_request(text), text)
        raise InputError(
            f"storage {text!r} cannot be opened: {why}; "
            f"use a local path or a URL such as s3://bucket/folder, and {REMEDY}"
        ) from error
    if not root.strip("/"):
        raise InputError(
            f"storage {text!r} names no bucket or folder; add one, as in s3://bucket/folder"
        )
    return ArrowStorage(filesystem, root, text)
