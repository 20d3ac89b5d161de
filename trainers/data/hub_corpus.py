"""A corpus streamed through the `datasets` library: from the hub, or from a local folder.

Nothing is downloaded ahead and nothing held whole: C4 is larger than a disk. The fingerprint of
a hub data set is therefore its commit; that of a folder, the contents of its files.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from trainers.data import sources
from trainers.data.documents import (
    Corpus,
    Document,
    Split,
    content_digest,
    held_out_cut,
    split_of,
)
from trainers.data.hub import local_folder, resolve_revision
from trainers.data.readers import checked_text

#: The content rule learns its cut from the first documents: in a set of this many, one is held
#: out by the plain rule anyway (the odds against are 1e-12); smaller sets get at least one.
FIRST_DOCUMENTS = 256


class HubCorpus(Corpus):
    """The first `documents` of one split of a data set, in the order in which it streams."""

    def __init__(self, config: sources.HubDataset) -> None:
        """Resolves the revision. Raises InputError where the data set cannot be found."""
        self._folder = local_folder("corpus hub", config.dataset)
        if self._folder is None:
            revision = resolve_revision("dataset", config.dataset, config.revision)
            config = config.model_copy(update={"revision": revision})
        self._config = config

    @cached_property
    def fingerprint(self) -> str:
        config = self._config.model_dump(exclude={"kind"})
        if self._folder is not None:
            config |= {"dataset": _folder_digest(self._folder), "revision": None}
        text = json.dumps(["hub/1", config], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def total_bytes(self) -> None:
        return None

    def assigned(self) -> Iterator[tuple[Split, Document]]:
        documents = self._stream()
        first = list(itertools.islice(documents, FIRST_DOCUMENTS))
        digests = [content_digest(document.text) for document in first]
        if len(set(digests)) < 2:
            raise InputError(
                f"corpus hub: data set {self._config.dataset!r}, split {self._config.split!r}: "
                f"the first {len(first)} documents that are not empty hold "
                f"{len(set(digests))} distinct texts in column {self._config.column!r}; "
                "at least two are needed, for whole documents are held out"
            )
        cut = held_out_cut(min(digests), max(digests))
        for document in itertools.chain(first, documents):
            yield split_of(document.text, cut), document

    def _stream(self) -> Iterator[Document]:
        config = self._config
        for number, row in enumerate(itertools.islice(self._rows(), config.documents)):
            place = f"data set {config.dataset!r}, split {config.split!r}, document {number}"
            if config.column not in row:
                raise InputError(
                    f"{place}: no column {config.column!r}; there are {', '.join(row)}; "
                    "set the corpus's column"
                )
            text = checked_text(row[config.column], place, config.column)
            if text:
                yield Document(f"{config.split}:{number}", text)

    def _rows(self) -> Iterator[dict[str, Any]]:
        rows = iter(self._open())
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            # Broken or mismatched files; a network that fails midway is not the user's input.
            except ValueError as error:
                raise InputError(
                    f"corpus hub: data set {self._config.dataset!r} cannot be read: {error}"
                ) from error
            yield row

    def _open(self) -> Any:
        from datasets import load_dataset

        config = self._config
        try:
            return load_dataset(
                str(self._folder or config.dataset),
                name=config.name,
                split=config.split,
                revision=config.revision,
                streaming=True,
            )
        # OSError: not found or not reachable; ValueError: no such split, name or kind of file.
        except (OSError, ValueError) as error:
            raise InputError(
                f"corpus hub: data set {config.dataset!r} (name {config.name!r}, split "
                f"{config.split!r}) cannot be opened: {error}"
            ) from error


def _folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a folder's files that are not hidden."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        try:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        whole.update(name.as_posix().encode() + b"\0" + content)
    return whole.hexdigest()
