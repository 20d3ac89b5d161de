"""Read compressed files (.gz, .bz2, .xz, .zst), including files of several concatenated members.

Decompression streams. A truncated file, or one with foreign bytes after a member, is an error: the
text after the damage would otherwise be missing from the corpus without notice.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa

from trialstore.errors import InputError

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")

_BUFFER = 2**20  # bytes read, and bytes decompressed, at a time
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


def decompressed(stream: io.BufferedReader, compression: str, place: str) -> BinaryIO:
    """Return the decompressed content of a stream, as a stream.

    Closing the returned stream closes both.

    Args:
        stream: the compressed file.
        compression: one of `COMPRESSIONS`.
        place: the name of the file in messages.

    Raises:
        InputError: while reading, if the file is damaged or truncated.
    """
    content: Any
    match compression:
        case ".gz":
            content = gzip.GzipFile(fileobj=stream, mode="rb")
        case ".zst":
            content = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        case _:
            content = _Members(stream, compression)

    def damaged(error: Exception) -> InputError:
        return InputError(
            f"{place}: cannot be decompressed as {compression}: {error}; "
            "the file is damaged or truncated; download or compress it again"
        )

    return explained(_NotEmpty(content, stream), _DAMAGE, damaged, stream)


def explained(
    stream: Any,
    errors: tuple[type[Exception], ...],
    explain: Callable[[Exception], InputError],
    below: BinaryIO | None = None,
) -> io.BufferedReader:
    """Wrap a stream so that decoding errors become messages for the user.

    Operating-system errors, which carry an errno, are not caused by the file's content and pass
    through unchanged.

    Args:
        stream: an object with `read` and `close`.
        errors: exception types to translate.
        explain: turns such an exception into the InputError to raise.
        below: another stream to close together with this one.
    """
    return io.BufferedReader(_Explained(stream, errors, explain, below), _BUFFER)


class _Explained(io.RawIOBase):
    def __init__(
        self,
        stream: Any,
        errors: tuple[type[Exception], ...],
        explain: Callable[[Exception], InputError],
        below: BinaryIO | None,
    ) -> None:
        self._stream, self._errors, self._explain, self._below = stream, errors, explain, below

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content: bytes = self._stream.read(len(buffer))
        except InputError:  # already explained by the stream below
            raise
        except self._errors as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self._explain(error) from error
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            if self._below is not None:
                self._below.close()
        super().close()


class _NotEmpty:
    """A decompressor that treats a file of zero bytes as truncated.

    Even the compressed form of nothing has a header.
    """

    def __init__(self, content: Any, compressed: io.BufferedReader) -> None:
        self._content, self._compressed = content, compressed
        self._begun = False
        self.close = content.close

    def read(self, size: int) -> bytes:
        if not self._begun and not self._compressed.peek(1):
            raise EOFError("the file has 0 bytes")
        self._begun = True
        content: bytes = self._content.read(size)
        return content


class _Decoder(Protocol):
    """The interface that the decompressors of `bz2` and `lzma` share."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


class _Members:
    """The concatenated members of an .xz or .bz2 file.

    The readers of the standard library ignore any bytes after the first member that are not a
    member.
    """

    def __init__(self, stream: BinaryIO, compression: str) -> None:
        self._stream = stream
        self._is_xz = compression == ".xz"
        self._decoder = self._new()
        self._begun = False
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return 1 to `size` bytes, or no bytes at the end."""
        while True:
            if self._decoder.eof:
                self._rest = self._decoder.unused_data
                self._decoder, self._begun = self._new(), False
            if not self._begun and self._is_xz:
                self._skip_padding()
            data = b""
            if self._decoder.needs_input:
                data = self._rest or self._stream.read(_BUFFER)
                self._rest = b""
                if not data and self._begun:
                    raise EOFError("the file ends in the middle of a member")
                if not data:
                    return b""
                self._begun = True
            if content := self._decoder.decompress(data, size):
                return content

    def close(self) -> None:
        self._rest = b""

    def _new(self) -> _Decoder:
        if self._is_xz:
            return cast(_Decoder, lzma.LZMADecompressor(lzma.FORMAT_XZ))
        return cast(_Decoder, bz2.BZ2Decompressor())

    def _skip_padding(self) -> None:
        """Skip the zero bytes, in multiples of four, that the .xz format allows between members."""
        while True:
            bare = self._rest.lstrip(b"\0")
            self._rest = self._rest[(len(self._rest) - len(bare)) // 4 * 4 :]
            more = b"" if bare else self._stream.read(_BUFFER)
            if not more:
                return
            self._rest += more
