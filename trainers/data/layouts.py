"""Files laid out as train, validation and test: the split that their author meant.

Recognised only where every file of a corpus belongs to one of the names, by a folder or by its
own name, and where both training and held-out files are there: `train-00000-of-00010.parquet`,
`validation/`, `wiki.test.txt`.
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

#: Files that tell of a data set, by their names without an ending: they hide no layout.
TELLING = frozenset({"license", "licence", "notice", "readme", "citation", "copying", "changelog"})

#: Words of a name that number its shards.
_SHARD_WORDS = frozenset({"of", "part", "shard", "split"})


def part_of(name: str) -> Part | None:
    """The part that a file belongs to, by the outermost folder or else its own name that says."""
    *folders, last = PurePosixPath(name).parts
    stem = last.removesuffix(PurePosixPath(last).suffix)
    return next((part for part in map(_part_of_words, [*folders, stem]) if part), None)


def _part_of_words(name: str) -> Part | None:
    """Of `train`, `train-00000-of-00010`, `wiki.train` and `train.zip`; not of `train-stations`."""
    words = _words(name)
    return WORDS.get(words[-1]) if words else None


def _words(name: str) -> list[str]:
    """The words of a name, in lower case, without those that number shards or versions."""
    plain = re.sub(r"held[-_. ]out", "heldout", name.lower().removesuffix(".zip"))
    words = [word for word in re.split(r"[-_. ]+", plain) if not re.fullmatch(r"v?\d*", word)]
    return [word for word in words if word not in _SHARD_WORDS]


def tells_of_data(file: SourceFile) -> bool:
    """Whether a file is a licence or the like, whose name says nothing of a split."""
    return PurePosixPath(file.name).name.partition(".")[0].lower() in TELLING


def laid_out(files: Sequence[SourceFile]) -> list[Part] | None:
    """The part of every file, or None where they are not laid out so.

    The folder that the user pointed at counts where nothing below it says a part: a folder that is
    called `test` for reasons of its own may hold `train.txt` and other files.
    """
    own = [part_of(file.name) for file in files]
    said_below = {file.root for file, part in zip(files, own, strict=True) if part is not None}
    parts = [
        part or (None if file.root in said_below else _part_of_words(file.root.name))
        for file, part in zip(files, own, strict=True)
    ]
    known = [part for part in parts if part is not None]
    both = "train" in known and len(set(known)) > 1
    return known if both and len(known) == len(parts) else None


def nearly_laid_out(files: Sequence[SourceFile]) -> str | None:
    """A sentence where names speak of a training and a held-out part, and the layout is not
    recognised: others are beside them, or they say more than the part."""
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
    """Of `train_data.jsonl` and `valid_data.jsonl`, which may be parts or may not."""
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
    """A sentence where training files are called after a validation or test part: the user named
    others to be held out."""
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
    """The files with their splits, and which part is held out: `asked`, else the validation
    files, else the test files. The third part is left out, and counted.

    Raises InputError where there are no files of the part that is asked for.
    """
    both: tuple[Part, Part] = ("validation", "test")
    there = [part for part in both if part in parts]
    chosen = WORDS.get(asked.lower()) if asked is not None else there[0]
    if chosen == "train":
        raise InputError(
            f"corpus text: heldout: split {asked!r} is the one that is trained on; name one of "
            f"{', '.join(there)}"
        )
    if chosen is None or chosen not in there:
        raise InputError(
            f"corpus text: heldout: split {asked!r} is not there; the files are laid out as "
            f"{', '.join(sorted(set(parts)))}"
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
