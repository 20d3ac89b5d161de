"""Split a corpus by size: measure it in one pass, assign its documents in later ones."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainers.data.cuts import halves, place_of_cut
from trainers.data.documents import Document, Split, content_digest, digest_of, normalised
from trainers.data.held_out import CUT, HELD_OUT, Heavy, Sizes, heavy_texts, held_out_codes
from trialstore.errors import InputError
from trialstore.storage import unreadable


def measured(documents: Iterator[Document], sizes: Sizes) -> Iterator[Document]:
    """Yield the documents unchanged, and add the size of each to `sizes`."""
    for document in documents:
        bare = normalised(document.text)
        sizes.add(digest_of(bare), len(document.text.encode()), len(bare))
        yield document


class SizeSplit:
    """The held-out documents of a corpus, and the positions at which heavy texts are cut.

    Attributes:
        remarks: a sentence for each text that is cut.
    """

    def __init__(self, sizes: Sizes, read: Callable[[], Iterator[Document]], what: str) -> None:
        """Choose the held-out documents.

        Args:
            sizes: all documents, measured.
            read: yields the same documents again.
            what: the corpus, in messages.

        Raises:
            InputError: the corpus holds one distinct document, too short to be cut.
        """
        self._what = what
        heavy = heavy_texts(sizes)
        self._places = _Places(sizes, heavy, read)
        codes = held_out_codes(sizes, heavy, self._places.tail_bytes)
        if codes is None:
            raise InputError(
                f"{what} hold one distinct document, which is too short to be cut in two; give "
                "more text"
            )
        self._codes = codes
        self.remarks = tuple(self._places.remarks(sizes.total))

    @property
    def rule(self) -> str:
        """One sentence for people that states the rule."""
        cut = len(self._places.of)
        texts = "a text that alone makes" if cut == 1 else f"{cut} texts that each alone make"
        rest = (
            f"; {texts} up more than a tenth, copies included, "
            f"{'is' if cut == 1 else 'are'} cut in two and the last tenth held out"
        )
        return (
            "about a tenth of the bytes is held out by content: whole documents in the order of "
            f"their digest{rest * bool(cut)}; copies that differ in white space or Unicode form "
            "stay together"
        )

    def assigned(self, documents: Iterator[Document]) -> Iterator[tuple[Split, Document]]:
        """Yield the documents of a later pass with their splits.

        Raises:
            InputError: the documents differ from those measured.
        """
        number = -1
        for number, document in enumerate(documents):
            if number >= len(self._codes):
                raise changed(self._what)
            code = self._codes[number]
            if code == CUT:
                yield from self._cut(document)
            else:
                yield "heldout" if code == HELD_OUT else "train", document
        if number + 1 != len(self._codes):
            raise changed(self._what)

    def _cut(self, document: Document) -> Iterator[tuple[Split, Document]]:
        place = self._places.of.get(content_digest(document.text))
        if place is None:
            raise changed(self._what)
        head, tail = halves(document.text, place)
        yield "train", Document(f"{document.name}#head", head, document.source)
        yield "heldout", Document(f"{document.name}#tail", tail, document.source)


def changed(what: str) -> InputError:
    """Return the error for a corpus that changed between two passes."""
    return InputError(
        f"{what}: the content changed while it was being read; run again when no process writes "
        "to it"
    )


def stamps(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Return size in bytes and modification time of files, to detect changes between passes."""
    found = {}
    for path in set(paths):
        try:
            stat = path.stat()
        except OSError as error:
            raise unreadable(f"{path}: cannot be read: {error}; make it readable", error) from error
        found[path] = (stat.st_size, stat.st_mtime_ns)
    return found


@dataclass(frozen=True)
class _Cut:
    """The position at which a heavy text is cut.

    Attributes:
        raw: the hash of the copy that determines the cut.
        place: bytes of the normalised text before the cut.
        tail_share: the share of the text's bytes that is held out.
    """

    raw: bytes
    place: int
    tail_share: float


class _Places:
    """The positions at which heavy texts are cut; `of` maps the digest of a text to its position.

    Copies may break their lines differently. The copy with the lowest hash determines the cut, so
    the choice depends neither on names nor on the order of files.
    """

    def __init__(
        self, sizes: Sizes, heavy: list[Heavy], read: Callable[[], Iterator[Document]]
    ) -> None:
        self._bytes = {text.digest: text.bytes for text in heavy if text.long}
        self._names: dict[int, list[str]] = {}
        wanted = np.array(sorted(self._bytes), np.uint64)
        numbers = iter(np.flatnonzero(np.isin(sizes.digests, wanted)).tolist())
        cuts: dict[int, _Cut] = {}
        sought = next(numbers, None)
        for number, document in enumerate(read() if sought is not None else ()):
            if number != sought:
                continue
            digest = int(sizes.digests[number])
            self._names.setdefault(digest, []).append(document.name)
            raw = hashlib.sha256(document.text.encode()).digest()
            if digest not in cuts or raw < cuts[digest].raw:
                cuts[digest] = _cut(raw, document.text)
            if (sought := next(numbers, None)) is None:
                break
        self.of = {digest: cut.place for digest, cut in cuts.items()}
        self._tails = {
            digest: round(cut.tail_share * self._bytes[digest]) for digest, cut in cuts.items()
        }
        self.tail_bytes = sum(self._tails.values())

    def remarks(self, total: int) -> Iterator[str]:
        """Yield a sentence for each text that is cut."""
        for digest, names in self._names.items():
            copies = f" and its {len(names) - 1} copies make" if len(names) > 1 else " makes"
            yield (
                f"{names[0]}{copies} up {self._bytes[digest] / total:.0%} of all bytes: cut in "
                f"two, with the last {self._tails[digest]:,} bytes held out"
            )


def _cut(raw: bytes, text: str) -> _Cut:
    place = place_of_cut(text)
    tail = halves(text, place)[1]
    return _Cut(raw, place, len(tail.encode()) / len(text.encode()))
