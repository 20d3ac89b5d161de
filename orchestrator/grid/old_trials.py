"""Trials of other semantics versions in a sweep's directory: they stay there and are not reused.

`plan` and `run` report them before anything is trained. The semantics version enters the id, so no
trial of the sweep today has the id of an old one.
"""

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.tables.semantics import finished_beside, semantics_of_sweep
from analysis.wording import duration, plural
from trainers.spec import SEMANTICS_VERSION
from trialstore import records
from trialstore.errors import InputError
from trialstore.storage import Storage
from trialstore.sweep_file import read_sweep_file

if TYPE_CHECKING:
    from orchestrator.grid.plan import Totals

#: What each version changed from the version before.
CHANGES = {
    2: "held-out windows spread over the whole split, bits per byte of the measured tokens, every "
    "training window once an epoch, documents encoded whole, splits by size",
}


@dataclass(frozen=True)
class OldTrials:
    """The trials of other semantics versions in a sweep's directory."""

    url: str  # the sweep's directory
    versions: tuple[int, ...]  # of these trials, ascending
    finished: tuple[str, ...]  # ids
    begun: tuple[str, ...]  # ids of trials without a result; known only until the next run

    def notice(self, totals: "Totals") -> str:
        """Return the warning of `plan` and `run` about these trials.

        Args:
            totals: Cost of the plan, that is of training the sweep under the current version.
        """
        began = f" and {len(self.begun)} unfinished" if self.begun else ""
        of = " and ".join(map(str, self.versions))
        hours = totals.device_hours
        cost = "" if totals.cost is None else f", cost {totals.cost:.4g}"
        changed = "; ".join(
            text
            for version, text in CHANGES.items()
            if self.versions[0] < version <= SEMANTICS_VERSION
        )
        trains = f"{SEMANTICS_VERSION}{f' ({changed})' if changed else ''}"
        return (
            f"{self.url} has {plural(len(self.finished), 'finished trial')}{began} of semantics "
            f"version {of}, which cannot be reused: this widthlab trains version {trains}, and "
            f"losses of different versions are not comparable. Training "
            f"{plural(totals.trials, 'trial')} again costs about {hours:.2g} device-hours "
            f"({duration(hours * 3600)}{cost}). The old trials stay in the directory, but its "
            "reports will leave them out; to keep analysing them with `widthlab analyze`, give "
            "this sweep another name first"
        )


def notice_of_old_trials(sweep: Storage, totals: "Totals") -> str | None:
    """Return `OldTrials.notice` for a sweep's directory, or None if it has no old trials."""
    found = old_trials(sweep)
    return None if found is None else found.notice(totals)


def old_trials(sweep: Storage) -> OldTrials | None:
    """Find the trials of other semantics versions in a sweep's directory; None if there are none.

    Lists the directory once. Trials in sweep.yaml have the version of the file, so only results of
    other trials are read.
    """
    of_sweep, named = SEMANTICS_VERSION, set[str]()
    with contextlib.suppress(InputError):  # no run yet, or one that a new run will write anew
        resolved = read_sweep_file(sweep)
        of_sweep, named = semantics_of_sweep(resolved), set(resolved.ids)
    versions, finished, begun = set[int](), set[str](), set[str]()
    if of_sweep != SEMANTICS_VERSION:
        files = {tuple(key.split("/")[1:]) for key in sweep.list("trials")}
        finished = {name for name in named if (name, records.RESULT) in files}
        begun = {name for name in named - finished if (name, records.SPEC) in files}
        versions = {of_sweep} if finished or begun else set()
    for version, ids in finished_beside(sweep, named).items():
        if version is not None and version != SEMANTICS_VERSION:
            versions.add(version)
            finished |= set(ids)
    if not versions:
        return None
    return OldTrials(
        sweep.url, tuple(sorted(versions)), tuple(sorted(finished)), tuple(sorted(begun))
    )


def check_discard(sweep: Storage, trial_id: str) -> str:
    """Return what the next `widthlab run` does after a trial is discarded, as the end of a message.

    Raises:
        InputError: The trial is finished and no run would train it again.
    """
    old = old_trials(sweep)
    if old is None or trial_id not in {*old.finished, *old.begun}:
        return "trains it again"
    if trial_id in old.finished:
        raise InputError(
            f"trial {trial_id} of {sweep.url} has semantics version {old.versions[0]}, which this "
            "widthlab does not train, so discarding it would lose it. `widthlab run` with the "
            f"sweep's file trains the whole sweep under version {SEMANTICS_VERSION}; to delete the "
            "old trial, remove its folder"
        )
    return f"trains its cell under version {SEMANTICS_VERSION} and a new id"
