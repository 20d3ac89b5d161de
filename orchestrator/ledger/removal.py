"""Remove objects from a sweep's directory: a whole trial, or the objects that nobody needs.

Trainers tidy up after themselves. `widthlab gc` finds the objects that killed trainers left behind
and the checkpoints that only `widthlab export` still reads; `widthlab rerun` discards a trial.
"""

from collections.abc import Collection
from dataclasses import dataclass

from orchestrator.ledger.ledger import read_ledger
from trialstore.records import (
    LEASE,
    OUTCOMES,
    RESULT,
    SCHEMAS,
    checkpoint_folder,
    committed_steps,
    get_result,
    manifest_key,
)
from trialstore.storage import Storage
from trialstore.sweep_file import trial_storage

#: A write that nobody has continued for so many seconds was cut off.
CUT_OFF_S = 3600.0


@dataclass(frozen=True)
class Unneeded:
    """Objects of a sweep that may be removed for the same reason."""

    what: str  # the reason
    sizes: dict[str, int]  # bytes by key, in the order of removal

    @property
    def nbytes(self) -> int:
        """Bytes of all objects."""
        return sum(self.sizes.values())

    def remove(self, sweep: Storage) -> None:
        """Delete the objects from the sweep's directory."""
        for key in self.sizes:
            sweep.delete(key)


def unneeded(sweep: Storage, final: bool = False) -> list[Unneeded]:
    """Find the objects of a sweep that nobody needs. Everything of an unfinished trial is needed.

    Args:
        sweep: The sweep's directory.
        final: Also list the last checkpoints of finished trials. Once all trials are over, only
            `widthlab export` reads them.

    Raises:
        InputError: `sweep` is not a sweep's directory.
    """
    trials = read_ledger(sweep).trials
    over = all(trial.over for trial in trials)
    superseded: dict[str, int] = {}
    last: dict[str, int] = {}
    for trial in trials:
        if trial.state in OUTCOMES:
            storage = trial_storage(sweep, trial.id)
            sizes = storage.sizes()
            kept = _kept_checkpoints(sizes, branching=not over)
            unused = _unused(storage, sizes, kept)
            below = f"trials/{trial.id}"
            superseded |= {f"{below}/{key}": sizes[key] for key in unused}
            last |= {f"{below}/{key}": sizes[key] for key in _of_checkpoints(sizes, kept)}
    found = [
        Unneeded("writes that were cut off", sweep.unfinished(older_than_s=CUT_OFF_S)),
        Unneeded("superseded parts and checkpoints of finished trials", superseded),
    ]
    return [*found, Unneeded("last checkpoints of finished trials", last)] if final else found


def discard(trial: Storage) -> int:
    """Remove everything of a trial and return the number of removed objects.

    The order makes a discard that is killed halfway harmless. The result goes first, so no reader
    takes the trial for finished; then the manifests, so no attempt continues from a checkpoint. The
    lease goes last: it keeps the newest attempt's number until the rows of that attempt are gone,
    because a later attempt with a smaller number would be hidden by them.
    """
    keys = trial.list()
    manifests = {manifest_key(step) for step in committed_steps(keys)}
    order = {RESULT: 0, **dict.fromkeys(manifests, 1), LEASE: 3}
    for key in sorted(keys, key=lambda key: order.get(key, 2)):
        trial.delete(key)
    for key in trial.unfinished():
        trial.delete(key)
    return len(keys)


def _kept_checkpoints(keys: Collection[str], branching: bool) -> list[int]:
    """Steps of the checkpoints to keep: the last, or all while other trials may branch off."""
    steps = committed_steps(keys)
    return steps if branching else steps[-1:]


def _unused(trial: Storage, keys: Collection[str], kept: list[int]) -> list[str]:
    """Checkpoint files and parts of a finished trial that are not kept or named by its result."""
    result = get_result(trial)
    named = set(result["records"].values()) if result else set()
    needed = named | set(_of_checkpoints(keys, kept))
    folders = ("checkpoints/", *(f"{table}/" for table in SCHEMAS))
    return _manifests_first([key for key in keys if key.startswith(folders) and key not in needed])


def _of_checkpoints(keys: Collection[str], steps: list[int]) -> list[str]:
    folders = tuple(f"{checkpoint_folder(step)}/" for step in steps)
    return _manifests_first([key for key in keys if key.startswith(folders)])


def _manifests_first(keys: Collection[str]) -> list[str]:
    """Sort manifests first: without one the remaining files are not a checkpoint."""
    manifests = {manifest_key(step) for step in committed_steps(keys)}
    return sorted(keys, key=lambda key: (key not in manifests, key))
