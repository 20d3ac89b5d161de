"""Branching off: begin a trial from another trial's checkpoint, if both share their first steps.

Under the schedule wsd, trials that differ only in their number of steps are the same until the
first of them decays. The shorter ones, the branches, need not repeat that part: each starts with
the checkpoint and the records of the longest, the trunk, and continues as after an interruption.
"""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trainers.durable.checkpoint import DamagedCheckpointError, described, fetch
from trainers.durable.scratch import scratch_folder
from trainers.spec import TrialSpec, parse_layout
from trialstore import records
from trialstore.errors import InputError
from trialstore.records import (
    SCHEMAS,
    Manifest,
    Part,
    attempt_folder,
    manifest_key,
    read_manifest,
)
from trialstore.storage import Storage, is_away

logger = logging.getLogger(__name__)

#: The attempt that inherited records carry. A trial's own attempts count from 1.
INHERITED = 0
#: Fields of a layout that a checkpoint is cut and placed by; a branch must have the same.
FIXED = ("device", "workers", "zero_stage")


def fork(trunk: Storage, branch: Storage, spec: TrialSpec, step: int) -> bool:
    """Begin a trial with the state and the records that its trunk had after `step` updates.

    Nothing is written if the branch has begun, or if the trunk has no intact checkpoint of that
    step in the branch's layout, or no readable records. The branch then trains from step 0, to the
    same end.

    Args:
        trunk: Directory of the trial to branch off from.
        branch: Directory of the branch.
        spec: The branch.
        step: Updates that both have in common.

    Returns:
        Whether the branch was begun.

    Raises:
        OSError: The trunk's storage does not answer, or the branch cannot be written.
    """
    if records.committed_steps(branch.list("checkpoints")) or records.RESULT in branch.list():
        return False
    try:
        manifest = read_manifest(trunk, step)
        stored = parse_layout(manifest.layout, f"{trunk.url_of(manifest_key(step))}: layout")
    except (FileNotFoundError, InputError) as error:
        logger.warning(
            "%s has no checkpoint of step %d to branch off from: %s", trunk.url, step, error
        )
        return False
    unlike = [name for name in FIXED if getattr(stored, name) != getattr(spec.layout, name)]
    if unlike:
        logger.warning("%s was trained with another %s", trunk.url, " and ".join(unlike))
        return False
    try:
        tables = {table: records.read_records(trunk, table) for table in SCHEMAS}
    except (InputError, OSError, pa.ArrowException) as error:
        if is_away(error):  # the records may be there; do not train from step 0 yet
            raise
        logger.warning("%s: its records cannot be read: %s", trunk.url, error)
        return False
    with scratch_folder() as folder:
        try:
            fetch(trunk, manifest, folder)
        except (FileNotFoundError, DamagedCheckpointError) as error:
            logger.warning("%s: checkpoint %d is not usable: %s", trunk.url, step, error)
            return False
        files = _put_files(branch, folder, step)
    inherited = []
    for table, rows in tables.items():
        rows = rows.filter(pc.field("step") <= step)
        if rows.num_rows:
            steps = rows.column("step")
            part = Part(table, INHERITED, steps[0].as_py(), steps[-1].as_py())
            inherited.append(records.put_table(branch, part, rows))
    own = Manifest(
        trial_id=spec.id,
        step=step,
        attempt=INHERITED,
        files=files,
        records=inherited,
        layout=spec.layout.model_dump(mode="json"),
    )
    branch.put(manifest_key(step), own.to_json())
    return True


def _put_files(branch: Storage, folder: Path, step: int) -> dict[str, dict[str, Any]]:
    """Store a checkpoint's files, and return their entries for the manifest."""
    place = attempt_folder(step, INHERITED)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        branch.put_file(f"{place}/{name}", path)
        files[f"{Path(place).name}/{name}"] = described(path)
    return files
