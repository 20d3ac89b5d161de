"""A corpus of the user's own files: prose, code, or tables with a text column.

Documents are held out whole, by a hash of their content. A lone `.txt` or `.md` file is cut in
two instead, for want of another document.
"""

import glob
import io
import logging
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from analysis.errors import InputError
from trainers.data import sources
from trainers.data.documents import (
    HELD_OUT_SHARE,
    Corpus,
    Document,
    Split,
    content_digest,
    fingerprint_of,
    held_out_cut,
    split_of,
)
from trainers.data.paths import user_path
from trainers.data.readers import PROSE, TABLES, WHOLE, SourceFile, read_file

log = logging.getLogger(__name__)

KNOWN = (*WHOLE, *TABLES, ".zip")
#: What `zipfile` raises for archives that are damaged, encrypted or packed in an unknown way.
UNREADABLE_ZIP = (
    OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError,
)  # fmt: skip


class TextCorpus(Corpus):
    """Documents in the order of the configured paths, and of names within a folder or zip."""

    def __init__(self, config: sources.TextFiles) -> None:
        """Reads everything once. Raises InputError for what cannot be read or split."""
        self._column = config.column
        self._files = tuple(find_files(config.paths))
        self._lone = self._files[0] if len(self._files) == 1 else None
        if self._lone and self._lone.suffix not in PROSE:
            self._lone = None
        self._total_bytes = 0
        self._lowest, self._highest = 2**64, -1
        self._fingerprint = fingerprint_of("text/1", self._measured())
        self._cut = 0 if self._lone else self._find_cut(config.paths)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    def assigned(self) -> Iterator[tuple[Split, Document]]:
        if self._lone:
            head, tail = self._all()
            yield "train", head
            yield "heldout", tail
            return
        for document in self._all():
            yield split_of(document.text, self._cut), document

    def _all(self) -> Iterator[Document]:
        if self._lone:
            yield from cut_tail(next(read_file(self._lone, self._column), None), self._lone)
            return
        for file in self._files:
            yield from read_file(file, self._column)

    def _measured(self) -> Iterator[Document]:
        for document in self._all():
            self._total_bytes += len(document.text.encode())
            digest = content_digest(document.text)
            self._lowest, self._highest = min(self._lowest, digest), max(self._highest, digest)
            yield document

    def _find_cut(self, paths: list[str]) -> int:
        if not self._total_bytes:
            raise InputError(f"corpus text: paths {paths} hold no text; every document is empty")
        try:
            return held_out_cut(self._lowest, self._highest)
        except ValueError as error:
            raise InputError(
                f"corpus text: paths {paths} hold one distinct document, and whole documents are "
                "held out; give at least two, or one .txt or .md file, the end of which is held "
                "out instead"
            ) from error


def cut_tail(document: Document | None, file: SourceFile) -> tuple[Document, Document]:
    """A lone text as two: its last tenth, from a blank line or else a line on, is held out."""
    if document is None:
        raise InputError(f"{file.place}: the file is empty; give one that holds text")
    text = document.text
    aim = int(len(text) * (1 - HELD_OUT_SHARE))
    for boundary in ("\n\n", "\n"):
        at = text.find(boundary, aim) + len(boundary)
        if len(boundary) <= at < len(text):
            return Document(f"{file.name}#head", text[:at]), Document(
                f"{file.name}#tail", text[at:]
            )
    raise InputError(
        f"{file.place}: a lone text of {len(text)} characters with no line break in its last "
        f"{HELD_OUT_SHARE:.0%} cannot be split for held-out evaluation; "
        "break it into lines, or give several files"
    )


# --- finding files -------------------------------------------------------------------------


def find_files(paths: list[str]) -> Iterator[SourceFile]:
    """The files that paths, folders and globs name, each once. Raises InputError."""
    seen: set[Path] = set()
    for path in paths:
        found = False
        for name, file in _expand(path):
            found = True
            if (resolved := _resolved(file)) not in seen:
                seen.add(resolved)
                yield from _members(name, file)
        if not found:
            raise InputError(
                f"corpus text: path {path!r} names no file of a known kind ({' '.join(KNOWN)})"
            )


def _resolved(file: Path) -> Path:
    try:
        return file.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: symbolic links that form a loop
        raise InputError(f"{file}: cannot be read: {error}; remove it") from error


def _expand(path: str) -> Iterator[tuple[str, Path]]:
    """Files of one configured path with the names that enter the fingerprint.

    Names are relative to what the user pointed at, so that a corpus may be moved.
    """
    given = user_path("corpus text", path)
    if given.is_dir():
        yield from _walk(given, given)
    elif given.exists():
        yield _known(given.name, given)
    elif glob.has_magic(path):
        matches = sorted(map(Path, glob.glob(str(given), recursive=True)))
        fixed = _fixed_part(given)
        for match in matches:
            if match.is_dir():
                continue  # data/** matches folders and then what is in them
            yield _known(match.relative_to(fixed).as_posix(), match)
    else:
        raise InputError(
            f"corpus text: path {path!r} does not exist (looked for {given.absolute()})"
        )


def _fixed_part(pattern: Path) -> Path:
    """The leading folders of a glob that hold no wildcard."""
    plain = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts[:-1]:
        name = re.sub(r"\[([*?[])\]", r"\1", part)  # a folder's own brackets are escaped
        if part != glob.escape(name):
            break
        plain /= name
    return plain


def _known(name: str, file: Path) -> tuple[str, Path]:
    if file.suffix.lower() not in KNOWN:
        raise InputError(
            f"corpus text: {file}: files of kind {file.suffix or '(no suffix)'!r} cannot be read; "
            f"known are {' '.join(KNOWN)}"
        )
    return name, file


def _walk(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Files of known kind below a folder. The rest is counted: a README must not be an error."""

    def refuse(error: OSError) -> None:
        # Passed over, its files would be missing from the corpus without a word.
        raise InputError(
            f"corpus text: {error.filename} cannot be listed: {error.strerror}; make it readable, "
            "or name the files beside it"
        ) from error

    found, others = [], 0
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent) / name
            if name.startswith(".") or file.suffix.lower() not in KNOWN:
                others += 1
            else:
                found.append((file.relative_to(root).as_posix(), file))
    if others:
        log.info("%s: left out %d files that are hidden or of another kind", folder, others)
    yield from sorted(found)


def _members(name: str, file: Path) -> Iterator[SourceFile]:
    """The file itself, or the members of a zip in the order of their names."""
    if file.suffix.lower() != ".zip":
        yield SourceFile(name, str(file), partial(_open_file, file))
        return
    try:
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.filename)
    except UNREADABLE_ZIP as error:
        raise InputError(f"{file}: cannot be read as a zip: {error}") from error
    suffixes = (*WHOLE, *TABLES)
    kept = [
        info
        for info in infos
        if PurePosixPath(info.filename).suffix.lower() in suffixes
        and not info.is_dir()
        and not PurePosixPath(info.filename).name.startswith(".")  # __MACOSX/._name
    ]
    if not kept:
        raise InputError(f"{file}: the zip holds no file of a known kind ({' '.join(suffixes)})")
    for info in kept:
        if info.flag_bits & 0x1:
            raise InputError(f"{file}: member {info.filename} is encrypted; unpack it first")
        yield SourceFile(
            f"{name}/{info.filename}", f"{file}:{info.filename}", partial(_open_member, file, info)
        )


def _open_file(file: Path) -> BinaryIO:
    return file.open("rb")


def _open_member(file: Path, info: zipfile.ZipInfo) -> BinaryIO:
    # Held whole: Parquet is read from its end, and a zip member cannot be read backwards cheaply.
    try:
        with zipfile.ZipFile(file) as archive:
            return io.BytesIO(archive.read(info))
    except UNREADABLE_ZIP as error:
        raise InputError(
            f"{file}: member {info.filename} cannot be unpacked: {error}; "
            "pack the zip anew, or give the unpacked files"
        ) from error
