"""The semantics version of trials: the rules under which they were trained and measured.

A law is fitted to trials of one version only. docs/trial-directory.md lists what each version
changed.
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
    """Return the version of a finished trial. Raises BrokenRecordError if it is not a count."""
    return _version(result, place)


def refuse_mixed(versions: Iterable[int], place: str) -> None:
    """Raise InputError if the versions of a sweep's finished trials differ.

    Args:
        versions: The version of each finished trial.
        place: The sweep's URL, for the message.
    """
    counts = Counter(versions)
    if len(counts) > 1:
        found = " and ".join(
            f"{plural(number, 'finished trial')} of semantics version {version}"
            for version, number in sorted(counts.items())
        )
        raise InputError(
            f"{place} has {found}: their losses and spectra were measured by different rules, so "
            "one law cannot describe both; `widthlab run` with the sweep's file trains the missing "
            "trials of the current version and leaves the others out"
        )


def finished_beside(sweep: Storage, named: Collection[str]) -> dict[int | None, tuple[str, ...]]:
    """Find finished trials in a sweep's directory that its file does not name.

    Reads only the results of these trials.

    Args:
        sweep: The sweep's directory.
        named: The ids that the file names.

    Returns:
        Sorted ids by semantics version, under None those whose result cannot be read.
    """
    others = sorted(finished_trials(sweep).difference(named))

    def version(trial_id: str) -> int | None:
        key = f"trials/{trial_id}/{records.RESULT}"
        try:
            return semantics_of_result(records.get_json(sweep, key) or {}, sweep.url_of(key))
        except BrokenRecordError:
            return None

    found: dict[int | None, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(READERS) as readers:
        for trial_id, own in zip(others, readers.map(version, others), strict=True):
            found[own].append(trial_id)
    return {own: tuple(members) for own, members in found.items()}


def _version(content: Mapping[str, Any], place: str) -> int:
    given = content.get(NAME, FIRST_SEMANTICS)
    if not COUNT.holds(given) or given < FIRST_SEMANTICS:
        raise BrokenRecordError(
            f"{place} has {NAME} {given!r}, which is not a whole number from 1 on"
        )
    return int(given)
