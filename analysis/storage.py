"""Where trial directories live: whole objects under keys, on disk or in an object store.

Object stores have no rename, append or lock, so nothing here needs one: an object is put whole,
read whole and listed. A reader never sees half an object.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from analysis.errors import InputError


class Storage(Protocol):
    """Objects under keys such as ``trials/0a1b/result.json``; a key has no leading slash."""

    @property
    def url(self) -> str:
        """The root as a user would write it."""

    def put(self, key: str, data: bytes) -> None:
        """Store an object whole, replacing one of that key. Raises OSError."""

    def put_file(self, key: str, path: Path) -> None:
        """Store a local file whole. Raises OSError."""

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError where there is none."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy the object to a local file. Raises FileNotFoundError where there is none."""

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys of all objects below the folder `prefix`, at any depth; empty if none."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def child(self, folder: str) -> "Storage":
        """The same storage rooted at a folder of this one."""


def open_storage(location: str | Path) -> Storage:
    """A local path, ``file://`` URL, or any URL that pyarrow's filesystems open (s3, gs, hdfs).

    Nothing is created. Raises InputError for a URL that no filesystem can open.
    """
    text = str(location)
    if text.startswith("file://"):
        return LocalStorage(Path(text.removeprefix("file://")))
    if "://" not in text:
        if not text:
            raise InputError("storage: the path is empty; use . for the current folder")
        try:
            return LocalStorage(Path(text))
        except RuntimeError as error:  # of expanduser: ~somebody who is not there
            raise InputError(f"storage {text!r}: {error}") from error
    from pyarrow import ArrowException, fs

    try:
        filesystem, root = fs.FileSystem.from_uri(text)
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"storage {text!r} cannot be opened: {error}; "
            "use a local path or a URL such as s3://bucket/folder"
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

    def path(self, key: str = "") -> Path:
        """Where the object lies as a file."""
        return self.root / _checked(key)

    def put(self, key: str, data: bytes) -> None:
        with self._replacing(key) as temporary:
            temporary.write_bytes(data)

    def put_file(self, key: str, path: Path) -> None:
        with self._replacing(key) as temporary:
            shutil.copyfile(path, temporary)

    def get(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except NotADirectoryError as error:  # a file lies where a folder would: no such object
            raise FileNotFoundError(*error.args, error.filename) from error

    def get_file(self, key: str, path: Path) -> None:
        shutil.copyfile(self.path(key), path)

    def list(self, prefix: str = "") -> list[str]:
        start = self.path(prefix)
        # Unfinished puts are dot files; a folder may vanish while it is being walked.
        return sorted(
            (Path(folder) / name).relative_to(self.root).as_posix()
            for folder, _, names in os.walk(start)
            for name in names
            if not name.startswith(".")
        )

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
    def _replacing(self, key: str) -> Iterator[Path]:
        """A temporary file beside the target, made durable and moved over it on success."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


class ArrowStorage:
    """Any pyarrow filesystem; its output streams make an object visible when they are closed."""

    def __init__(self, filesystem: object, root: str, url: str) -> None:
        from pyarrow import fs

        assert isinstance(filesystem, fs.FileSystem)
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._url = url.rstrip("/")

    @property
    def url(self) -> str:
        return self._url

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def get(self, key: str) -> bytes:
        with self._filesystem.open_input_stream(self._path(key)) as stream:
            data: bytes = stream.read()
        return data

    def get_file(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def list(self, prefix: str = "") -> list[str]:
        from pyarrow import fs

        selector = fs.FileSelector(self._path(prefix), recursive=True, allow_not_found=True)
        skip = len(self._root) + 1
        return sorted(
            info.path[skip:]
            for info in self._filesystem.get_file_info(selector)
            if info.type == fs.FileType.File
        )

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(key))

    def child(self, folder: str) -> "ArrowStorage":
        folder = _checked(folder)
        # s3://bucket/folder?region=x: whoever opens the child's URL needs the options too.
        base, mark, options = self._url.partition("?")
        url = f"{base.rstrip('/')}/{folder}{mark}{options}"
        return ArrowStorage(self._filesystem, f"{self._root}/{folder}", url)

    def _path(self, key: str) -> str:
        return f"{self._root}/{_checked(key)}".rstrip("/")


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
    if key.startswith("/") or ".." in parts:
        raise ValueError(f"storage key {key!r} must be relative and stay inside the root")
    return key
