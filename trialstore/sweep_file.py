"""Read the resolved sweep.yaml of a sweep's directory: the planned trials and the settings.

`widthlab run` writes the file. Status, MLflow export and analysis all read it here, so they accept
and refuse the same files.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trialstore.errors import InputError
from trialstore.json_objects import COUNT
from trialstore.plain_yaml import load_plain_yaml
from trialstore.storage import Storage

logger = logging.getLogger(__name__)

SWEEP_FILE = "sweep.yaml"
#: The folder of the analysis below a sweep's directory, and its file for programs.
REPORT = "report"
RECOMMENDATION = "recommendation.json"
#: The characters of a trial's id. Other characters could lead out of the trials folder.
TRIAL_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
#: Limits of the table columns that these values end in.
LARGEST_SEED = 2**63 - 1
LARGEST_WIDTH = 2**53
LARGEST_NUMBER = 1e300


@dataclass(frozen=True)
class ResolvedCell:
    """One planned trial of a sweep."""

    id: str
    axes: Mapping[str, Any]  # axis -> value, with the achieved D and d_model
    steps: int  # updates; 0 where the file does not say
    holds: tuple[str, ...] = ("none",)  # of "none", "params", "flops"
    parameters: Mapping[str, Any] = field(default_factory=dict)  # count by component
    flops: Any = None  # of the training; None where the file does not say


@dataclass(frozen=True)
class ResolvedSweep:
    """A sweep as it was run. `cells` has each trial once, in the order of the plan."""

    name: str
    place: str  # URL of the file, for messages
    content: Mapping[str, Any]  # the whole file
    cells: tuple[ResolvedCell, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the planned trials."""
        return tuple(cell.id for cell in self.cells)


def read_sweep_file(sweep: Storage) -> ResolvedSweep:
    """Read and check the sweep.yaml of a sweep's directory.

    Returns:
        The sweep, with at least one cell. A trial that the file lists twice is one cell that
        belongs to the budgets of both entries.

    Raises:
        InputError: The directory has no such file, or one that `widthlab run` did not write.
    """
    place = sweep.url_of(SWEEP_FILE)
    try:
        data = sweep.get(SWEEP_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{sweep.url} is not a sweep's directory: it has no {SWEEP_FILE}; `widthlab run` makes "
            "one below the storage: run the sweep first, or give the directory that holds trials/"
        ) from error
    content = load_plain_yaml(data, place)
    entries = section(content, "resolved").get("trials") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{place} lists no trials (resolved.trials): it is a sweep file before its run; give "
            "the directory that `widthlab run` made"
        )
    for name, kind in (("name", str), ("training", dict)):
        if not isinstance(content.get(name), kind):
            raise InputError(
                f"{place}: {name} is {content.get(name)!r}, which `widthlab run` does not write; "
                "run the sweep's file again to write it anew"
            )
    steps = content["training"].get("steps", 0)
    cells = tuple(_each_once((_cell(entry, steps, place) for entry in entries), place))
    return ResolvedSweep(content["name"], place, content, cells)


def trial_storage(sweep: Storage, trial_id: str) -> Storage:
    """Return a trial's directory within its sweep's. Raises InputError for an impossible id."""
    if TRIAL_ID.fullmatch(trial_id) is None:
        raise InputError(f"{trial_id!r} cannot be a trial's id: use letters, digits, - and _ only")
    return sweep.child(f"trials/{trial_id}")


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the mapping under a key, or an empty one if there is none."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def positive(settings: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """Return a number above 0 from the sweep's `analysis` section.

    Args:
        settings: The section, or one below it.
        name: The key to read.
        default: The value of a key that is absent or null; None if the key is required.

    Raises:
        InputError: The value is not a number above 0, or a required key is absent.
    """
    value = settings.get(name)
    if value is None and default is not None:
        return default
    if not _is_positive(value):
        raise InputError(f"{name} is {value!r} in the sweep's analysis; give a number above 0")
    return float(value)  # type: ignore[arg-type]


def _each_once(cells: Iterator[ResolvedCell], place: str) -> Iterator[ResolvedCell]:
    found: dict[str, ResolvedCell] = {}
    for cell in cells:
        known = found.setdefault(cell.id, cell)
        if known is not cell:
            logger.warning("%s lists trial %s twice; it counts once", place, cell.id)
            holds = tuple(dict.fromkeys([*known.holds, *cell.holds]))
            found[cell.id] = replace(known, holds=holds)
    yield from found.values()


def _cell(entry: Any, steps: Any, place: str) -> ResolvedCell:
    """Check one entry of resolved.trials. `steps` is what the sweep says for all of them."""
    if not isinstance(entry, dict) or not isinstance(entry.get("axes"), dict) or "id" not in entry:
        raise InputError(f"{place}: resolved.trials holds {entry!r}, which has no id or axes")
    trial_id, axes = entry["id"], entry["axes"]
    if not isinstance(trial_id, str) or TRIAL_ID.fullmatch(trial_id) is None:
        raise InputError(
            f"{place}: resolved.trials has the id {trial_id!r}; an id has letters, digits, - and _ "
            "only, at most 64"
        )

    def refuse(name: str, value: object, wanted: str) -> InputError:
        return InputError(f"{place}: trial {trial_id} has {name} {value!r}; give {wanted}")

    for name in axes:
        if not isinstance(name, str):
            raise refuse("the axis", name, "its name in quotes")
    seed = axes.get("seed", 0)
    if type(seed) is not int or abs(seed) > LARGEST_SEED:
        raise refuse("seed", seed, "a whole number of at most 64 bits")
    holds = entry.get("holds") or ["none"]
    if not isinstance(holds, list) or not all(isinstance(hold, str) for hold in holds):
        raise refuse("holds", holds, "a list of none, params or flops")
    multiplier = axes.get("width_multiplier")
    if multiplier is not None and not _is_width(multiplier):
        raise refuse("width_multiplier", multiplier, "a number above 0")
    for name in ("D", "d_model"):
        given = axes.get(name)
        widths = given if name == "D" and isinstance(given, list) else [given]
        if not widths or not all(map(_is_width, widths)):
            raise refuse(name, given, "a number above 0, or for D a list of them")
    # Earlier versions wrote no steps per cell.
    own = entry.get("steps", axes.get("steps", steps))
    if not COUNT.holds(own):
        raise refuse("steps", own, "a count of updates")
    return ResolvedCell(
        trial_id, axes, own, tuple(holds), section(entry, "parameters"), entry.get("flops")
    )


def _is_width(value: object) -> bool:
    return _is_positive(value) and value <= LARGEST_WIDTH  # type: ignore[operator]


def _is_positive(value: object) -> bool:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return usable and 0 < value <= LARGEST_NUMBER  # type: ignore[operator]
