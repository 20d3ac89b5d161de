"""MLflow's database as a file and as the URI that MLflow opens: a path is never pasted into a URI.

SQLAlchemy is asked what it reads back, as that decides which file is opened: its version 2.1 reads
%25 as a percent sign, those before it as three characters.
"""

import re
from pathlib import Path

from trialstore.errors import InputError

SQLITE = "sqlite:///"
#: The same with its driver's name. MLflow makes the folder of what it takes for the path of a URI
#: that begins with the other, codes of characters and all; of this one it makes none.
DRIVEN = "sqlite+pysqlite:///"
#: What a percent sign is that begins no code of a character.
STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def is_sqlite(uri: str) -> bool:
    """Whether a URI is that of an SQLite file."""
    return uri.startswith((SQLITE, DRIVEN))


def sqlite_uri(database: Path) -> str:
    """The URI of a database file. Raises InputError for a path that no URI can stand for."""
    from sqlalchemy.engine import make_url

    path = str(database)
    escaped = path.replace("%", "%25").replace("?", "%3F")
    uri = f"{SQLITE if escaped == path else DRIVEN}{escaped}"
    if not _is_text(path):
        why = "its name is not UTF-8"
    elif make_url(uri).database != path:
        why = f"SQLAlchemy reads its URI as {make_url(uri).database!r}"
    else:
        return uri
    raise InputError(
        f"MLflow cannot open a database at {path!r}: {why}; rename that folder, or give the URI of "
        "an MLflow server with --tracking-uri or MLFLOW_TRACKING_URI"
    )


def sqlite_path(uri: str) -> Path | None:
    """The file that an SQLite URI stands for, None for any other URI.

    Raises InputError for a URI that stands for another file than it seems to.
    """
    if not is_sqlite(uri):
        return None
    from sqlalchemy.engine import make_url

    name, mark, _ = uri.partition("?")
    if mark:
        raise InputError(
            f"{uri!r}: what comes after ? is no part of a file's name in a URI, and widthlab gives "
            "SQLite no options; write %3F where the name has a question mark, and %25 for a "
            "percent sign"
        )
    database = make_url(name).database or ""
    if STRAY_PERCENT.search(name) or ("\ufffd" in database and "\ufffd" not in name):
        raise InputError(
            f"{uri!r}: a percent sign in a URI begins the code of a character, such as %20 for a "
            "space, and here one does not; write %25 for a percent sign"
        )
    return Path(database)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8, which Python holds as half pairs
        return False
    return True
