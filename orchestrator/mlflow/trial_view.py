"""What a trial directory holds that MLflow has not seen: cheap to ask again and again."""

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
from trialstore.trial_state import read_state

#: Table -> the last step that has been sent whole.
Watermark = Mapping[str, int]
#: Before the evaluation and snapshot of step 0.
NOTHING_SENT = -1


@dataclass(frozen=True)
class TrialView:
    """A trial as its directory shows it. Two views are equal if there is nothing new to send."""

    outcome: str  # "waiting", "running" (begun and not over), "failed", or that of the result
    parts: tuple[str, ...]
    result: Mapping[str, Any] | None
    failure: Mapping[str, Any] | None
    collapsed_since: int | None = None  # the step from which its layers are marked as collapsed

    @property
    def over(self) -> bool:
        """Whether the trial has its result, and will not change."""
        return self.result is not None


def view(trial: Storage) -> TrialView:
    """Read the state of a trial: one listing, and the few small objects that are there.

    Raises BrokenRecordError, or OSError where it cannot be read.
    """
    keys = trial.list()
    if not keys:
        return TrialView("waiting", (), None, None)
    found = read_state(trial, keys=keys)
    if found.result is not None:
        parts = tuple(sorted(found.result["records"].values()))
        return TrialView(found.state, parts, found.result, None, found.collapsed_since)
    parts = tuple(live_parts(trial, keys))
    if found.state == "failed":
        return TrialView("failed", parts, None, found.failure, found.collapsed_since)
    # MLflow shows a trial that has begun as RUNNING until it is over, be it stale or about to be
    # retried: its run exists, and the next attempt continues it.
    begun = bool(parts) or (SPEC in keys and get_json(trial, SPEC) is not None)
    outcome = "running" if begun else "waiting"
    return TrialView(outcome, parts, None, None, found.collapsed_since)


def started_ms(trial: Storage, seen: TrialView) -> int | None:
    """When the trial's first row was written, None where there is none yet."""
    first = next((part for part in seen.parts if part.startswith(f"{METRICS}/")), None)
    if first is None:
        return None
    times = read_part(trial, first, ["time_ms"]).column("time_ms")
    earliest: int = pc.min(times).as_py()
    return earliest


def ended_ms(seen: TrialView, points: Sequence[StepPoints]) -> int | None:
    """When the trial ended, as far as its directory tells. Raises BrokenRecordError."""
    stated = (seen.result or {}).get("finished_ms") or (seen.failure or {}).get("time_ms")
    if stated is not None:
        # A database takes 64 bits, and answers to more as if it were away.
        if not isinstance(stated, int | float) or not 0 < stated < 2**63:
            raise BrokenRecordError(f"the trial says that it ended at {stated!r}, which is no time")
        return int(stated)
    return max((point.time_ms for step in points for point in step.points), default=None)


def unsent(trial: Storage, seen: TrialView, watermark: Watermark) -> list[StepPoints]:
    """All steps beyond the watermark that are durable, in order of step. A part holds whole steps.

    `seen` is an earlier view: steps beyond the parts it names wait for the next call. A listing
    that runs while parts are written may show a part and miss the one before it, but it shows
    every part that an earlier listing showed or that was written before one of those.

    Raises FileNotFoundError if the trial was compacted meanwhile: look again.
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
    """Rows of later steps in order of step, each once; of overlapping parts the first counts."""
    found: dict[tuple[Any, ...], Row] = {}
    for key in sorted(keys):
        part = Part.parse(key)
        if part is None or part.table != table or part.last <= beyond:
            continue
        rows = read_part(trial, key, COLUMNS[table])
        for row in rows.filter(pc.greater(rows.column("step"), beyond)).to_pylist():
            found.setdefault(tuple(row[name] for name in ROW_KEYS[table]), row)
    yield from (found[identity] for identity in sorted(found))
