"""Trials of other semantics versions in a sweep's directory: kept, and used for nothing.

`plan` and `run` say so before anything is trained. Their ids are made with their own version, so
no trial that the sweep's file names now is ever one of them.
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

#: What is another in a version than in the one before, in a few words.
CHANGES = {
    2: "held-out windows spread over their whole split, bits per byte of the measured tokens, "
    "every training window once an epoch, documents encoded whole, splits by size",
}


@dataclass(frozen=True)
class OldTrials:
    """The trials of other versions that lie in a sweep's directory."""

    url: str  # of the sweep
    versions: tuple[int, ...]  # theirs, ascending
    finished: tuple[str, ...]  # ids
    begun: tuple[str, ...]  # ids of those without a result; known only before the first new run

    def notice(self, totals: "Totals") -> str:
        """What a plan and a run say before anything is trained; `totals` are the plan's."""
        began = f" and {len(self.begun)} that had begun" if self.begun else ""
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
            f"{self.url} holds {plural(len(self.finished), 'finished trial')}{began} of semantics "
            f"version {of}, and nothing of it is reused: this widthlab trains version {trains}, "
            f"whose losses cannot be compared with theirs. Training "
            f"{plural(totals.trials, 'trial')} anew costs about {hours:.2g} device-hours "
            f"({duration(hours * 3600)}{cost}). The old ones stay in the directory, and its "
            "reports leave them out: to go on judging them with `widthlab analyze`, give this "
            "sweep another name first"
        )


def notice_of_old_trials(sweep: Storage, totals: "Totals") -> str | None:
    """`OldTrials.notice`, None where there is nothing to say."""
    found = old_trials(sweep)
    return None if found is None else found.notice(totals)


def old_trials(sweep: Storage) -> OldTrials | None:
    """What of other versions lies in a sweep's directory; None where nothing does.

    Lists the directory once. Only results of trials that its sweep.yaml does not name are read:
    those that it names are of its own version.
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
    """What `widthlab run` makes of a trial once it is discarded. Raises InputError for one with a
    result that no run would train again."""
    old = old_trials(sweep)
    if old is None or trial_id not in {*old.finished, *old.begun}:
        return "trains it anew"
    if trial_id in old.finished:
        raise InputError(
            f"trial {trial_id} of {sweep.url} is of semantics version {old.versions[0]}, which "
            "this widthlab does not train: discarded it would be lost. `widthlab run` with the "
            f"sweep's file trains all of it anew under version {SEMANTICS_VERSION}; who wants the "
            "old trial gone removes its folder"
        )
    return f"trains its cell anew under version {SEMANTICS_VERSION} and an id of its own"
