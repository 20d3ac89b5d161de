"""What the URL of a storage may say: a name is not a URL, and one pasted in stands for another."""

import re
from pathlib import Path
from urllib.parse import unquote

from trialstore.errors import InputError

FILE = "file://"
#: Hosts of a file URL that are this machine.
HERE = ("", "localhost")
#: What a percent sign is that begins no code of a character.
STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
REMEDY = "write %25 for %, %23 for #, %3F for ? and %20 for a space in a URL"


def file_url_path(url: str) -> Path:
    """The path of a ``file://`` URL, whose %20 is a space. Raises InputError where it names none
    on this machine, or could be read as two."""
    host, slash, rest = url.removeprefix(FILE).partition("/")
    if host == "~":  # no URL's, but a home folder's
        slash, host = f"~{slash}", ""
    if not slash or host not in HERE:
        raise InputError(
            f"storage {url!r} is no absolute path of this machine; write file:///absolute/path, or "
            "the path alone"
        )
    path = unquote(slash + rest, errors="surrogateescape")
    if "#" in rest or "?" in rest or STRAY_PERCENT.search(rest) or not _is_text(path):
        raise InputError(
            f"storage {url!r} has a character that means something else in a URL; {REMEDY}, or "
            "give the path alone, as it is"
        )
    return Path(path)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # %DA is no character of UTF-8 by itself
        return False
    return True


def refuse_fragment(url: str) -> None:
    """Raises InputError for a URL with a `#`: what comes after it would be dropped in silence."""
    if "#" in url:
        raise InputError(
            f"storage {url!r}: what comes after # is no part of a URL's path; {REMEDY}"
        )


def refuse_secrets(location: str) -> None:
    """Raises InputError for a URL with a password: where a storage is stands in messages, process
    lists and MLflow."""
    scheme, mark, rest = location.partition("://")
    if not mark or scheme == "file":
        return
    place = re.split("[/?]", rest, maxsplit=1)[0]
    name, colon, after = place.partition(":")
    # A secret may hold a slash that nobody escaped; then the @ is not before the first one.
    if colon and ("@" in after or ("@" in rest and not after.isdecimal())):
        raise InputError(
            f"storage {scheme}://{name}:...@ names a secret, and where a storage is can be read by "
            "others; give it by the environment (for S3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or the provider's own files, and leave it out of the URL"
        )


def in_one_request(url: str) -> str:
    """With an option of pyarrow's that puts a small object on S3 in one request in place of three.
    What is refused is then told when the stream is closed."""
    if not url.startswith("s3:") or "allow_delayed_open" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}allow_delayed_open=true"
