"""Local paths as users write them: `~` expanded, and what cannot be a path refused by name."""

import glob
from pathlib import Path

from trialstore.errors import InputError

#: Longer paths are shown shortened in messages, this many characters of either end.
SHOWN = 60


def user_path(what: str, text: str) -> Path:
    """The path with `~` expanded; it need not exist.

    `what` says what the path is for, in messages. Raises InputError for a path that is empty, of
    a home folder of nobody, or that the file system refuses to look up.
    """
    if not text.strip():
        raise InputError(f"{what}: a path is empty; give one, or . for the folder you are in")
    try:
        # `./~x` is a folder here, and a Path of it has lost the `./`.
        path = Path(text).expanduser() if text.startswith("~") else Path(text)
        path.exists()
    except (RuntimeError, OSError) as error:  # RuntimeError: no such user
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{what}: path {_shortened(text)} cannot be looked up: {reason}; "
            "give another path, such as an absolute one"
        ) from error
    return path


def seen_from(folder: Path, text: str) -> str:
    """A path or glob that a user wrote in `folder`, an absolute one, for who stands elsewhere.

    One that begins with `~` is left as it is. A folder's own brackets are no wildcards.
    """
    if text.startswith("~"):
        return text
    path = folder / text
    try:
        literal = not glob.has_magic(text) or path.exists()
    except (OSError, ValueError):  # no name that a file can have: told when it is opened
        literal = True
    return str(path if literal else Path(glob.escape(str(folder)), text))


def _shortened(text: str) -> str:
    whole = len(text) <= 2 * SHOWN
    return repr(text) if whole else f"{text[:SHOWN]!r}...{text[-SHOWN:]!r} ({len(text)} characters)"
