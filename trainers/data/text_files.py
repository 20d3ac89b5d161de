"""A corpus of the user's own files: prose, code, or tables with a text column.

The held-out split is the files that the user names, or the layout of the files, or else about a
tenth of the bytes by the rule of `trainers.data.held_out`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from trainers.data import sources
from trainers.data.corpus_files import find_files
from trainers.data.documents import (
    Corpus,
    Document,
    LeftOut,
    Omissions,
    Split,
    fingerprint_of,
    shown,
)
from trainers.data.held_out import Sizes
from trainers.data.layouts import (
    laid_out,
    nearly_laid_out,
    part_of,
    split_by_layout,
    tells_of_data,
    trained_on_though_called,
)
from trainers.data.marks import Marks
from trainers.data.readers import WHOLE, Reader, SourceFile
from trainers.data.size_split import SizeSplit, changed, measured, stamps
from trialstore.errors import InputError

#: Files with their splits. If sizes decide the split, every file counts as a training file.
Assigned = list[tuple[Split, SourceFile]]


class TextCorpus(Corpus):
    """Documents in the order of the configured paths, and of names within a folder or zip.

    The documents of one source are consecutive.
    """

    def __init__(self, config: sources.TextFiles) -> None:
        """Read all files once to measure and fingerprint them, and texts to be cut a second time.

        Raises:
            InputError: a file cannot be read, or the corpus cannot be split.
        """
        self._config = config
        self._what = f"corpus text: paths {config.paths}"
        omissions = Omissions()
        named, self._files, rule = _split_by_files(config, omissions)
        self._stamps = stamps(file.path for _, file in self._files)
        marks, sizes = Marks(), Sizes()
        reader = self._reader(marks)
        self._held_out_from = 0  # index of the first document in a held-out file
        self._fingerprint = fingerprint_of(
            json.dumps(["text/2", named, config.column, config.separator, config.on_bad_row]),
            self._measured(reader, sizes),
        )
        for row in reader.omissions.listed():
            omissions.take(row)
        self._left_out = omissions.listed()
        self._total_bytes = sizes.total
        self._check(reader, sizes)
        self._by_size: SizeSplit | None = None
        remarks = [*_doubled(self._files), *self._about_marks(reader, marks)]
        if named == BY_SIZE:
            self._by_size = SizeSplit(sizes, lambda: self._documents(self._reader()), self._what)
            self._rule = self._by_size.rule
            remarks += self._by_size.remarks
            if nearly := nearly_laid_out([file for _, file in self._files]):
                remarks.append(nearly)
        else:
            self._rule = rule
            trained_on = [file for split, file in self._files if split == "train"]
            if named == NAMED and (called := trained_on_though_called(trained_on)):
                remarks.append(called)
            if config.heldout is None:
                remarks += _larger(sizes, self._held_out_from)
            remarks += _twins(sizes, self._held_out_from)
        self._remarks = tuple(map(shown, remarks))

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    @property
    def split_rule(self) -> str:
        return self._rule

    @property
    def split_is_given(self) -> bool:
        return self._by_size is None

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        return self._left_out

    @property
    def remarks(self) -> tuple[str, ...]:
        return self._remarks

    def assigned(self) -> Iterator[tuple[Split, Document]]:
        reader = self._reader()
        if self._by_size is not None:
            yield from self._by_size.assigned(self._documents(reader))
            return
        for split, file in self._files:
            for document in self._read(reader, file):
                yield split, document

    def _reader(self, marks: Marks | None = None) -> Reader:
        config = self._config
        return Reader(config.column, config.separator, config.on_bad_row == "skip", marks)

    def _documents(self, reader: Reader) -> Iterator[Document]:
        for _, file in self._files:
            yield from self._read(reader, file)

    def _read(self, reader: Reader, file: SourceFile) -> Iterator[Document]:
        if stamps([file.path]).items() <= self._stamps.items():
            yield from reader.documents(file)
        else:
            raise changed(f"corpus text: {file.path}")

    def _measured(self, reader: Reader, sizes: Sizes) -> Iterator[Document]:
        """Yield every document, measured; its name includes the split of its file."""
        for split, file in self._files:
            if split == "train":
                self._held_out_from = len(sizes)
            for document in measured(self._read(reader, file), sizes):
                yield Document(f"{split}/{document.name}", document.text)
            if split == "train":
                self._held_out_from = len(sizes)

    def _check(self, reader: Reader, sizes: Sizes) -> None:
        """Refuse a corpus or a split without text, and a separator that no file holds."""
        if not sizes.total:
            left_out = ", ".join(f"{row.count} {row.reason}" for row in self._left_out)
            one = self._files[0][1] if len(self._files) == 1 else None
            if one is not None and one.kind in WHOLE:
                raise InputError(f"{one.place}: the file is empty; give a file that holds text")
            raise InputError(
                f"{self._what} hold no text: every document is empty or left out ({left_out}); "
                "name files that hold text"
            )
        if any(split == "heldout" for split, _ in self._files):
            for side, count in (
                ("training", self._held_out_from),
                ("held-out", len(sizes) - self._held_out_from),
            ):
                if not count:
                    raise InputError(
                        f"{self._what}: the {side} files hold no text; name other files"
                    )
        separator = self._config.separator
        if separator is not None and not reader.separated:
            kinds = " ".join(WHOLE)
            raise InputError(
                f"{self._what}: none of the {reader.whole} files of kind {kinds} holds the "
                f"separator {separator!r}, and no other kind is split at it; correct it or leave "
                "it out"
            )

    def _about_marks(self, reader: Reader, marks: Marks) -> Iterator[str]:
        if reader.whole and self._config.separator is not None:
            files = reader.whole + reader.separated
            yield (
                f"1 file of {files} does not hold the separator and is one document"
                if reader.whole == 1
                else f"{reader.whole} files of {files} do not hold the separator and are one "
                "document each"
            )
        if any(file.kind in WHOLE for _, file in self._files):
            way_out = "separator: {mark} in the corpus section splits .txt, .md and .py files there"
        else:
            way_out = "rows of tables are not split at it; give a document a row"
        yield from marks.remarks(way_out)


# --- which file is in which split ----------------------------------------------------------

BY_SIZE, NAMED = "by size", "named"


def _split_by_files(config: sources.TextFiles, omissions: Omissions) -> tuple[str, Assigned, str]:
    """Return the deciding rule, the files with their splits, and one sentence about the rule.

    Training files come first. If sizes decide, every file counts as a training file here.
    """
    files = find_files(config.paths, omissions)
    if isinstance(config.heldout, list):
        return NAMED, *_named(files, config.heldout, omissions)
    asked = config.heldout.split if config.heldout is not None else None
    texts = [file for file in files if not tells_of_data(file)]
    parts = laid_out(texts)
    if parts is None:
        if asked is not None:
            raise InputError(
                f"corpus text: heldout: split {asked!r}: paths {config.paths} are not laid out as "
                f"train and held-out files{_why_not(files)}; name the held-out files in heldout"
            )
        return BY_SIZE, [("train", file) for file in files], ""
    for file in files:
        if file not in texts:
            omissions.add("about the data", file.suffix, "files", file.name)
    kept, chosen = split_by_layout(texts, parts, asked, omissions)
    rule = (
        f"the files laid out as {chosen} are held out, those laid out as train are trained on"
        f"{' (recognised by their names)' if asked is None else ''}"
    )
    return chosen, _training_first(kept), rule


def _named(
    files: Sequence[SourceFile], paths: list[str], omissions: Omissions
) -> tuple[Assigned, str]:
    """Split as the user says; files that both sides name are held out and not trained on."""
    heldout = find_files(paths, omissions)
    theirs = {file.path.resolve() for file in heldout}
    train = [file for file in files if file.path.resolve() not in theirs]
    if not train:
        raise InputError(
            f"corpus text: heldout {paths} names every file of the corpus, so no file is left to "
            "train on; name fewer files in heldout"
        )
    both = len(files) - len(train)
    rule = f"the files that heldout names are held out: {', '.join(paths)}"
    if both:
        rule += f"; {both} of them lie below paths too, and are not trained on"
    splits: Assigned = [("train", file) for file in train]
    return splits + [("heldout", file) for file in heldout], rule


def _why_not(files: Sequence[SourceFile]) -> str:
    texts = [file for file in files if not tells_of_data(file)]
    other = next((file.name for file in texts if part_of(file.name) is None), None)
    return f": the name of {other} states no part" if other is not None else ""


def _training_first(files: Assigned) -> Assigned:
    return sorted(files, key=lambda each: each[0] == "heldout")


# --- what a user should know ---------------------------------------------------------------


def _doubled(files: Assigned) -> Iterator[str]:
    """Remark on files that exist both compressed and uncompressed."""
    names = Counter((file.root, file.name) for _, file in files)
    doubled = [name for (_, name), count in names.items() if count > 1]
    if doubled:
        yield (
            f"{len(doubled)} files stand there compressed and not, and are read twice, such as "
            f"{doubled[0]}: remove one of the two"
        )


def _larger(sizes: Sizes, held_out_from: int) -> Iterator[str]:
    """Remark on a layout that holds out more text than it trains on."""
    train, heldout = (int(part.sum()) for part in np.split(sizes.bytes, [held_out_from]))
    if heldout > train:
        yield (
            f"more text is held out ({heldout:,} bytes) than trained on ({train:,} bytes): if that "
            "is not meant, name fewer files in the corpus's heldout"
        )


def _twins(sizes: Sizes, held_out_from: int) -> Iterator[str]:
    """Remark on held-out documents that are also trained on."""
    heldout, train = sizes.digests[held_out_from:], sizes.digests[:held_out_from]
    twins = int(np.isin(heldout, train).sum())
    if twins:
        yield (
            f"{twins} of {len(heldout)} held-out documents stand in the training split too, but "
            "for white space or Unicode form: on them the held-out loss is that of known text"
        )
