"""The built-in corpus: the source of the interpreter's standard library.

It has about 11 MB without tests. Its text, and so its fingerprint, differs between versions of
Python.
"""

import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from trainers.data.documents import (
    Corpus,
    Document,
    LeftOut,
    Omissions,
    Split,
    fingerprint_of,
)
from trialstore.errors import InputError

#: Test folders, whose inputs are data rather than code, and `pydoc_data`, a generated string
#: literal of 0.75 MB.
SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "pydoc_data", "__pycache__"})
#: Files written when Python is built or installed; they hold paths of one machine.
SKIPPED_PREFIXES = ("_sysconfigdata", "sitecustomize", "usercustomize")

SOURCE = "python-source"
HELD_OUT_BYTES = 0.08
#: A module above this share of all bytes is always trained on, so that no single package
#: dominates the held-out loss. In Python 3.11 these are 18 of 200: `encodings`, `asyncio`, ...
LARGEST_HELD_OUT = 0.01


class PythonSourceCorpus(Corpus):
    """The files of the standard library; whole top-level modules and packages are held out."""

    def __init__(self, root: Path | None = None) -> None:
        """Read the library at `root`; by default that of the running interpreter.

        Raises:
            InputError: the folder holds no Python files, or one that is not UTF-8.
        """
        self._root = root or Path(sysconfig.get_path("stdlib"))
        self._documents = tuple(_read(self._root))
        if not self._documents:
            raise InputError(
                f"corpus python-source: {self._root} holds no Python files, perhaps because the "
                "standard library is frozen or zipped; use a Python with source files, or corpus "
                "kind text"
            )
        self._held_out = held_out_modules(self._documents)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of("python-source/1", self._documents)

    @cached_property
    def total_bytes(self) -> int:
        return sum(len(document.text.encode()) for document in self._documents)

    @property
    def split_rule(self) -> str:
        return (
            f"whole modules and packages are held out, in the order of their names' hashes, until "
            f"they make up {HELD_OUT_BYTES:.0%} of the bytes; one of more than "
            f"{LARGEST_HELD_OUT:.0%} is always trained on"
        )

    @cached_property
    def left_out(self) -> tuple[LeftOut, ...]:
        omissions = Omissions()
        for name in _left_out_folders(self._root):
            omissions.add("tests and generated code", "", "folders", name)
        return omissions.listed()

    def assigned(self) -> Iterator[tuple[Split, Document]]:
        for document in self._documents:
            yield "heldout" if module_of(document) in self._held_out else "train", document


def module_of(document: Document) -> str:
    """Return the top-level module or package of a file: `json` for `json/decoder.py`."""
    return document.name.partition("/")[0].removesuffix(".py")


def held_out_modules(documents: tuple[Document, ...]) -> frozenset[str]:
    """Return the modules to hold out, which make up `HELD_OUT_BYTES` of all bytes.

    They are taken in the order of their names' hashes, without modules above `LARGEST_HELD_OUT` of
    all bytes.
    """
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[module_of(document)] += len(document.text.encode())
    total = sum(sizes.values())
    held_out: set[str] = set()
    held_out_bytes = 0
    for module in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if held_out_bytes >= HELD_OUT_BYTES * total:
            break
        if sizes[module] <= LARGEST_HELD_OUT * total:
            held_out.add(module)
            held_out_bytes += sizes[module]
    return frozenset(held_out)


def _read(root: Path) -> Iterator[Document]:
    """Yield every importable source file below `root`, in the order of its path."""
    for name in sorted(_names(root)):
        content = (root / name).read_bytes()
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"corpus python-source: {root / name}: byte {error.start} is not UTF-8, so the "
                "standard library has been altered; reinstall Python"
            ) from error
        if text:
            yield Document(name, text, SOURCE)


def _names(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        # Folders that cannot be imported: site-packages, lib-dynload, config-3.11-...
        folders[:] = [
            name for name in folders if name.isidentifier() and name not in SKIPPED_FOLDERS
        ]
        for name in files:
            if name.endswith(".py") and not name.startswith(SKIPPED_PREFIXES):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _left_out_folders(root: Path) -> Iterator[str]:
    """Yield the folders of Python files outside the corpus, in the order of their paths."""
    for folder, folders, _ in os.walk(root):
        here = Path(folder)
        for name in sorted(set(folders) & (SKIPPED_FOLDERS - {"__pycache__"})):
            yield (here / name).relative_to(root).as_posix()
        folders[:] = sorted(
            name for name in folders if name.isidentifier() and name not in SKIPPED_FOLDERS
        )
