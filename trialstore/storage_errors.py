"""How storages fail: full, away, or in any other way.

Local disks answer with an errno. Object stores answer, through pyarrow, with a name in a message.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from trialstore.errors import FinalError, InputError, NoAnswerError

#: A disk or a quota is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: A disk or a network file system does not answer.
NO_ANSWER = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
})  # fmt: skip
#: The same for S3 and Google Cloud Storage, after pyarrow's own retries. Their errors carry no
#: errno.
STORE_AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|"
    r"REQUEST_TIMEOUT|UNKNOWN \(HTTP status (429|5\d\d)\))|"
    r"google::cloud::Status\((UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|ABORTED)"
)


class StorageFullError(FinalError, OSError):
    """A storage has no room for an object. A retry of the same write cannot succeed."""


def is_away(error: BaseException) -> bool:
    """Return whether an error means that the storage does not answer and may answer later.

    A full storage, a missing object, a missing permission and a wrong request are answers.
    """
    if not isinstance(error, OSError) or isinstance(error, StorageFullError):
        return False
    if error.errno is not None:
        return error.errno in NO_ANSWER
    return STORE_AWAY.search(str(error)) is not None


def unreadable(message: str, error: BaseException) -> InputError:
    """Return the error to raise for an input of the user's that `error` kept from being read.

    Returns:
        A NoAnswerError if the disk did not answer and may answer later, else an InputError.
    """
    return (NoAnswerError if is_away(error) else InputError)(message)


@contextlib.contextmanager
def naming_a_full_disk(
    path: Path, nbytes: int | None = None, kind: type[OSError] = OSError
) -> Iterator[None]:
    """Raise the error of a full disk again with the file, its size and the free space.

    Args:
        path: The file that the block writes.
        nbytes: The size of the file, where it is known beforehand.
        kind: The exception to raise. Any other OSError passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        free = _free_bytes(path)
        needs = "" if nbytes is None else f" needs {nbytes:,} bytes and"
        raise kind(
            error.errno,
            f"{os.strerror(error.errno)}: {path.name}{needs} finds {free:,} free in {path.parent}; "
            "free some, and the same command goes on",
        ) from error


def _free_bytes(path: Path) -> int:
    """Free space on the disk of a file. Neither the file nor its folder need exist."""
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    return shutil.disk_usage(existing).free
