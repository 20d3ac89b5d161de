"""What training and measuring meant in each trial of a sweep: its semantics version.

A law holds trials of one version only. What a later version changed is in docs/trial-directory.md.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from analysis.wording import plural
from trialstore import records
from trialstore.errors import InputError
from trialstore.json_objects import COUNT, BrokenRecordError
from trialstore.records import FIRST_SEMANTICS
from trialstore.storage import Storage
from trialstore.sweep_file import ResolvedSweep, section
from trialstore.trial_state import READERS, finished_trials

NAME = "semantics_version"


def semantics_of_sweep(sweep: ResolvedSweep) -> int:
    """Return the version that a sweep was run under. Raises InputError if it is not a count."""
    return _version(section(sweep.content, "resolved"), sweep.place)


def semantics_of_result(result: Mapping[str, Any], place: str) -> int:
    """The version of a finished trial. Raises BrokenRecordError for one that is no count."""
    return _version(result, place)


def refuse_mixed(versions: Iterable[int], place: str) -> None:
    """Raises InputError where finished trials are of several versions."""
    counts = Counter(versions)
    if len(counts) > 1:
        found = " and ".join(
            f"{plural(number, 'finished trial')} of semantics version {version}"
            for version, number in sorted(counts.items())
        )
        raise InputError(
            f"{place} has {found}: their losses and spectra were measured by different rules, so "
            "no law can hold both; `widthlab run` with the sweep's file trains what is not of the "
            "current version anew and leaves the rest out"
        )


def finished_beside(sweep: Storage, named: Collection[str]) -> dict[int | None, tuple[str, ...]]:
    """Finished trials in a sweep's directory that are not among the `named` ids, by their version;
    None where a trial's result does not tell. Reads nothing but their results."""
    others = sorted(finished_trials(sweep).difference(named))

    def version(trial_id: str) -> int | None:
        key = f"trials/{trial_id}/{records.RESULT}"
        try:
            return semantics_of_result(records.get_json(sweep, key) or {}, sweep.url_of(key))
        except BrokenRecordError:
            return None  # it is counted as such

    found: dict[int | None, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(READERS) as readers:
        for trial_id, own in zip(others, readers.map(version, others), strict=True):
            found[own].append(trial_id)
    return {own: tuple(members) for own, members in found.items()}


def _version(content: Mapping[str, Any], place: str) -> int:
    given = content.get(NAME, FIRST_SEMANTICS)
    if not COUNT.holds(given) or given < FIRST_SEMANTICS:
        raise BrokenRecordError(f"{place} says {NAME} {given!r}; it is a whole number from 1")
    return int(given)
