"""Checks on the URLs and keys of storages.

A path that is pasted into a URL unescaped can name another folder: ``#`` and ``?`` end the path,
and ``%20`` is a space. Such URLs are refused.
"""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from trialstore.errors import InputError

FILE = "file://"
#: Hosts of a file URL that mean this machine.
HERE = ("", "localhost")
#: A percent sign without two hexadecimal digits.
STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
REMEDY = "write %25 for %, %23 for #, %3F for ? and %20 for a space in a URL"


def file_url_path(url: str) -> Path:
    """Return the path of a ``file://`` URL, unescaped.

    Raises InputError for a path that is relative or on another host, and for characters that mean
    something else in a URL.

    Example:
        >>> file_url_path("file:///data/my%20runs")
        PosixPath('/data/my runs')
    """
    host, slash, rest = url.removeprefix(FILE).partition("/")
    if host == "~":  # file://~/runs: not in the standard, but people write it
        slash, host = f"~{slash}", ""
    if not slash or host not in HERE:
        raise InputError(
            f"storage {url!r} is not an absolute path on this machine; write "
            "file:///absolute/path, or the path alone"
        )
    path = unquote(slash + rest, errors="surrogateescape")
    if "#" in rest or "?" in rest or STRAY_PERCENT.search(rest) or not is_text(path):
        raise InputError(
            f"storage {url!r} contains a character with a meaning in URLs; {REMEDY}, or give the "
            "path alone, unescaped"
        )
    return Path(path)


def is_text(path: str) -> bool:
    """Return whether a path is UTF-8. Python keeps other bytes as surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:  # %DA alone is not UTF-8
        return False
    return True


def refuse_fragment(url: str) -> None:
    """Raise InputError for a URL with a ``#``: pyarrow would drop the rest silently."""
    if "#" in url:
        raise InputError(
            f"storage {url!r}: text after # does not belong to the path of a URL; {REMEDY}"
        )


def refuse_secrets(location: str) -> None:
    """Raise InputError for a URL with a password.

    The location of a storage appears in messages, process lists and MLflow.
    """
    scheme, mark, rest = location.partition("://")
    if not mark or scheme == "file":
        return
    place = re.split("[/?]", rest, maxsplit=1)[0]
    name, colon, after = place.partition(":")
    # A secret may contain an unescaped slash. Then the @ comes after the first slash.
    if colon and ("@" in after or ("@" in rest and not after.isdecimal())):
        raise InputError(
            f"storage {scheme}://{name}:...@ contains a secret, and other users can see the URL of "
            "a storage; remove it and set the environment (for S3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or the provider's credential files"
        )


def in_one_request(url: str) -> str:
    """Return the URL with pyarrow's option ``allow_delayed_open``, for S3 only.

    With it, pyarrow puts a small object in one request instead of three. An error then appears
    when the stream is closed, not when it is opened.
    """
    if not url.startswith("s3:") or "allow_delayed_open" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}allow_delayed_open=true"


def checked_key(key: str) -> str:
    """Return the key itself. Raises ValueError if it is absolute or could leave the root.

    Others may write to a storage, so keys that are read from it are not trusted.
    """
    parts = PurePosixPath(key).parts
    if key.startswith("/") or ".." in parts or "\0" in key:
        raise ValueError(f"storage key {key!r} must be relative and stay inside the root")
    return key
