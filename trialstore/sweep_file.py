"""The resolved sweep.yaml of a sweep's directory: which cells were planned, and how to judge."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from trialstore.errors import InputError
from trialstore.plain_yaml import load_plain_yaml
from trialstore.storage import Storage

logger = logging.getLogger(__name__)

SWEEP_FILE = "sweep.yaml"
#: What the columns of a table hold.
LARGEST_SEED = 2**63 - 1
LARGEST_WIDTH = 2**53
LARGEST_NUMBER = 1e300


def read_sweep_file(sweep: Storage) -> dict[str, Any]:
    """The file's content, with at least one cell in `resolved.trials`.

    Raises InputError where there is no such file, or one that `widthlab run` did not write.
    """
    place = sweep.url_of(SWEEP_FILE)
    try:
        data = sweep.get(SWEEP_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{sweep.url} is no sweep: it has no {SWEEP_FILE}; give the directory that "
            "`widthlab run` made, the one that holds trials/"
        ) from error
    config = load_plain_yaml(data, place)
    cells = section(config, "resolved").get("trials") if isinstance(config, dict) else None
    if not isinstance(cells, list) or not cells:
        raise InputError(
            f"{place} does not list its trials (resolved.trials): it is a sweep as written, not "
            "as run; give the directory that `widthlab run` made"
        )
    for cell in cells:
        _check_cell(cell, place)
    assert isinstance(config, dict)
    return config


def planned_cells(config: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """Return the cells, one per id: a trial that is listed twice is one trial of both matchings."""
    found: dict[str, dict[str, Any]] = {}
    for cell in config["resolved"]["trials"]:
        known = found.get(str(cell["id"]))
        if known is None:
            found[str(cell["id"])] = dict(cell)
        else:
            logger.warning("%s lists trial %s twice; it counts once", place, cell["id"])
            known["holds"] = list(dict.fromkeys([*holds_of(known), *holds_of(cell)]))
    return list(found.values())


def holds_of(cell: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the matchings of a trial (none, params, flops), which records call `holds`."""
    return tuple(cell.get("holds") or ("none",))


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping below a key; an empty one where there is none."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def positive(settings: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number above 0 below a key. Raises InputError for anything else."""
    value = settings.get(name)
    if value is None and default is not None:
        return default
    if not _is_positive(value):
        raise InputError(f"{name} is {value!r} in the sweep's analysis; it is a number above 0")
    return float(value)  # type: ignore[arg-type]


def _check_cell(cell: Any, place: str) -> None:
    if not isinstance(cell, dict) or not isinstance(cell.get("axes"), dict) or "id" not in cell:
        raise InputError(f"{place}: resolved.trials holds {cell!r}, which has no id or axes")
    for name in cell["axes"]:
        if not isinstance(name, str):
            raise InputError(
                f"{place}: trial {cell['id']} has an axis {name!r}, which is not text; put it in "
                "quotes"
            )
    seed = cell["axes"].get("seed", 0)
    if type(seed) is not int or abs(seed) > LARGEST_SEED:
        raise InputError(
            f"{place}: trial {cell['id']} has seed {seed!r}; a replicate is a whole number of at "
            "most 64 bits"
        )
    holds = cell.get("holds") or ["none"]
    if not isinstance(holds, list) or not all(isinstance(hold, str) for hold in holds):
        raise InputError(
            f"{place}: trial {cell['id']} has holds {holds!r}; they are a list of none, params or "
            "flops"
        )
    multiplier = cell["axes"].get("width_multiplier")
    if multiplier is not None and not _is_width(multiplier):
        raise InputError(
            f"{place}: trial {cell['id']} has width_multiplier {multiplier!r}; it is a number "
            "above 0"
        )
    for name in ("D", "d_model"):
        given = cell["axes"].get(name)
        widths: Sequence[Any] = given if name == "D" and isinstance(given, list) else [given]
        if not widths or not all(map(_is_width, widths)):
            raise InputError(
                f"{place}: trial {cell['id']} has {name} {given!r}; a width is a number above 0, "
                "or for D a list of them"
            )


def _is_width(value: object) -> bool:
    return _is_positive(value) and value <= LARGEST_WIDTH  # type: ignore[operator]


def _is_positive(value: object) -> bool:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return usable and 0 < value <= LARGEST_NUMBER  # type: ignore[operator]
