"""A trial directory as the MLflow exporter sees it, and the steps that MLflow lacks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from orchestrator.mlflow.points import COLUMNS, Row, StepPoints, step_points
from trialstore.records import (
    METRICS,
    ROW_KEYS,
    SCHEMAS,
    SPEC,
    BrokenRecordError,
    Part,
    current_parts,
    get_json,
    live_parts,
    read_part,
)
from trialstore.storage import Storage
from trialstore.trial_state import TrialState, read_state

#: Table -> the last step that was sent completely.
Watermark = Mapping[str, int]
#: Before the evaluation and snapshot of step 0.
NOTHING_SENT = -1


@dataclass(frozen=True)
class TrialView:
    """A trial's state in its directory. Equal views mean that there is nothing new to send."""

    outcome: str  # "waiting", "running" (begun and not over), "failed", or that of the result
    parts: tuple[str, ...]
    result: Mapping[str, Any] | None
    failure: Mapping[str, Any] | None
    collapsed_since: int | None = None  # the step from which its layers are marked as collapsed
    spikes: int | None = None  # of its training loss so far; None where it was not watched
    spiking_since: int | None = None  # update at which a spike began that is not over

    @property
    def over(self) -> bool:
        """Whether the trial has a result, so that it will not change."""
        return self.result is not None


def view(trial: Storage) -> TrialView:
    """Read the state of a trial: one list and a few small objects.

    Raises BrokenRecordError for broken records, OSError if they cannot be read.
    """
    keys = trial.list()
    if not keys:
        return TrialView("waiting", (), None, None)
    found = read_state(trial, keys=keys)
    if found.result is not None:
        parts = tuple(sorted(found.result["records"].values()))
        return TrialView(found.state, parts, found.result, None, *_marks(found))
    parts = tuple(live_parts(trial, keys))
    if found.state == "failed":
        return TrialView("failed", parts, None, found.failure, *_marks(found))
    # MLflow shows a trial that has begun as RUNNING until it is over, be it stale or about to be
    # retried: its run exists, and the next attempt continues it.
    begun = bool(parts) or (SPEC in keys and get_json(trial, SPEC) is not None)
    outcome = "running" if begun else "waiting"
    return TrialView(outcome, parts, None, None, *_marks(found))


def _marks(found: TrialState) -> tuple[int | None, int | None, int | None]:
    return found.collapsed_since, found.spikes, found.spiking_since


def started_ms(trial: Storage, seen: TrialView) -> int | None:
    """Return the time of the trial's first row, Unix milliseconds; None if there is none yet."""
    first = next((part for part in seen.parts if part.startswith(f"{METRICS}/")), None)
    if first is None:
        return None
    times = read_part(trial, first, ["time_ms"]).column("time_ms")
    earliest: int = pc.min(times).as_py()
    return earliest


def ended_ms(seen: TrialView, points: Sequence[StepPoints]) -> int | None:
    """Return the time at which the trial ended, Unix milliseconds; None if unknown.

    Taken from its result, its failure or its last point. Raises BrokenRecordError for an impossible
    time.
    """
    stated = (seen.result or {}).get("finished_ms") or (seen.failure or {}).get("time_ms")
    if stated is not None:
        # A database rejects more than 64 bits with an error that looks as if it did not answer.
        if not isinstance(stated, int | float) or not 0 < stated < 2**63:
            raise BrokenRecordError(
                f"the trial's end time {stated!r} is not a time in milliseconds"
            )
        return int(stated)
    return max((point.time_ms for step in points for point in step.points), default=None)


def unsent(trial: Storage, seen: TrialView, watermark: Watermark) -> list[StepPoints]:
    """Return the durable steps beyond the watermark, in order of step.

    Steps beyond the parts in `seen` wait for the next call. A list that runs while parts are
    written may contain a part and miss an earlier one. But it contains every part of an earlier
    list, and every part that was written before one of those.

    Args:
        trial: The trial's directory.
        seen: An earlier view of the trial.
        watermark: The steps that MLflow has.

    Raises:
        FileNotFoundError: The trial was compacted meanwhile; view it again.
    """
    now = current_parts(trial)
    steps: list[StepPoints] = []
    for table in SCHEMAS:
        known = [part for part in map(Part.parse, seen.parts) if part and part.table == table]
        reached = max((part.last for part in known), default=NOTHING_SENT)
        beyond = watermark.get(table, NOTHING_SENT)
        rows = [row for row in _rows(trial, table, now, beyond) if row["step"] <= reached]
        steps += step_points(table, rows)
    return sorted(steps, key=lambda step: (step.step, step.table))


def _rows(trial: Storage, table: str, keys: list[str], beyond: int) -> Iterator[Row]:
    """Rows beyond a step, in order, each once. Of overlapping parts the first counts."""
    found: dict[tuple[Any, ...], Row] = {}
    for key in sorted(keys):
        part = Part.parse(key)
        if part is None or part.table != table or part.last <= beyond:
            continue
        rows = read_part(trial, key, COLUMNS[table])
        for row in rows.filter(pc.greater(rows.column("step"), beyond)).to_pylist():
            found.setdefault(tuple(row[name] for name in ROW_KEYS[table]), row)
    yield from (found[identity] for identity in sorted(found))
