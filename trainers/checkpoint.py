"""Checkpoints: staged locally by DeepSpeed, stored whole, and counting only once committed.

The manifest is written last. It names every file with its SHA-256 and every record part the
checkpoint rests on; a checkpoint whose files do not match it is not used.
"""

import hashlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.records import Manifest, checkpoint_folder, committed_steps, manifest_key
from analysis.storage import LocalStorage, Storage
from trainers.engine import Engine, Ranks
from trainers.spec import Layout
from trainers.writer import TrialWriter

logger = logging.getLogger(__name__)


class NoUsableCheckpointError(InputError):
    """Checkpoints were committed and none of them can be used; step 0 is never the answer."""


def save(
    engine: Engine,
    trial: Storage,
    writer: TrialWriter | None,
    ranks: Ranks,
    step: int,
    state: dict[str, Any],
    layout: Layout,
) -> None:
    """Store and commit the state after `step` updates. Collective; rank 0 has the writer."""
    tag = f"step-{step:08d}"
    staging = _staging(ranks)
    try:
        engine.save(staging, tag, state)
        if writer is not None:
            # Before the first file: one that was replaced must not touch its successor's.
            writer.flush()
        ranks.barrier()
        files: dict[str, dict[str, Any]] = {}
        if ranks.local_rank == 0:
            for path in sorted((staging / tag).rglob("*")):
                if path.is_file():
                    name = path.relative_to(staging / tag).as_posix()
                    trial.put_file(f"{checkpoint_folder(step)}/{name}", path)
                    files[name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for others in ranks.gather(files):
            files = {**others, **files}
        if writer is not None:
            writer.commit(step, files, layout.model_dump(mode="json"))
            writer.prune_checkpoints(layout.keep_checkpoints, layout.branch_points)
        ranks.barrier()
    finally:
        if ranks.local_rank == 0:
            shutil.rmtree(staging, ignore_errors=True)


def newest_usable(trial: Storage) -> Manifest | None:
    """`newest_intact`, for the writer of the trial: newer checkpoints that are damaged lose their
    manifests, so that no reader rests on them either."""
    manifest = newest_intact(trial)
    if manifest is not None:
        for step in committed_steps(trial.list("checkpoints")):
            if step > manifest.step:
                trial.delete(manifest_key(step))
    return manifest


def newest_intact(trial: Storage) -> Manifest | None:
    """The newest committed checkpoint whose files match its manifest; None if none was made.

    Raises NoUsableCheckpointError if all are damaged: whoever goes on must not take the trial for
    one that has no checkpoint.
    """
    steps = committed_steps(trial.list("checkpoints"))
    for step in reversed(steps):
        try:
            manifest = Manifest.from_json(trial.get(manifest_key(step)))
            broken = damage(trial, manifest)
        except ValueError as error:
            broken = str(error)
        if broken is None:
            return manifest
        logger.warning("%s: checkpoint %d is not usable: %s", trial.url, step, broken)
    if steps:
        raise NoUsableCheckpointError(
            f"{trial.url}: none of the checkpoints of steps {steps} is intact; "
            "`widthlab rerun` discards the trial and trains it anew"
        )
    return None


def load(engine: Engine, trial: Storage, manifest: Manifest, ranks: Ranks) -> dict[str, Any]:
    """Restore the engine and return the state that was saved with it. Collective."""
    tag = f"step-{manifest.step:08d}"
    staging = _staging(ranks)
    try:
        if ranks.local_rank == 0:
            for name in manifest.files:
                path = LocalStorage(staging / tag).path(name)  # refuses a name that leads outside
                path.parent.mkdir(parents=True, exist_ok=True)
                trial.get_file(f"{checkpoint_folder(manifest.step)}/{name}", path)
        ranks.barrier()
        state = engine.load(staging, tag)
        ranks.barrier()
        return state
    finally:
        if ranks.local_rank == 0:
            shutil.rmtree(staging, ignore_errors=True)


def _staging(ranks: Ranks) -> Path:
    """A new local folder, the same one for all ranks of a node."""
    made = tempfile.mkdtemp(prefix="widthlab-checkpoint-") if ranks.local_rank == 0 else None
    # Ranks are numbered node by node: the last local rank 0 before this one is this node's.
    before = ranks.gather(made)[: ranks.rank + 1]
    return Path(next(folder for folder in reversed(before) if folder))


def damage(trial: Storage, manifest: Manifest) -> str | None:
    """What of a committed checkpoint is not as its manifest says; None if nothing."""
    for name, expected in manifest.files.items():
        try:
            data = trial.get(f"{checkpoint_folder(manifest.step)}/{name}")
        except FileNotFoundError:
            return f"{name} is missing"
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            return f"{name} does not match its hash"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
