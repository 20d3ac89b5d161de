"""Convert between the path of MLflow's SQLite file and its URI.

SQLAlchemy decides which file a URI opens, and versions differ: 2.1 reads %25 as a percent sign,
earlier ones as three characters. So ask SQLAlchemy for the path that it reads.
"""

from pathlib import Path

from trialstore.errors import InputError
from trialstore.storage_url import STRAY_PERCENT, is_text

SQLITE = "sqlite:///"
#: The same with the driver's name. MLflow creates the parent folder of a `sqlite:///` URI without
#: unescaping it. For this prefix it creates no folder.
DRIVEN = "sqlite+pysqlite:///"


def is_sqlite(uri: str) -> bool:
    """Return whether a URI names an SQLite file."""
    return uri.startswith((SQLITE, DRIVEN))


def sqlite_uri(database: Path) -> str:
    """Return the URI of a database file. Raises InputError for a path that no URI can name."""
    from sqlalchemy.engine import make_url

    path = str(database)
    escaped = path.replace("%", "%25").replace("?", "%3F")
    uri = f"{SQLITE if escaped == path else DRIVEN}{escaped}"
    if not is_text(path):
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
    """Return the file that an SQLite URI names; None for any other URI.

    Raises InputError for a URI with ``?`` or a stray ``%``, which opens an unexpected file.
    """
    if not is_sqlite(uri):
        return None
    from sqlalchemy.engine import make_url

    name, mark, _ = uri.partition("?")
    if mark:
        raise InputError(
            f"{uri!r}: text after ? does not belong to the file's name, and widthlab passes no "
            "options to SQLite; write %3F for a question mark in the name, and %25 for a percent "
            "sign"
        )
    database = make_url(name).database or ""
    if STRAY_PERCENT.search(name) or ("\ufffd" in database and "\ufffd" not in name):
        raise InputError(
            f"{uri!r}: a percent sign in a URI must begin an escape such as %20 for a space; "
            "write %25 for a percent sign"
        )
    return Path(database)
