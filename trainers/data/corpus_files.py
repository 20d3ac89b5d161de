"""Find the files of a text corpus in paths, folders, globs and zips; count the files left out."""

import glob
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BufferedReader
from pathlib import Path, PurePosixPath

from trainers.data.compressed import COMPRESSIONS, explained
from trainers.data.documents import LeftOut, Omissions
from trainers.data.file_sources import FileLocation, source_names
from trainers.data.paths import user_path
from trainers.data.readers import TABLES, WHOLE, SourceFile
from trialstore.errors import InputError
from trialstore.storage import unreadable

READ = (*WHOLE, *TABLES)
KNOWN = f"{' '.join((*READ, '.zip'))}, and {' '.join(COMPRESSIONS)} of each but .zip"

HIDDEN, OTHER_KIND, CARD, TWICE = "hidden", "another kind of file", "data card", "met twice"

#: Exceptions of `zipfile` for archives that are damaged, encrypted or use an unknown method.
UNREADABLE_ZIP = (
    OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A file on disk: its path, and its `name` relative to the folder `root`."""

    root: Path
    name: str
    path: Path


def kind_of(name: str) -> tuple[str, str]:
    """Return the kind and the compression of a file name, in lower case; each may be empty.

    Example:
        >>> kind_of("a.JSONL.gz")
        ('.jsonl', '.gz')
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if not suffixes:
        return "", ""
    if suffixes[-1] in COMPRESSIONS:
        return (suffixes[-2] if len(suffixes) > 1 else ""), suffixes[-1]
    return suffixes[-1], ""


def shown_suffix(name: str) -> str:
    """Return the suffix that reports a file of any kind, known or not: ".jsonl.lz4", ".pdf"."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes[-2:]]
    kept = suffixes if suffixes and suffixes[0] in (*READ, ".json", ".tar") else suffixes[-1:]
    return "".join(kept)


def bare_name(name: str) -> str:
    """Return the name without its compression suffix, which does not change the file's content."""
    return name[: -len(compression)] if (compression := kind_of(name)[1]) else name


def find_files(paths: list[str], omissions: Omissions) -> list[SourceFile]:
    """List the files that paths, folders and globs name, each once, grouped by source.

    Args:
        paths: as the user wrote them; `~` is expanded, and zips are opened.
        omissions: receives the files that are not read, with the reason.

    Returns:
        The files in the order of the paths; within a path in the order of their names.

    Raises:
        InputError: a path does not exist, names no readable kind of file, or cannot be read.
    """
    seen: set[Path] = set()
    members: list[tuple[FileLocation, SourceFile]] = []
    for path in paths:
        here = Omissions()
        found = list(_expand(path, here))
        for row in here.listed():
            omissions.take(row)
        if not found:
            raise InputError(
                f"corpus text: path {path!r} names no file of a known kind ({KNOWN})"
                f"{_found_instead(here.listed())}"
            )
        for file in found:
            if (resolved := _resolved(file.path)) in seen:
                omissions.add(TWICE, shown_suffix(file.name), "files", file.name)
                continue
            seen.add(resolved)
            first, below, _ = file.name.partition("/")
            # A folder and a zip have no compression of their own.
            own = "" if below or file.path.suffix.lower() == ".zip" else kind_of(first)[1]
            place = FileLocation(file.root, bare_name(first) if own else first, own)
            members += [(place, member) for member in _members(file, omissions)]
    return source_names(members)


def _found_instead(rows: tuple[LeftOut, ...]) -> str:
    found = [
        f"{row.count} {row.suffix or row.unit} ({row.reason}, such as {row.example})"
        for row in rows
    ]
    if not found:
        return ""
    return (
        f"; it holds {', '.join(found)}. Data cards and hidden files are read only if paths names "
        "them"
    )


def _resolved(file: Path) -> Path:
    try:
        return file.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: symbolic links that form a loop
        raise unreadable(
            f"{file}: cannot be read: {error}; remove the file or link", error
        ) from error


# --- paths, folders and globs --------------------------------------------------------------


def _expand(path: str, omissions: Omissions) -> Iterator[Found]:
    """Yield the files of one configured path.

    Names are relative to the path that the user gave, so a corpus may be moved.
    """
    given = user_path("corpus text", path)
    if given.is_dir():
        yield from _walk(given, omissions)
    elif given.exists():
        yield _known(Found(given.parent, given.name, given))
    elif glob.has_magic(path):
        root, pattern = _fixed_part(given)
        names_cards = "readme" in given.name.lower()
        for name in sorted(glob.glob(pattern, root_dir=root, recursive=True)):
            match = root / name
            if match.is_dir():
                continue  # data/** matches a folder and also each file in it
            if is_card(name) and not names_cards:
                omissions.add(CARD, shown_suffix(name), "files", name)
            else:
                yield _known(Found(root, name, match))
    else:
        raise InputError(
            f"corpus text: path {path!r} does not exist (looked for {given.absolute()}); correct "
            "it in the corpus section"
        )


def _fixed_part(path: Path) -> tuple[Path, str]:
    """Split a glob into its leading folders and the pattern after them.

    A leading folder contains no wildcard, or exists under exactly that name.
    """
    root, parts = Path(path.anchor), list(path.relative_to(path.anchor).parts)
    while len(parts) > 1:
        plain = re.sub(r"\[([*?[])\]", r"\1", parts[0])  # undo glob.escape
        if parts[0] == glob.escape(plain):
            root /= plain
        elif (root / parts[0]).is_dir():
            root /= parts[0]
        else:
            break
        del parts[0]
    return root, "/".join(parts)


def _known(file: Found) -> Found:
    if not _is_read(file.path.name) and file.path.suffix.lower() != ".zip":
        raise InputError(
            f"corpus text: {file.path}: files of kind "
            f"{shown_suffix(file.path.name) or '(no suffix)'!r} cannot be read; convert the file "
            f"to a known kind ({KNOWN})"
        )
    return file


def _is_read(name: str) -> bool:
    return kind_of(name)[0] in READ


def is_card(name: str) -> bool:
    """Return whether a file name is that of a data card: README, README.md or README.txt."""
    bare = bare_name(name).lower()
    return bare in ("readme", "readme.md", "readme.txt")


def _walk(folder: Path, omissions: Omissions) -> Iterator[Found]:
    """Yield the files of known kinds below a folder; count the others, so a picture is no error."""

    def refuse(error: OSError) -> None:
        # Skipping the folder would silently drop its files from the corpus.
        raise InputError(
            f"corpus text: folder {error.filename} cannot be listed: {error.strerror}; make it "
            "readable, or name the other files in paths"
        ) from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        below = Path(parent).relative_to(folder)
        for name in sorted(folders):
            if name.startswith("."):
                omissions.add(HIDDEN, "", "folders", (below / name).as_posix())
            elif Path(parent, name).is_symlink():  # it could form a loop
                omissions.add("behind a link", "", "folders", (below / name).as_posix())
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(names):
            file = Found(folder, (below / name).as_posix(), Path(parent) / name)
            if reason := _why_left_out(file.name, (".zip",)):
                omissions.add(reason, shown_suffix(name), "files", file.name)
            else:
                found.append(file)
    yield from sorted(found, key=lambda file: (bare_name(file.name), file.name))


def _why_left_out(name: str, also_read: tuple[str, ...] = ()) -> str | None:
    """Return why a file found in a folder is not read, or None if it is."""
    last = PurePosixPath(name).name
    if last.startswith("."):
        return HIDDEN
    if is_card(name):
        return CARD
    if not _is_read(last) and PurePosixPath(last).suffix.lower() not in also_read:
        return OTHER_KIND
    return None


# --- files and the members of zips ---------------------------------------------------------


def _members(file: Found, omissions: Omissions) -> Iterator[SourceFile]:
    """Yield the file itself, or the members of a zip in the order of their names."""
    if file.path.suffix.lower() != ".zip":
        kind, compression = kind_of(file.name)
        yield SourceFile(
            bare_name(file.name), str(file.path), file.path, file.root, kind, compression,
            "", partial(_open_file, file.path),
        )  # fmt: skip
        return
    try:
        with zipfile.ZipFile(file.path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except UNREADABLE_ZIP as error:
        raise InputError(
            f"{file.path}: cannot be read as a zip: {error}; pack the zip again, or give the "
            "unpacked files"
        ) from error
    here = Omissions()
    kept = []
    common = _common_folder([info.filename for info in infos])
    for info in sorted(infos, key=lambda info: (bare_name(info.filename), info.filename)):
        if reason := _why_left_out(info.filename.removeprefix(common)):
            name = f"{file.name}/{info.filename}"
            here.add(reason, shown_suffix(info.filename), "files", name)
        else:
            kept.append(info)
    if not kept:
        raise InputError(
            f"{file.path}: the zip holds no file of a known kind ({' '.join(READ)})"
            f"{_found_instead(here.listed())}"
        )
    for row in here.listed():
        omissions.take(row)
    for info in kept:
        if info.flag_bits & 0x1:
            raise InputError(
                f"{file.path}: member {info.filename} is encrypted; give the unpacked files"
            )
        kind, compression = kind_of(info.filename)
        yield SourceFile(
            bare_name(f"{file.name}/{info.filename}"), f"{file.path}:{info.filename}", file.path,
            file.root, kind, compression, "", partial(_open_member, file.path, info),
        )  # fmt: skip


def _common_folder(names: list[str]) -> str:
    """Return the folder that contains everything in a zip, with its slash, or "".

    Hidden files do not count, such as the notes that macOS writes beside the folder.
    """
    names = [name for name in names if not PurePosixPath(name).name.startswith(".")]
    firsts = {name.partition("/")[0] for name in names}
    inside = all("/" in name for name in names)
    return f"{firsts.pop()}/" if inside and len(firsts) == 1 else ""


def _open_file(path: Path) -> BufferedReader:
    return path.open("rb")


def _open_member(path: Path, info: zipfile.ZipInfo) -> BufferedReader:
    def damaged(error: Exception) -> InputError:
        return InputError(
            f"{path}: member {info.filename} cannot be unpacked: {error}; "
            "pack the zip again, or give the unpacked files"
        )

    try:
        stat = path.stat()
        stream = _archive(path, stat.st_mtime_ns, stat.st_size).open(info)
    except UNREADABLE_ZIP as error:
        raise damaged(error) from error
    return explained(stream, UNREADABLE_ZIP, damaged)


@lru_cache(maxsize=1)
def _archive(path: Path, modified_ns: int, size: int) -> zipfile.ZipFile:
    # Opening a zip reads its whole directory, which may list many thousands of members.
    return zipfile.ZipFile(path)
