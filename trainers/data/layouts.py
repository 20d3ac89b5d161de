"""Recognise files laid out as train, validation and test, and split by that layout.

A layout is recognised only if the folder or name of every file states its part, and if both
training and held-out files exist: `train-00000-of-00010.parquet`, `validation/`, `wiki.test.txt`.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from trainers.data.documents import Omissions, Split
from trainers.data.readers import SourceFile
from trialstore.errors import InputError

Part = Literal["train", "validation", "test"]

WORDS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval", "heldout"), "validation"),
    "test": "test",
    "testing": "test",
}

#: Names, without suffix, of files that describe a data set. They do not prevent a layout.
TELLING = frozenset({"license", "licence", "notice", "readme", "citation", "copying", "changelog"})

#: Words of a name that number its shards.
_SHARD_WORDS = frozenset({"of", "part", "shard", "split"})


def part_of(name: str) -> Part | None:
    """Return the part that a file name states, or None; the outermost folder takes precedence.

    Example:
        >>> part_of("validation/a.jsonl"), part_of("wiki.test.txt"), part_of("a.txt")
        ('validation', 'test', None)
    """
    *folders, last = PurePosixPath(name).parts
    stem = last.removesuffix(PurePosixPath(last).suffix)
    return next((part for part in map(_part_of_words, [*folders, stem]) if part), None)


def _part_of_words(name: str) -> Part | None:
    """Return the part that a name ends with: `wiki.train` yes, `train-stations` no."""
    words = _words(name)
    return WORDS.get(words[-1]) if words else None


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without shard numbers and versions."""
    plain = re.sub(r"held[-_. ]out", "heldout", name.lower().removesuffix(".zip"))
    words = [word for word in re.split(r"[-_. ]+", plain) if not re.fullmatch(r"v?\d*", word)]
    return [word for word in words if word not in _SHARD_WORDS]


def tells_of_data(file: SourceFile) -> bool:
    """Return whether a file, such as a licence, describes the data set; its name states no part."""
    return PurePosixPath(file.name).name.partition(".")[0].lower() in TELLING


def laid_out(files: Sequence[SourceFile]) -> list[Part] | None:
    """Return the part of every file, or None if the files are not laid out by parts.

    The name of the user's folder counts only if no file below it states a part: a folder may be
    called `test` for other reasons and hold `train.txt`.
    """
    own = [part_of(file.name) for file in files]
    roots_of_parts = {file.root for file, part in zip(files, own, strict=True) if part is not None}
    parts = [
        part or (None if file.root in roots_of_parts else _part_of_words(file.root.name))
        for file, part in zip(files, own, strict=True)
    ]
    known = [part for part in parts if part is not None]
    both = "train" in known and len(set(known)) > 1
    return known if both and len(known) == len(parts) else None


def nearly_laid_out(files: Sequence[SourceFile]) -> str | None:
    """Return a remark if file names mention parts without forming a layout.

    Either other files are beside them, or their names say more than the part.
    """
    parts = [part_of(file.name) for file in files]
    if None not in parts or "train" not in parts or len(set(parts)) < 3:
        return _speak_of_parts(files)
    other = files[parts.index(None)].name
    named = [file.name for file, part in zip(files, parts, strict=True) if part is not None]
    return (
        f"{named[0]} and {_others(len(named) - 1)} are called after splits, but "
        f"{other} is not: all are taken for one corpus and split by size; to hold out those files, "
        "name them with the corpus's heldout"
    )


def _others(count: int) -> str:
    return f"{count} other file{'s' * (count != 1)}"


def _speak_of_parts(files: Sequence[SourceFile]) -> str | None:
    """Return a remark for names such as `train_data.jsonl` and `valid_data.jsonl`."""
    names: dict[Part, str] = {}
    for file in files:
        for part in {WORDS[word] for word in _words(file.name) if word in WORDS}:
            names.setdefault(part, file.name)
    if "train" not in names or len(set(names.values())) < 2:
        return None
    return (
        f"{' and '.join(dict.fromkeys(names.values()))} speak of splits in their names, which do "
        "not end with them: all files are taken for one corpus and split by size; to hold out "
        "some of them, name them with the corpus's heldout"
    )


def trained_on_though_called(files: Sequence[SourceFile]) -> str | None:
    """Return a remark if files named after a held-out part are trained on.

    This happens if the user named other files to be held out.
    """
    called = [file.name for file in files if part_of(file.name) in ("validation", "test")]
    if not called:
        return None
    others = f" and {_others(len(called) - 1)}" if len(called) > 1 else ""
    return (
        f"{called[0]}{others} {'are' if others else 'is'} called after a held-out split and "
        "trained on, for heldout names others: take such files out of paths, or name them in "
        "heldout"
    )


def split_by_layout(
    files: Sequence[SourceFile], parts: Sequence[Part], asked: str | None, omissions: Omissions
) -> tuple[list[tuple[Split, SourceFile]], Part]:
    """Assign files to splits by their parts.

    The third part, neither trained on nor held out, is counted in `omissions`.

    Args:
        files: all files of the corpus.
        parts: the part of each file, from `laid_out`.
        asked: the part that the user wants held out; None for validation if there is one, else
            test.
        omissions: receives the files of the third part.

    Returns:
        The files with their splits, and the part that is held out.

    Raises:
        InputError: there are no files of the part asked for, or it is the training part.
    """
    both: tuple[Part, Part] = ("validation", "test")
    held_out_parts = [part for part in both if part in parts]
    chosen = WORDS.get(asked.lower()) if asked is not None else held_out_parts[0]
    if chosen == "train":
        raise InputError(
            f"corpus text: heldout: split {asked!r} is the training split; name one of "
            f"{', '.join(held_out_parts)}"
        )
    if chosen is None or chosen not in held_out_parts:
        raise InputError(
            f"corpus text: heldout: split {asked!r} does not exist; the files are laid out as "
            f"{', '.join(sorted(set(parts)))}; name one of {', '.join(held_out_parts)}"
        )
    kept: list[tuple[Split, SourceFile]] = []
    for file, part in zip(files, parts, strict=True):
        if part == "train":
            kept.append(("train", file))
        elif part == chosen:
            kept.append(("heldout", file))
        else:
            omissions.add(f"{part} split", file.suffix, "files", file.name)
    return kept, chosen
