"""The files of a corpus: what paths, folders, globs and zips hold, and what of it is left out."""

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

from trainers.data.compressed import COMPRESSIONS, told
from trainers.data.documents import LeftOut, Omissions
from trainers.data.file_sources import FileLocation, source_names
from trainers.data.paths import user_path
from trainers.data.readers import TABLES, WHOLE, SourceFile
from trialstore.errors import InputError

READ = (*WHOLE, *TABLES)
KNOWN = f"{' '.join((*READ, '.zip'))}, and {' '.join(COMPRESSIONS)} of each but .zip"

HIDDEN, OTHER_KIND, CARD, TWICE = "hidden", "another kind of file", "data card", "met twice"

#: What `zipfile` raises for archives that are damaged, encrypted or packed in an unknown way.
UNREADABLE_ZIP = (
    OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A file on disk: `root` is the folder that names are relative to, `name` the rest."""

    root: Path
    name: str
    path: Path


def kind_of(name: str) -> tuple[str, str]:
    """(".jsonl", ".gz") of "a.jsonl.gz", in lower case; both may be empty."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if not suffixes:
        return "", ""
    if suffixes[-1] in COMPRESSIONS:
        return (suffixes[-2] if len(suffixes) > 1 else ""), suffixes[-1]
    return suffixes[-1], ""


def shown_suffix(name: str) -> str:
    """The ending by which a file of any kind is told of: ".jsonl.lz4", ".pdf"."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes[-2:]]
    kept = suffixes if suffixes and suffixes[0] in (*READ, ".json", ".tar") else suffixes[-1:]
    return "".join(kept)


def bare_name(name: str) -> str:
    """The name without the ending of a compression, which does not change what a file holds."""
    return name[: -len(compression)] if (compression := kind_of(name)[1]) else name


def find_files(paths: list[str], omissions: Omissions) -> list[SourceFile]:
    """The files that paths, folders and globs name, each once, those of one source together.

    In the order of the paths, and of names within each. Raises InputError.
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
                f"{_what_there_is(here.listed())}"
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


def _what_there_is(rows: tuple[LeftOut, ...]) -> str:
    told_of = [
        f"{row.count} {row.suffix or row.unit} ({row.reason}, such as {row.example})"
        for row in rows
    ]
    if not told_of:
        return ""
    return f"; it holds {', '.join(told_of)}; a data card or a hidden file must be named itself"


def _resolved(file: Path) -> Path:
    try:
        return file.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: symbolic links that form a loop
        raise InputError(f"{file}: cannot be read: {error}; remove it") from error


# --- paths, folders and globs --------------------------------------------------------------


def _expand(path: str, omissions: Omissions) -> Iterator[Found]:
    """Files of one configured path, with names relative to what the user pointed at, so that a
    corpus may be moved."""
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
                continue  # data/** matches folders and then what is in them
            if is_card(name) and not names_cards:
                omissions.add(CARD, shown_suffix(name), "files", name)
            else:
                yield _known(Found(root, name, match))
    else:
        raise InputError(
            f"corpus text: path {path!r} does not exist (looked for {given.absolute()})"
        )


def _fixed_part(path: Path) -> tuple[Path, str]:
    """The leading folders of a glob that hold no wildcard, or are there as they are written; and
    the rest, which is the pattern."""
    root, parts = Path(path.anchor), list(path.relative_to(path.anchor).parts)
    while len(parts) > 1:
        plain = re.sub(r"\[([*?[])\]", r"\1", parts[0])  # a folder's own brackets, escaped
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
            f"{shown_suffix(file.path.name) or '(no suffix)'!r} cannot be read; known are {KNOWN}"
        )
    return file


def _is_read(name: str) -> bool:
    return kind_of(name)[0] in READ


def is_card(name: str) -> bool:
    """Whether a file at the root of a data set describes it: README, README.md, README.txt."""
    bare = bare_name(name).lower()
    return bare in ("readme", "readme.md", "readme.txt")


def _walk(folder: Path, omissions: Omissions) -> Iterator[Found]:
    """Files of known kind below a folder. The rest is counted: a picture must not be an error."""

    def refuse(error: OSError) -> None:
        # Passed over, its files would be missing from the corpus without a word.
        raise InputError(
            f"corpus text: {error.filename} cannot be listed: {error.strerror}; make it readable, "
            "or name the files beside it"
        ) from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        below = Path(parent).relative_to(folder)
        for name in sorted(folders):
            if name.startswith("."):
                omissions.add(HIDDEN, "", "folders", (below / name).as_posix())
            elif Path(parent, name).is_symlink():  # it might lead back to where it stands
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
    """Why a file that nobody named is no part of a corpus, or None where it is."""
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
    """The file itself, or the members of a zip in the order of their names."""
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
        raise InputError(f"{file.path}: cannot be read as a zip: {error}") from error
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
            f"{_what_there_is(here.listed())}"
        )
    for row in here.listed():
        omissions.take(row)
    for info in kept:
        if info.flag_bits & 0x1:
            raise InputError(f"{file.path}: member {info.filename} is encrypted; unpack it first")
        kind, compression = kind_of(info.filename)
        yield SourceFile(
            bare_name(f"{file.name}/{info.filename}"), f"{file.path}:{info.filename}", file.path,
            file.root, kind, compression, "", partial(_open_member, file.path, info),
        )  # fmt: skip


def _common_folder(names: list[str]) -> str:
    """The folder, with its slash, that everything in a zip lies in, or nothing; what is hidden,
    such as the notes that macOS puts beside the folder, does not count."""
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
            "pack the zip anew, or give the unpacked files"
        )

    try:
        stat = path.stat()
        stream = _archive(path, stat.st_mtime_ns, stat.st_size).open(info)
    except UNREADABLE_ZIP as error:
        raise damaged(error) from error
    return told(stream, UNREADABLE_ZIP, damaged)


@lru_cache(maxsize=1)
def _archive(path: Path, modified_ns: int, size: int) -> zipfile.ZipFile:
    # Opening a zip reads the names of all its members, which may be many thousands.
    return zipfile.ZipFile(path)
