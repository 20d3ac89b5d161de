"""Turn paths that a user wrote into local paths: expand `~` and refuse impossible paths."""

import glob
from pathlib import Path

from trialstore.errors import InputError

#: Characters shown of each end of a long path in messages.
SHOWN = 60


def user_path(what: str, text: str) -> Path:
    """Return a user's path with `~` expanded; it need not exist.

    Args:
        what: the setting that holds the path, for messages.
        text: the path as written.

    Raises:
        InputError: the path is empty, names the home of an unknown user, or the file system refuses
            to look it up.
    """
    if not text.strip():
        raise InputError(f"{what}: a path is empty; give a path, or . for the working directory")
    try:
        # `./~x` is a folder in the working directory, but Path drops the `./`.
        path = Path(text).expanduser() if text.startswith("~") else Path(text)
        path.exists()
    except (RuntimeError, OSError) as error:  # RuntimeError: no such user
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{what}: path {_shortened(text)} cannot be looked up: {reason}; give an absolute path"
        ) from error
    return path


def seen_from(folder: Path, text: str) -> str:
    """Return a path or glob, written relative to `folder`, as an absolute one.

    A path that begins with `~` is returned as it is. Brackets in the name of `folder` are escaped,
    so a glob does not read them as wildcards.
    """
    if text.startswith("~"):
        return text
    path = folder / text
    try:
        literal = not glob.has_magic(text) or path.exists()
    except (OSError, ValueError):  # no valid file name; opening it raises the error
        literal = True
    return str(path if literal else Path(glob.escape(str(folder)), text))


def _shortened(text: str) -> str:
    whole = len(text) <= 2 * SHOWN
    return repr(text) if whole else f"{text[:SHOWN]!r}...{text[-SHOWN:]!r} ({len(text)} characters)"
