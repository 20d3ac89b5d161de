"""Checkpoints: DeepSpeed writes them to a local folder; then they are stored and committed.

The manifest is written last, which commits the checkpoint. It names every file with its SHA-256,
and every record part that the checkpoint rests on. A checkpoint whose files do not match its
manifest is not used. Files are streamed, because a checkpoint may be larger than memory.
"""

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from trainers.durable.scratch import scratch_folder
from trainers.engine.engine import Engine, Ranks
from trainers.spec import Layout
from trialstore.claims import Fence
from trialstore.errors import InputError
from trialstore.records import (
    BrokenRecordError,
    Manifest,
    attempt_folder,
    checkpoint_folder,
    committed_steps,
    manifest_key,
    read_manifest,
)
from trialstore.storage import CHUNK, LocalStorage, Storage, naming_a_full_disk

logger = logging.getLogger(__name__)


class NoUsableCheckpointError(InputError):
    """Checkpoints were committed, and none is intact. The trial must not restart from step 0."""


class DamagedCheckpointError(RuntimeError):
    """A fetched checkpoint file does not match its manifest."""


class Records(Protocol):
    """The records that a checkpoint rests on; silent on ranks other than 0."""

    def flush(self) -> None:
        """Write every row now."""

    def commit(self, step: int, files: dict[str, dict[str, Any]], layout: Layout) -> None:
        """Commit the checkpoint whose `files` are stored, and remove those no longer needed."""


def save(
    engine: Engine,
    fence: Fence,
    recorded: Records,
    ranks: Ranks,
    step: int,
    state: dict[str, Any],
    layout: Layout,
) -> None:
    """Store and commit the state after `step` updates. Collective.

    Args:
        engine: The engine to save.
        fence: Checked before each file is stored.
        recorded: The trial's records; they are flushed before the checkpoint is committed.
        ranks: This process among those of the trial.
        step: Updates that the weights have had.
        state: What `load` returns again, beside the engine's state.
        layout: Recorded in the manifest; says how many checkpoints are kept.

    Raises:
        LeaseLostError: A newer attempt writes the trial.
        OSError: A disk is full; the message names the place, and needed and free bytes.
    """
    tag = f"step-{step:08d}"
    folder = attempt_folder(step, fence.claim.attempt)
    with _staging(ranks) as staging:
        _stage(engine, staging, tag, state)
        # Before the first file: an attempt that was replaced then writes nothing more.
        recorded.flush()
        ranks.barrier()
        files: dict[str, dict[str, Any]] = {}
        if ranks.local_rank == 0:
            for path in sorted((staging / tag).rglob("*")):
                if path.is_file():
                    name = path.relative_to(staging / tag).as_posix()
                    fence.check()
                    fence.trial.put_file(f"{folder}/{name}", path)
                    stored = f"{Path(folder).name}/{name}"
                    files[stored] = described(path)
        for others in ranks.gather(files):
            files = {**others, **files}
        recorded.commit(step, files, layout)
        ranks.barrier()


def _stage(engine: Engine, staging: Path, tag: str, state: dict[str, Any]) -> None:
    """Have the engine write its files. torch does not say that a disk is full, so this does."""
    try:
        with naming_a_full_disk(staging / tag):
            engine.save(staging, tag, state)
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        free = shutil.disk_usage(staging).free
        raise OSError(
            f"{staging}: torch could not write the checkpoint {tag} there, with {free:,} bytes "
            "free; free some, or set TMPDIR to a disk with more room"
        ) from error


def newest_usable(fence: Fence) -> Manifest | None:
    """Return `newest_intact` to the trial's writer, and uncommit newer, damaged checkpoints.

    Without their manifests, no reader uses the damaged checkpoints either.

    Raises:
        NoUsableCheckpointError: All committed checkpoints are damaged.
        LeaseLostError: A newer attempt writes the trial.
    """
    manifest, damaged = _newest(fence.trial)
    for step in damaged if manifest is not None else ():
        fence.check()  # a successor may have replaced the damaged checkpoint by an intact one
        fence.trial.delete(manifest_key(step))
    return manifest


def newest_intact(trial: Storage) -> Manifest | None:
    """Return the newest checkpoint whose files match its manifest; None if none was committed.

    Raises:
        NoUsableCheckpointError: All committed checkpoints are damaged. The caller must not take
            the trial for one without a checkpoint.
    """
    return _newest(trial)[0]


def _newest(trial: Storage) -> tuple[Manifest | None, list[int]]:
    """`newest_intact`, and the steps of the newer checkpoints that are damaged."""
    damaged: list[int] = []
    for step in reversed(committed_steps(trial.list("checkpoints"))):
        try:
            manifest = read_manifest(trial, step)
            broken = damage(trial, manifest)
        except (BrokenRecordError, FileNotFoundError) as error:
            broken = str(error)
        if broken is None:
            return manifest, damaged
        damaged.append(step)
        logger.warning("%s: checkpoint %d is not usable: %s", trial.url, step, broken)
    if damaged:
        raise NoUsableCheckpointError(
            f"{trial.url}: none of the checkpoints of steps {damaged[::-1]} is intact; "
            "`widthlab rerun` discards the trial and trains it anew"
        )
    return None, []


def load(engine: Engine, trial: Storage, manifest: Manifest, ranks: Ranks) -> dict[str, Any]:
    """Restore the engine, and return the `state` that `save` was given. Collective.

    Raises:
        DamagedCheckpointError: A file does not match the manifest.
    """
    tag = f"step-{manifest.step:08d}"
    with _staging(ranks) as staging:
        if ranks.local_rank == 0:
            fetch(trial, manifest, staging / tag)
        ranks.barrier()
        state = engine.load(staging, tag)
        ranks.barrier()
        return state


def fetch(trial: Storage, manifest: Manifest, folder: Path) -> None:
    """Copy the files that a manifest lists to a local folder, under DeepSpeed's names.

    Raises:
        DamagedCheckpointError: A file does not match the manifest.
        FileNotFoundError: A file is missing.
        ValueError: A name in the manifest leads outside the folder.
    """
    local = LocalStorage(folder)
    for name, expected in manifest.files.items():
        path = local.path(_as_staged(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.get_file(f"{checkpoint_folder(manifest.step)}/{name}", path)
        if _sha256(path) != expected["sha256"]:
            raise DamagedCheckpointError(
                f"{trial.url}: {name} of checkpoint {manifest.step} does not match its hash"
            )


def described(path: Path) -> dict[str, Any]:
    """Return the manifest's entry for a file: its SHA-256 and its size in bytes."""
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _as_staged(name: str) -> str:
    """A file's name without its attempt folder; checkpoints of earlier versions have none."""
    return re.sub(r"^attempt-\d+/", "", name)


@contextlib.contextmanager
def _staging(ranks: Ranks) -> Iterator[Path]:
    """A local folder for the time of the block, shared by all ranks of a node. Collective."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(scratch_folder()) if ranks.local_rank == 0 else None
        # Ranks are numbered node by node, so the last folder up to this rank is this node's.
        before = ranks.gather(made)[: ranks.rank + 1]
        yield next(folder for folder in reversed(before) if folder)


def damage(trial: Storage, manifest: Manifest) -> str | None:
    """Return how a committed checkpoint differs from its manifest; None if it is intact."""
    for name, expected in manifest.files.items():
        try:
            with trial.open(f"{checkpoint_folder(manifest.step)}/{name}") as stream:
                found = _digest(stream)
        except (FileNotFoundError, IsADirectoryError):
            return f"{name} is missing"
        if found != expected["sha256"]:
            return f"{name} does not match its hash"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return _digest(file)


def _digest(stream: IO[bytes]) -> str:
    found = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        found.update(chunk)
    return found.hexdigest()
