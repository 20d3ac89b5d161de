"""Where trial directories live: whole objects under keys, on disk or in an object store.

Object stores have no rename, append or lock, so nothing here needs one: an object is put whole,
read whole and listed. A reader never sees half an object.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol
from urllib.parse import quote

from trialstore.errors import FinalError, InputError
from trialstore.storage_url import (
    FILE,
    REMEDY,
    file_url_path,
    in_one_request,
    refuse_fragment,
    refuse_secrets,
)

#: What a file system says when nothing more fits on it, or within a quota.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: What a disk or a file system over a network says that does not answer.
NO_ANSWER = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
})  # fmt: skip
#: The same of object stores, after pyarrow has asked several times: S3's errors and Google's have
#: no number there, only names.
STORE_AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|"
    r"REQUEST_TIMEOUT|UNKNOWN \(HTTP status (429|5\d\d)\))|"
    r"google::cloud::Status\((UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|ABORTED)"
)
#: What file systems say that know no second name for a file: FAT, buckets mounted as folders.
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
#: Bytes read at a time: a checkpoint may be larger than memory.
CHUNK = 2**20
#: How often a folder may vanish between its making and its use before something else is wrong.
FOLDER_TRIES = 10
#: What a put that was cut off leaves beside the object it was to become.
UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")


class StorageFullError(FinalError, OSError):
    """A storage has no room for an object, and no other attempt at putting it will find any."""


def is_away(error: BaseException) -> bool:
    """Whether an error says that a storage does not answer, and so nothing of what was asked."""
    if not isinstance(error, OSError) or isinstance(error, StorageFullError):
        return False
    if error.errno is not None:
        return error.errno in NO_ANSWER
    return STORE_AWAY.search(str(error)) is not None


class Storage(Protocol):
    """Objects under keys such as ``trials/0a1b/result.json``; a key has no leading slash."""

    @property
    def url(self) -> str:
        """The root as a user would write it."""

    @property
    def name(self) -> str:
        """The last folder of the root."""

    def url_of(self, key: str) -> str:
        """An object as a user would write it."""

    def put(self, key: str, data: bytes) -> None:
        """Store an object whole, replacing one of that key. Raises OSError, and of these
        StorageFullError where there is no room for it."""

    def put_new(self, key: str, data: bytes) -> None:
        """Store an object whole where there is none. Raises FileExistsError where there is one.

        On a file system with hard links nobody can come in between; anything else is asked first.
        """

    def put_file(self, key: str, path: Path) -> None:
        """Store a local file whole. Raises as `put` does."""

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError where there is none."""

    def open(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """The object as a stream to read. Raises FileNotFoundError where there is none."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy the object to a local file. Raises FileNotFoundError where there is none."""

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys of all objects below the folder `prefix`, at any depth; empty if none.

        Raises OSError where it cannot be known: what is not seen is never taken for not there.
        """

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every object below the folder `prefix`, by key."""

    def unfinished(self, prefix: str = "", older_than_s: float = 0.0) -> dict[str, int]:
        """Bytes by key of what puts below a folder have left that were cut off, by SIGKILL for one,
        or are being made, if nobody has written to it for that long. It is no object, and never
        listed; `delete` removes it, and then whoever was putting there fails."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def child(self, folder: str) -> "Storage":
        """The same storage rooted at a folder of this one."""


def open_storage(location: str | Path) -> Storage:
    """A local path, ``file://`` URL, or any URL that pyarrow's filesystems open (s3, gs, hdfs).

    Nothing is created. Raises InputError for a URL that no filesystem can open, and OSError where
    it does not answer: pyarrow asks S3 for the region of a bucket whose URL does not tell it.
    """
    text = str(location)
    refuse_secrets(text)
    if text.startswith(FILE):
        return LocalStorage(file_url_path(text))
    if "://" not in text:
        if not text:
            raise InputError("storage: the path is empty; use . for the current folder")
        try:
            # `./~x` is a folder here, and a Path of it has lost the `./`.
            return LocalStorage(Path(text) if text.startswith("~") else Path(text).absolute())
        except RuntimeError as error:  # of expanduser: ~somebody who is not there
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
        raise InputError(f"storage {text!r} names no bucket or folder; add one")
    return ArrowStorage(filesystem, root, text)


class LocalStorage:
    """A folder of the local or a shared file system."""

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
        """Where the object lies as a file."""
        return self.root / _checked(key)

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
        except NotADirectoryError as error:  # a file lies where a folder would: no such object
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
        # Object stores have no empty folders; leave none behind here either.
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
        """A temporary file beside the target, made durable and put in its place on success."""
        target = self.path(key)
        with naming_a_full_disk(target, nbytes, StorageFullError):
            temporary = _temporary_beside(target)
            try:
                yield temporary
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                os.chmod(temporary, 0o644)  # mkstemp makes it private
                place(temporary, target)
                _sync_folder(target.parent)
            finally:
                temporary.unlink(missing_ok=True)


class ArrowStorage:
    """An object store, where an object is visible when its stream is closed; or any other of
    pyarrow's filesystems. On those that show a file while it is written (HDFS), so does this."""

    def __init__(self, filesystem: object, root: str, url: str) -> None:
        from pyarrow import fs

        assert isinstance(filesystem, fs.FileSystem)
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._url = url.rstrip("/")

    @property
    def url(self) -> str:
        return self._url

    @property
    def name(self) -> str:
        return self._root.rpartition("/")[2]

    def url_of(self, key: str) -> str:
        # s3://bucket/folder?region=x: whoever opens it needs the options too.
        base, mark, options = self._url.partition("?")
        return f"{base.rstrip('/')}/{quote(_checked(key))}{mark}{options}"

    def put(self, key: str, data: bytes) -> None:
        with self._output(self._path(key)) as stream:
            stream.write(data)

    def put_new(self, key: str, data: bytes) -> None:
        from pyarrow import fs

        path = self._path(key)
        if self._filesystem.get_file_info(path).type != fs.FileType.NotFound:
            raise FileExistsError(errno.EEXIST, "there is one already", path)
        self.put(key, data)

    def put_file(self, key: str, path: Path) -> None:
        with path.open("rb") as source, self._output(self._path(key)) as stream:
            try:
                shutil.copyfileobj(source, stream, CHUNK)
            except BaseException:
                # Closing the stream makes an object of what has been written: it cannot be told
                # to give up (apache/arrow#40502).
                with contextlib.suppress(OSError):
                    stream.close()
                    self.delete(key)
                raise

    def get(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def open(self, key: str) -> AbstractContextManager[IO[bytes]]:
        stream: AbstractContextManager[IO[bytes]]
        stream = self._filesystem.open_input_stream(self._path(key))
        return stream

    def get_file(self, key: str, path: Path) -> None:
        with self.open(key) as stream, naming_a_full_disk(path), path.open("wb") as target:
            shutil.copyfileobj(stream, target, CHUNK)

    def list(self, prefix: str = "") -> list[str]:
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        from pyarrow import fs

        selector = fs.FileSelector(self._path(prefix), recursive=True, allow_not_found=True)
        skip = len(self._root) + 1
        return {
            info.path[skip:]: info.size
            for info in self._filesystem.get_file_info(selector)
            if info.type == fs.FileType.File
        }

    def unfinished(self, prefix: str = "", older_than_s: float = 0.0) -> dict[str, int]:
        """Nothing: an upload that was cut off is no object. A bucket's own rules say when it drops
        the pieces."""
        return {}

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(key))

    def child(self, folder: str) -> "ArrowStorage":
        url = self.url_of(folder)
        return ArrowStorage(self._filesystem, f"{self._root}/{folder}", url)

    def _path(self, key: str) -> str:
        return f"{self._root}/{_checked(key)}".rstrip("/")

    def _output(self, path: str) -> Any:
        """A stream to write an object to. Folders are made only where one is missed: on S3 that
        takes a request for every level, for markers that all trials would put at once."""
        try:
            return self._filesystem.open_output_stream(path)
        except FileNotFoundError:
            self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            return self._filesystem.open_output_stream(path)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, unfinished ones too. Raises OSError for what cannot be listed:
    a trial whose checkpoints are not seen would begin anew."""

    def unless_gone(error: OSError) -> None:
        # No folder; a file where one would be; or one that has vanished while it was walked.
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for place, _, names in os.walk(folder, onerror=unless_gone):
        yield from (Path(place, name) for name in names)


def _temporary_beside(target: Path) -> Path:
    """A new empty file in the folder of `target`, which is made if need be. Whoever deletes the
    last object of a folder takes the folder too, and may do so in between."""
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
    except FileNotFoundError:  # it has gone since it was listed
        return None


def _place_new(temporary: Path, target: Path) -> None:
    """Give a file its name, unless that is taken. Raises FileExistsError."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        os.replace(temporary, target)


@contextlib.contextmanager
def naming_a_full_disk(
    path: Path, nbytes: int | None = None, kind: type[OSError] = OSError
) -> Iterator[None]:
    """Has the error of a full disk say what was written where, what it needs and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        free = _free_bytes(path)
        needs = "" if nbytes is None else f" needs {nbytes:,} bytes and"
        raise kind(
            error.errno,
            f"{os.strerror(error.errno)}: {path.name}{needs} finds {free:,} free in {path.parent}; "
            "free some, and the same command goes on",
        ) from error


def _free_bytes(path: Path) -> int:
    """What is left on the disk of a file that may not be there, nor its folder."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(there).free


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a manifest must not outlive what it lists."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(key: str) -> str:
    """Keys never leave the root: a storage someone else can write is not trusted."""
    parts = PurePosixPath(key).parts
    if key.startswith("/") or ".." in parts or "\0" in key:
        raise ValueError(f"storage key {key!r} must be relative and stay inside the root")
    return key
