"""What of a sweep's directory nobody needs any more, with its size; `widthlab gc` removes it.

Trainers tidy up after themselves. What is found here was left by those that were killed meanwhile,
or is kept for uses that a sweep may be past.
"""

from collections.abc import Collection
from dataclasses import dataclass

from orchestrator.ledger.ledger import read_ledger, trial_storage
from trialstore.records import (
    OUTCOMES,
    SCHEMAS,
    checkpoint_folder,
    committed_steps,
    get_result,
    manifest_key,
)
from trialstore.storage import Storage

#: A put that nobody has written to for so long (seconds) was cut off.
CUT_OFF_S = 3600.0


@dataclass(frozen=True)
class Unneeded:
    """Objects of a sweep that may go for the same reason."""

    what: str
    sizes: dict[str, int]  # bytes by key, in the order in which they may be removed

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    def remove(self, sweep: Storage) -> None:
        for key in self.sizes:
            sweep.delete(key)


def unneeded(sweep: Storage, final: bool = False) -> list[Unneeded]:
    """What may go, by why: with `final` also the last checkpoints of finished trials, which
    nothing but `export` reads once all trials are over.

    Of trials that are not finished everything is needed. Raises InputError if it is no sweep's
    directory.
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
        Unneeded("what died while it was being written", sweep.unfinished(older_than_s=CUT_OFF_S)),
        Unneeded("parts and checkpoints that finished trials do not rest on", superseded),
    ]
    return [*found, Unneeded("last checkpoints of finished trials", last)] if final else found


def _kept_checkpoints(keys: Collection[str], branching: bool) -> list[int]:
    """The last, and while trials are to come that may branch off, all that were committed."""
    steps = committed_steps(keys)
    return steps if branching else steps[-1:]


def _unused(trial: Storage, keys: Collection[str], kept: list[int]) -> list[str]:
    """What of a finished trial's checkpoints and parts is neither kept nor named by its result."""
    result = get_result(trial)
    named = set(result["records"].values()) if result else set()
    needed = named | set(_of_checkpoints(keys, kept))
    folders = ("checkpoints/", *(f"{table}/" for table in SCHEMAS))
    return _manifests_first([key for key in keys if key.startswith(folders) and key not in needed])


def _of_checkpoints(keys: Collection[str], steps: list[int]) -> list[str]:
    folders = tuple(f"{checkpoint_folder(step)}/" for step in steps)
    return _manifests_first([key for key in keys if key.startswith(folders)])


def _manifests_first(keys: Collection[str]) -> list[str]:
    """A checkpoint without a manifest is none: nobody rests on half of one."""
    manifests = {manifest_key(step) for step in committed_steps(keys)}
    return sorted(keys, key=lambda key: (key not in manifests, key))
