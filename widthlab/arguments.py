"""Arguments of Python calls as the commands take them, and errors that name arguments."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.sweep.find import SHIPPED_NOTE, find_sweep_file
from orchestrator.sweep.load import DEFAULT_STORAGE, STORAGE_VARIABLE
from trialstore.errors import InputError

logger = logging.getLogger(__name__)

#: Changes of a sweep file's keys: {"training.steps": 100}, or texts "training.steps=100".
Overrides = Mapping[str, Any] | Sequence[str]

_OPTION = re.compile(r"(?<![\w/.-])--([a-z][a-z-]*)")


@contextlib.contextmanager
def naming_arguments() -> Iterator[None]:
    """Reword an InputError: the command's option `--retry-failed` is the argument retry_failed."""
    try:
        yield
    except InputError as error:
        text = _OPTION.sub(lambda option: option[1].replace("-", "_"), str(error))
        raise InputError(text) from error


def sweep_file_of(sweep: str | Path) -> Path:
    """Return the path of a sweep file. Logs a warning if it is one that comes with widthlab.

    Raises:
        InputError: There is no such file.
    """
    found = find_sweep_file(sweep)
    if found != Path(sweep):
        logger.warning(SHIPPED_NOTE.format(sweep, found))
    return found


def settings_of(overrides: Overrides | None) -> list[str]:
    """Return overrides as the texts KEY=VALUE that `--set` takes, values in YAML.

    Raises:
        InputError: A value is neither a number, a text, a truth value, None nor a list of them.
    """
    if overrides is None:
        return []
    if isinstance(overrides, str):
        return [overrides]
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{key}={_yaml(key, value)}" for key, value in overrides.items()]


def storage_of(storage: str | Path | None) -> str:
    """Return the storage that is meant: the argument, else $WIDTHLAB_STORAGE, else the default."""
    if storage is not None:
        return os.fspath(storage)
    return os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE


def _yaml(key: str, value: Any) -> str:
    try:
        return json.dumps(value, default=_plain)  # which YAML reads as it is meant
    except TypeError as error:
        raise InputError(f"overrides: {key} is {value!r}, which no sweep file can say") from error


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError
