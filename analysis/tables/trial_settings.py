"""The settings of a trial as its spec.json has them, with dotted names such as `training.steps`.

spec.json is written by the attempt that trains, so it says what a trial was trained with, whatever
the sweep file says now.
"""

import logging
from collections.abc import Mapping
from typing import Any

from trialstore import records
from trialstore.json_objects import BrokenRecordError
from trialstore.storage import Storage

logger = logging.getLogger(__name__)

#: Parts of a spec that are no settings: its id, where the corpus lies (`data` identifies its
#: tokens), the layout (the result says which one was used), and the cell's names on the grid.
OUTSIDE = frozenset({"id", "source", "layout", "axes"})


def flat_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a spec by name: `section.key`, those at their defaults too.

    A section itself has its name and True, so that it differs from one that is null. Of `parent`,
    the id of a trial whose weights this one starts from, there is only whether it has one.
    """
    found: dict[str, Any] = {}
    for name, value in spec.items():
        if name in OUTSIDE:
            continue
        if isinstance(value, Mapping):
            found[name] = True
            found |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            found[name] = value is not None if name == "parent" else value
    return found


def read_settings(trial: Storage, trial_id: str) -> dict[str, Any] | None:
    """Return the settings of a trial; None if it has no spec.json, or none that can be read.

    Args:
        trial: The trial's directory.
        trial_id: The expected id; the spec of another trial is not used.
    """
    try:
        spec = records.get_json(trial, records.SPEC, needs=("id",))
    except BrokenRecordError as error:
        logger.warning("%s; its settings are not compared with those of other trials", error)
        return None
    if spec is None:
        return None
    if spec["id"] != trial_id:
        logger.warning(
            "%s is of trial %s; the settings of trial %s are not compared with those of others",
            trial.url_of(records.SPEC),
            spec["id"],
            trial_id,
        )
        return None
    return flat_settings(spec)
