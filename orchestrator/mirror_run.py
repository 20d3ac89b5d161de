"""One trial and its MLflow run: found or made, brought up to date, ended.

How far a run has got is a tag on the run itself, the watermark: the last step of every table
that is in. It is raised after the points are in. Whoever meets a run asks the server which steps
beyond the watermark it has, so that a mirror that died between sending and marking doubles
nothing.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.records import RESULT, SPEC, get_json
from analysis.storage import Storage
from orchestrator.artifacts import Artifacts
from orchestrator.mirror_images import DrawingTime, TrialImages
from orchestrator.mirror_points import (
    StepPoints,
    axis_texts,
    batches,
    flat,
    run_name,
    spec_params,
    table_of,
)
from orchestrator.mirror_trial import NOTHING_SENT, TrialView, ended_ms, started_ms, unsent
from orchestrator.tracking import Run, Tracking

SWEEP_TAG = "widthlab.sweep"
WATERMARK_TAG = "widthlab.watermark"
NONFINITE_TAG = "widthlab.nonfinite_points"
FINISHED_TAG = "widthlab.finished_ms"
COLLAPSED_TAG = "collapsed"
TRIAL_TAG = "trial_id"
PARENT_TAG = "mlflow.parentRunId"


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
        self._images = images

    @property
    def drawn_at(self) -> float:
        """When its images were last drawn, on the clock of `time.monotonic`."""
        return self._images.drawn_at

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
            self._send_state(seen, steps, artifacts)
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
        self, seen: TrialView, steps: Sequence[StepPoints], artifacts: Artifacts
    ) -> None:
        tags = {"outcome": seen.outcome}
        if seen.failure is not None:
            tags["failure"] = f"{seen.failure.get('stage')}: {seen.failure.get('message')}"
        if seen.result is not None:
            if seen.result.get("reason"):
                tags["reason"] = str(seen.result["reason"])
            tags[FINISHED_TAG] = str(seen.result.get("finished_ms"))
            artifacts.send(self._run_id, RESULT, _json(seen.result))
        status = status_of(seen.outcome)
        if status != self._status:
            end = None if status == "RUNNING" else ended_ms(seen, steps) or now_ms()
            self._tracking.set_status(self._run_id, status, end)
            self._status = status
        self._tracking.send_tags(self._run_id, tags)  # FINISHED_TAG says that nothing is missing


def follow(
    tracking: Tracking,
    artifacts: Artifacts,
    family: Family,
    run: Run | None,
    trial: Storage,
    planned: Mapping[str, Any],
    seen: TrialView,
) -> TrialRun | None:
    """The trial's run, made where there is none; None if it is complete already.

    `planned` is the trial's entry in the resolved sweep. Raises OSError, ValueError or KeyError
    where spec.json cannot be read.
    """
    spec = get_json(trial, SPEC)
    if spec is None:
        raise FileNotFoundError(f"{trial.url}/{SPEC} is missing")
    if run is not None and run.tags.get(PARENT_TAG) != family.parent_id:
        tracking.send_tags(run.run_id, {PARENT_TAG: family.parent_id})
    if run is not None and FINISHED_TAG in run.tags:
        if seen.over and run.tags[FINISHED_TAG] == str((seen.result or {}).get("finished_ms")):
            return None
        # The trial was discarded and trained anew: its old points would mix with the new.
        tracking.delete(run.run_id)
        run = None
    axes = axis_texts(spec, planned.get("holds") or [])
    known = run is not None
    if run is None:
        tags = {
            **axes,
            **family.tags,
            TRIAL_TAG: str(planned["id"]),
            PARENT_TAG: family.parent_id,
            "outcome": seen.outcome,
        }
        run = tracking.create(run_name(spec), tags, started_ms(trial, seen) or now_ms())
        artifacts.send(run.run_id, SPEC, _json(spec))
    params = spec_params(spec) | axes | flat(planned.get("parameters") or {}, "parameters.")
    # Params never change; a mirror that died may have sent only some.
    tracking.send_params(run.run_id, {k: v for k, v in params.items() if k not in run.params})
    total = (spec.get("training") or {}).get("steps", 1)
    return TrialRun(tracking, run, known, TrialImages(run.run_id, known, total))


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
