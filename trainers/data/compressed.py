"""Reading compressed files: .gz, .bz2, .xz and .zst, several members one after the other.

Everything is streamed, and a file that ends too early, or goes on with something else, is an
error: what follows damage would be missing from a corpus without a word.
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
    """The content of a compressed stream, itself a stream; closing it closes both.

    `compression` is one of `COMPRESSIONS`, and `place` names the file in messages.
    Reading raises InputError where the file is damaged or cut short.
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
            "the file is damaged or cut short: fetch or pack it anew"
        )

    return told(_NotEmpty(content, stream), _DAMAGE, damaged, stream)


def told(
    stream: Any,
    errors: tuple[type[Exception], ...],
    explain: Callable[[Exception], InputError],
    below: BinaryIO | None = None,
) -> io.BufferedReader:
    """A stream whose reading raises what `explain` makes of `errors`; closing it closes `below`.

    Errors of the system, which have a number, are no fault of the file and pass.
    """
    return io.BufferedReader(_Told(stream, errors, explain, below), _BUFFER)


class _Told(io.RawIOBase):
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
        except InputError:  # of a stream below
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
    """A decompressor that takes no bytes at all for a file that was cut short: even a
    compressed nothing has a header."""

    def __init__(self, content: Any, compressed: io.BufferedReader) -> None:
        self._content, self._compressed = content, compressed
        self._begun = False
        self.close = content.close

    def read(self, size: int) -> bytes:
        if not self._begun and not self._compressed.peek(1):
            raise EOFError("the file is empty")
        self._begun = True
        content: bytes = self._content.read(size)
        return content


class _Decoder(Protocol):
    """What `bz2` and `lzma` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


class _Members:
    """The members of an .xz or .bz2 file. The modules' own readers take what follows the first
    member for padding, whatever it is."""

    def __init__(self, stream: BinaryIO, compression: str) -> None:
        self._stream = stream
        self._is_xz = compression == ".xz"
        self._decoder = self._new()
        self._begun = False
        self._rest = b""

    def read(self, size: int) -> bytes:
        """At least one byte and at most `size`, or none at the end."""
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
        """Members of an .xz file may stand apart by zero bytes, in fours."""
        while True:
            bare = self._rest.lstrip(b"\0")
            self._rest = self._rest[(len(self._rest) - len(bare)) // 4 * 4 :]
            more = b"" if bare else self._stream.read(_BUFFER)
            if not more:
                return
            self._rest += more
