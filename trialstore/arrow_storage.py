"""Objects in one of pyarrow's file systems: S3, Google Cloud Storage, Azure, HDFS.

pyarrow has no conditional put (`If-None-Match`), so `ArrowStorage.put_new` looks before it writes.
"""

import contextlib
import errno
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from trialstore.storage_errors import naming_a_full_disk
from trialstore.storage_url import checked_key

#: Bytes copied at a time: a checkpoint may be larger than memory.
CHUNK = 2**20


class ArrowStorage:
    """A folder of a pyarrow file system, as a `trialstore.storage.Storage`.

    In an object store an object becomes visible when its stream is closed. HDFS shows a file while
    it is written, so a reader there may see half an object.

    Args:
        filesystem: A `pyarrow.fs.FileSystem`.
        root: The folder within it, such as ``bucket/runs``.
        url: The URL that `open_storage` opens as the same folder.
    """

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
        # Options stay at the end: s3://bucket/folder/KEY?region=x.
        base, mark, options = self._url.partition("?")
        return f"{base.rstrip('/')}/{quote(checked_key(key))}{mark}{options}"

    def put(self, key: str, data: bytes) -> None:
        with self._output(self._path(key)) as stream:
            stream.write(data)

    def put_new(self, key: str, data: bytes) -> None:
        from pyarrow import fs

        path = self._path(key)
        if self._filesystem.get_file_info(path).type != fs.FileType.NotFound:
            raise FileExistsError(errno.EEXIST, "the object exists already", path)
        self.put(key, data)

    def put_file(self, key: str, path: Path) -> None:
        with path.open("rb") as source, self._output(self._path(key)) as stream:
            try:
                shutil.copyfileobj(source, stream, CHUNK)
            except BaseException:
                # pyarrow cannot abort a stream (apache/arrow#40502). Closing it stores the bytes
                # written so far as an object, which is then deleted.
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
        """Nothing: an interrupted upload is no object. The bucket's lifecycle rules remove it."""
        return {}

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(key))

    def child(self, folder: str) -> "ArrowStorage":
        url = self.url_of(folder)
        return ArrowStorage(self._filesystem, f"{self._root}/{folder}", url)

    def _path(self, key: str) -> str:
        return f"{self._root}/{checked_key(key)}".rstrip("/")

    def _output(self, path: str) -> Any:
        """Open a stream to write an object.

        Create folders only if the file system asks for them. On S3 a folder is a marker object:
        one request for every level, repeated by every trial.
        """
        try:
            return self._filesystem.open_output_stream(path)
        except FileNotFoundError:
            self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            return self._filesystem.open_output_stream(path)
