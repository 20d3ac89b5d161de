"""One trial and its MLflow run: found or made, brought up to date, ended.

How far a run has got is a tag on the run itself, the watermark: the last step of every table
that is in. It is raised after the points are in. Whoever meets a run asks the server which steps
beyond the watermark it has, so that an exporter that died between sending and marking doubles
nothing.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.mlflow.artifacts import Artifacts
from orchestrator.mlflow.images import DrawingTime, TrialImages
from orchestrator.mlflow.points import (
    StepPoints,
    axis_texts,
    batches,
    flat,
    planned_name,
    planned_texts,
    run_name,
    spec_params,
    table_of,
)
from orchestrator.mlflow.tracking import Run, Tracking
from orchestrator.mlflow.trial_view import NOTHING_SENT, TrialView, ended_ms, started_ms, unsent
from trialstore.records import RESULT, SPEC, get_json
from trialstore.storage import Storage
from trialstore.sweep_file import ResolvedCell

SWEEP_TAG = "widthlab.sweep"
WATERMARK_TAG = "widthlab.watermark"
NONFINITE_TAG = "widthlab.nonfinite_points"
FINISHED_TAG = "widthlab.finished_ms"
COLLAPSED_TAG = "collapsed"
FILES_TAG = "widthlab.files"
TRIAL_TAG = "trial_id"
PARENT_TAG = "mlflow.parentRunId"

#: What a run that is over has beside its numbers.
FILES = (SPEC, RESULT)


@dataclass(frozen=True)
class Family:
    """What the runs of one sweep have in common."""

    parent_id: str
    tags: Mapping[str, str]  # the sweep's identity and name, and where it was started


@dataclass(frozen=True)
class Sent:
    """What one look at a trial has sent; `nonfinite` were met and counted, not sent."""

    points: int
    nonfinite: int


class TrialRun:
    """The run of a trial that is not over, and the little that must be remembered of it."""

    def __init__(self, tracking: Tracking, run: Run, known: bool, images: TrialImages) -> None:
        """`known` says that the server had the run before, and may be ahead of its watermark."""
        self._tracking = tracking
        self._run_id = run.run_id
        self._status = run.status
        self._watermark: dict[str, int] = json.loads(run.tags.get(WATERMARK_TAG, "{}"))
        self._nonfinite = int(run.tags.get(NONFINITE_TAG, 0))
        # Metrics of which the server may have points beyond the watermark, not looked at yet,
        self._unsure = run.metrics if known else frozenset()
        # and the steps of those that it has.
        self._ahead: dict[str, set[int]] = {}
        self._shown: TrialView | None = None
        self._collapsed = run.tags.get(COLLAPSED_TAG)
        self._files = _files_of(run)
        self._images = images

    @property
    def run_id(self) -> str:
        """Its name on the server."""
        return self._run_id

    @property
    def drawn_at(self) -> float:
        """When its images were last drawn, on the clock of `time.monotonic`."""
        return self._images.drawn_at

    @property
    def lacks_files(self) -> bool:
        """Whether the artifact store has not taken all that a run that is over should have."""
        return not self._files.issuperset(FILES)

    def is_retried(self, seen: TrialView) -> bool:
        """Whether the trial had failed and goes on: its spec may be there only now."""
        failed = self._shown is not None and self._shown.outcome == "failed"
        return failed and seen.outcome != "failed"

    def shows(self, seen: TrialView) -> bool:
        """Whether the run has everything that this view of the trial holds."""
        return self._shown == seen and not self._images.due(seen)

    def update(
        self, trial: Storage, seen: TrialView, artifacts: Artifacts, drawing: DrawingTime
    ) -> Sent:
        """Send what is new: points, images, then the state: a run that is over is complete.

        Where the time for drawing is used up, images wait for the next look, and with them the
        state of a trial that is over.
        """
        steps = unsent(trial, seen, self._watermark)
        sent = self._send(steps)
        self._send_collapse(seen)
        if self._images.due(seen):
            if drawing.take():
                self._images.update(trial, seen, artifacts)
            elif seen.over:
                return sent
        if self._shown is None or self._shown.outcome != seen.outcome:
            self._send_state(trial, seen, steps, artifacts)
        self._shown = seen
        return sent

    def _send(self, steps: Sequence[StepPoints]) -> Sent:
        if steps:
            self._look_ahead()
        sent = nonfinite = 0
        for points, ended in batches(steps):
            new = [point for point in points if point.step not in self._ahead.get(point.key, ())]
            if new:
                self._tracking.send_points(self._run_id, new)
                sent += len(new)
            if ended:
                nonfinite += sum(step.nonfinite for step in ended)
                self._mark(ended)
        # A retry may have got less far than what the server has: the rest is kept in mind.
        self._ahead = {
            key: left for key, have in self._ahead.items() if (left := self._left(key, have))
        }
        return Sent(sent, nonfinite)

    def _look_ahead(self) -> None:
        """Ask, once, which steps beyond the watermark the server has of every metric."""
        for key in sorted(self._unsure):
            if left := self._left(key, self._tracking.steps(self._run_id, key)):
                self._ahead[key] = left
        self._unsure = frozenset()

    def _left(self, key: str, steps: set[int]) -> set[int]:
        reached = self._watermark.get(table_of(key), NOTHING_SENT)
        return {step for step in steps if step > reached}

    def _mark(self, ended: Sequence[StepPoints]) -> None:
        for step in ended:
            self._watermark[step.table] = step.step
            self._nonfinite += step.nonfinite
        tags = {WATERMARK_TAG: json.dumps(self._watermark, sort_keys=True)}
        if self._nonfinite:
            tags[NONFINITE_TAG] = str(self._nonfinite)
        self._tracking.send_tags(self._run_id, tags)

    def _send_collapse(self, seen: TrialView) -> None:
        since = seen.collapsed_since
        text = None if since is None else f"since step {since}"
        if text == self._collapsed:
            return
        if text is None:  # it has recovered, or begins again before that step
            self._tracking.remove_tag(self._run_id, COLLAPSED_TAG)
        else:
            self._tracking.send_tags(self._run_id, {COLLAPSED_TAG: text})
        self._collapsed = text

    def _send_state(
        self, trial: Storage, seen: TrialView, steps: Sequence[StepPoints], artifacts: Artifacts
    ) -> None:
        self._send_files(trial, artifacts)
        tags = {"outcome": seen.outcome, FILES_TAG: " ".join(sorted(self._files))}
        if seen.failure is not None:
            tags["failure"] = f"{seen.failure.get('stage')}: {seen.failure.get('message')}"
        if seen.result is not None:
            if seen.result.get("reason"):
                tags["reason"] = str(seen.result["reason"])
            tags[FINISHED_TAG] = str(seen.result.get("finished_ms"))
        status = status_of(seen.outcome)
        if status != self._status:
            end = None if status == "RUNNING" else ended_ms(seen, steps) or now_ms()
            self._tracking.set_status(self._run_id, status, end)
            self._status = status
        self._tracking.send_tags(self._run_id, tags)  # FINISHED_TAG says that no point is missing

    def _send_files(self, trial: Storage, artifacts: Artifacts) -> None:
        """Send what the run lacks of the trial's files. Those that the store does not take are
        tried again when the state changes, and by an exporter that asks the server anew."""
        for name in FILES:
            if name not in self._files:
                content = get_json(trial, name)
                if content is not None and artifacts.send(self._run_id, name, _json(content)):
                    self._files |= {name}


def has_everything(run: Run, parent_id: str) -> bool:
    """Whether the run of a trial that is over lacks nothing, as the server has it."""
    in_family = run.tags.get(PARENT_TAG) == parent_id
    return in_family and FINISHED_TAG in run.tags and _files_of(run).issuperset(FILES)


def follow(
    tracking: Tracking,
    artifacts: Artifacts,
    family: Family,
    run: Run | None,
    trial: Storage,
    planned: ResolvedCell,
    seen: TrialView,
) -> TrialRun | None:
    """The trial's run, made where there is none; None if it has everything already.

    `planned` is the trial's entry in the resolved sweep: all that is known of a trial that failed
    before it had a spec. Raises OSError, ValueError or KeyError where spec.json cannot be read.
    """
    spec = get_json(trial, SPEC)
    if spec is None and seen.outcome != "failed":
        raise FileNotFoundError(f"{trial.url_of(SPEC)} is missing")
    if run is not None and run.tags.get(PARENT_TAG) != family.parent_id:
        tracking.send_tags(run.run_id, {PARENT_TAG: family.parent_id})
    if run is not None and FINISHED_TAG in run.tags:
        if not seen.over or run.tags[FINISHED_TAG] != str((seen.result or {}).get("finished_ms")):
            # The trial was discarded and trained anew: its old points would mix with the new.
            tracking.delete(run.run_id)
            run = None
        elif has_everything(run, run.tags[PARENT_TAG]):
            return None
    known = run is not None
    holds = planned.holds
    axes = planned_texts(planned.axes, holds) if spec is None else axis_texts(spec, holds)
    if run is None:
        tags = {
            **axes,
            **family.tags,
            TRIAL_TAG: planned.id,
            PARENT_TAG: family.parent_id,
            "outcome": seen.outcome,
        }
        name = planned_name(planned.axes) if spec is None else run_name(spec)
        run = tracking.create(name, tags, started_ms(trial, seen) or now_ms())
    params = axes | flat(planned.parameters, "parameters.")
    if spec is not None:
        params = spec_params(spec) | params
    # Params never change; an exporter that died may have sent only some.
    tracking.send_params(run.run_id, {k: v for k, v in params.items() if k not in run.params})
    total = ((spec or {}).get("training") or {}).get("steps", 1)
    return TrialRun(tracking, run, known, TrialImages(run.run_id, known, total))


def _files_of(run: Run) -> frozenset[str]:
    return frozenset(run.tags.get(FILES_TAG, "").split())


def status_of(outcome: str) -> str:
    """MLflow's word for a trial's state; a trial that waits is no run yet."""
    if outcome == "running":
        return "RUNNING"
    return "FAILED" if outcome in ("failed", "diverged") else "FINISHED"


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
