"""Read a corpus through the `datasets` library: streamed from the hub, or from a local folder.

A hub data set is streamed, neither downloaded first nor held in memory: C4 is larger than a disk.
Its fingerprint is therefore its commit, and each document is assigned to a split by its digest
alone. A local folder is read once to measure it, and split by size as files are.
"""

import hashlib
import itertools
import json
import lzma
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from trainers.data import sources
from trainers.data.documents import (
    HELD_OUT_SHARE,
    Corpus,
    Document,
    LeftOut,
    Omissions,
    Split,
    content_digest,
    held_out_cut,
    is_empty,
    split_of,
)
from trainers.data.held_out import Sizes
from trainers.data.hub import (
    errors_of_the_client,
    gave_no_answer,
    local_folder,
    resolve_revision,
)
from trainers.data.marks import Marks
from trainers.data.size_split import SizeSplit, changed, measured, stamps
from trainers.data.tables import BadRowError, checked_text, no_column
from trialstore.errors import InputError, NoAnswerError
from trialstore.storage import unreadable

#: The first documents of a stream set the digest below which documents are held out. Among this
#: many, a tenth by digest includes at least one, except with a probability of 1e-12; a smaller
#: set gets at least one as well.
FIRST_DOCUMENTS = 256


class HubCorpus(Corpus):
    """The first `documents` documents of one split of a data set, in the data set's order."""

    def __init__(self, config: sources.HubDataset) -> None:
        """Resolve the revision on the hub, or measure a local folder.

        Raises:
            InputError: the data set cannot be found, read or split.
            NoAnswerError: the hub, or the folder's disk, does not answer.
        """
        self._folder = local_folder("corpus hub", config.dataset)
        if self._folder is None:
            revision = resolve_revision("dataset", config.dataset, config.revision)
            config = config.model_copy(update={"revision": revision})
        self._config = config
        self._total_bytes: int | None = None
        self._by_size: SizeSplit | None = None
        self._seen = _Seen()
        self._others: tuple[str, ...] = ()
        if self._folder is not None:
            self._stamps = stamps(_files(self._folder))
            self._measure()

    @cached_property
    def fingerprint(self) -> str:
        config = self._config.model_dump(exclude={"kind"})
        if self._folder is not None:
            config |= {"dataset": _folder_digest(self._folder), "revision": None}
        text = json.dumps(["hub/2", config], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def total_bytes(self) -> int | None:
        return self._total_bytes

    @property
    def split_rule(self) -> str:
        heldout = self._config.heldout
        if heldout is not None:
            first = f"the first {heldout.documents} documents of " if heldout.documents else ""
            return f"{first}split {heldout.split!r} of the data set is held out"
        if self._by_size is not None:
            return self._by_size.rule
        return (
            f"documents of a stream are held out by content, about {HELD_OUT_SHARE:.0%} of their "
            "number: those of the lowest digests"
        )

    @property
    def split_is_given(self) -> bool:
        return self._config.heldout is not None

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        return self._seen.omissions.listed()

    @property
    def remarks(self) -> tuple[str, ...]:
        cut = self._by_size.remarks if self._by_size is not None else ()
        if self._others:
            cut += (
                f"split {' and '.join(map(repr, self._others))} of the data set is not read; "
                f"heldout: {self._others[0]} holds out that one",
            )
        return (*cut, *self._seen.remarks(self._config))

    def assigned(self) -> Iterator[tuple[Split, Document]]:
        if self._folder is not None and stamps(_files(self._folder)) != self._stamps:
            raise changed(f"corpus hub: folder {self._folder}")
        seen = _Seen()
        if self._by_size is not None:
            yield from self._by_size.assigned(self._stream(seen))
        elif self._config.heldout is not None:
            yield from self._as_asked(self._config.heldout, seen)
        else:
            yield from self._by_digest(seen)
        self._seen = seen  # now complete, and from this pass alone

    def _measure(self) -> None:
        """Read the whole of a local folder."""
        seen, sizes = _Seen(), Sizes()
        heldout = self._config.heldout
        if heldout is None:
            documents: Iterator[Document] = self._stream(seen)
        else:
            documents = (document for _, document in self._as_asked(heldout, seen))
        for _ in measured(documents, sizes):
            pass
        self._seen, self._total_bytes = seen, sizes.total
        if heldout is None:
            if not len(sizes):
                raise self._one_text([])
            self._by_size = SizeSplit(
                sizes, lambda: self._stream(_Seen()), f"corpus hub: {self._named()}"
            )
            self._others = self._other_splits()

    def _other_splits(self) -> tuple[str, ...]:
        """Return the names of the splits of a local folder that are not read."""
        from datasets import get_dataset_split_names

        config = self._config
        names = get_dataset_split_names(str(self._folder), config_name=config.name)
        return tuple(name for name in names if name != config.split.partition("[")[0])

    def _by_digest(self, seen: "_Seen") -> Iterator[tuple[Split, Document]]:
        documents = self._stream(seen)
        first = list(itertools.islice(documents, FIRST_DOCUMENTS))
        digests = [content_digest(document.text) for document in first]
        if len(set(digests)) < 2:
            raise self._one_text(digests)
        cut = held_out_cut(min(digests), max(digests))
        for document in itertools.chain(first, documents):
            yield split_of(document.text, cut), document

    def _as_asked(
        self, heldout: sources.HubSplit, seen: "_Seen"
    ) -> Iterator[tuple[Split, Document]]:
        if heldout.split == self._config.split:
            raise InputError(
                f"corpus hub: {self._named()}: heldout: split {heldout.split!r} is also the "
                "training split; name another split in heldout"
            )
        digests: set[int] = set()
        for document in self._stream(seen, heldout.split, heldout.documents):
            digests.add(content_digest(document.text))
            seen.heldout += 1
            yield "heldout", document
        if not seen.heldout:
            raise InputError(
                f"corpus hub: data set {self._config.dataset!r}: the held-out split "
                f"{heldout.split!r} holds no text in column {self._config.column!r}; name another "
                "split or column"
            )
        for document in self._stream(seen):
            seen.twins += content_digest(document.text) in digests
            yield "train", document

    def _named(self) -> str:
        return f"data set {self._config.dataset!r}, split {self._config.split!r}"

    def _one_text(self, digests: list[int]) -> InputError:
        return InputError(
            f"corpus hub: {self._named()}: the first {len(digests)} documents that are not empty "
            f"hold {len(set(digests))} distinct texts in column {self._config.column!r}, but "
            "holding out whole documents needs at least two; give more documents or another column"
        )

    def _stream(
        self, seen: "_Seen", split: str | None = None, documents: int | None = None
    ) -> Iterator[Document]:
        """Yield the documents of a split that are not empty; of the training split by default."""
        config = self._config
        if split is None:
            split, documents = config.split, config.documents
        source = f"{self._folder.name if self._folder else config.dataset}:{split}"
        for number, row in enumerate(itertools.islice(self._rows(split), documents)):
            place = f"data set {config.dataset!r}, split {split!r}, document {number}"
            name = f"{split}:{number}"
            try:
                if config.column not in row:
                    raise BadRowError("no such column", no_column(place, config.column, list(row)))
                text = checked_text(row[config.column], place, config.column)
            except BadRowError as error:
                if config.on_bad_row == "refuse":
                    raise error.refused() from error
                seen.omissions.add(error.reason, "", "rows", name)
                continue
            if is_empty(text):
                seen.omissions.add("empty document", "", "documents", name)
                continue
            seen.marks.look(text, source, lines=False)
            yield Document(name, text, source)

    def _rows(self, split: str) -> Iterator[dict[str, Any]]:
        rows = iter(self._open(split))
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except self._problems as error:
                raise self._unusable(
                    f"data set {self._config.dataset!r} cannot be read: {error}", error
                ) from error
            yield row

    def _open(self, split: str) -> Any:
        from datasets import load_dataset

        config = self._config
        try:
            return load_dataset(
                str(self._folder or config.dataset),
                name=config.name,
                split=split,
                revision=config.revision,
                streaming=True,
            )
        except self._problems as error:
            raise self._unusable(
                f"data set {config.dataset!r} (name {config.name!r}, split {split!r}) cannot be "
                f"opened: {error}",
                error,
            ) from error

    @property
    def _problems(self) -> tuple[type[Exception], ...]:
        """The exceptions that `datasets` raises where it cannot open or read a data set.

        OSError: not found, not readable or not reachable. ValueError: damaged, or an unknown split,
        name or kind of file.
        """
        if self._folder:
            return (ValueError, OSError, EOFError, zlib.error, lzma.LZMAError)
        return errors_of_the_client()

    def _unusable(self, what: str, error: Exception) -> InputError:
        """Return the error to raise for one of `_problems`."""
        if self._folder:
            way_out = "; use corpus kind text to read files without `datasets`"
            return unreadable(f"corpus hub: {what}{way_out}", error)
        return (NoAnswerError if gave_no_answer(error) else InputError)(f"corpus hub: {what}")


class _Seen:
    """Counts of one pass over a data set."""

    def __init__(self) -> None:
        self.omissions = Omissions()
        self.marks = Marks()
        self.heldout = 0
        self.twins = 0

    def remarks(self, config: sources.HubDataset) -> Iterator[str]:
        if config.documents is not None:
            yield f"only the first {config.documents} documents of split {config.split!r} are taken"
        if self.twins:
            yield (
                f"{self.twins} documents that are trained on stand among the {self.heldout} "
                "held-out ones too, but for white space or Unicode form: on those the held-out "
                "loss is that of known text"
            )
        yield from self.marks.remarks("rows are not split at it; give a document a row")


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that are not hidden, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in parts):
            yield path


def _folder_digest(folder: Path) -> str:
    """Return the SHA-256 over names and contents of a folder's files that are not hidden."""
    whole = hashlib.sha256()
    for path in _files(folder):
        try:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise unreadable(f"{path}: cannot be read: {error}; make it readable", error) from error
        whole.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return whole.hexdigest()
