"""One trial and its MLflow run: find or create it, send its news, end it.

The watermark is a tag of the run: the last step of every table that the server has. It is raised
after the points arrived. An exporter can die between the two, so the next one asks the server
which steps it has beyond the watermark, and sends no point twice.
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
from orchestrator.mlflow.stability import spikes_text, stability_points
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
SPIKES_TAG = "loss_spikes"
FILES_TAG = "widthlab.files"
TRIAL_TAG = "trial_id"
PARENT_TAG = "mlflow.parentRunId"

#: The files of a finished run.
FILES = (SPEC, RESULT)


@dataclass(frozen=True)
class Family:
    """The parent run and the tags that all runs of a sweep share."""

    parent_id: str
    tags: Mapping[str, str]  # the sweep's identity, name and commit


@dataclass(frozen=True)
class Sent:
    """The points that one update sent. `nonfinite` points were counted, not sent."""

    points: int
    nonfinite: int


class TrialRun:
    """The run of a trial that is not over. `follow` makes one.

    Args:
        tracking: The experiment.
        run: The run on the server.
        known: Whether the run existed before, and may have points beyond its watermark.
        images: The images of the run.
    """

    def __init__(self, tracking: Tracking, run: Run, known: bool, images: TrialImages) -> None:
        self._tracking = tracking
        self._run_id = run.run_id
        self._status = run.status
        self._watermark: dict[str, int] = json.loads(run.tags.get(WATERMARK_TAG, "{}"))
        self._nonfinite = int(run.tags.get(NONFINITE_TAG, 0))
        # Metrics that may have points beyond the watermark; the server was not asked yet.
        self._unsure = run.metrics if known else frozenset()
        # Metric -> its steps beyond the watermark, as the server told.
        self._ahead: dict[str, set[int]] = {}
        self._shown: TrialView | None = None
        self._marks = {name: run.tags.get(name) for name in (COLLAPSED_TAG, SPIKES_TAG)}
        self._files = _files_of(run)
        self._images = images

    @property
    def run_id(self) -> str:
        """The run's id on the server."""
        return self._run_id

    @property
    def drawn_at(self) -> float:
        """When the images were last drawn: seconds of `time.monotonic`."""
        return self._images.drawn_at

    @property
    def lacks_files(self) -> bool:
        """Whether the artifact store lacks one of `FILES`."""
        return not self._files.issuperset(FILES)

    def is_retried(self, seen: TrialView) -> bool:
        """Return whether the trial had failed and runs again. It may have a spec only now."""
        failed = self._shown is not None and self._shown.outcome == "failed"
        return failed and seen.outcome != "failed"

    def shows(self, seen: TrialView) -> bool:
        """Return whether the run has everything of this view of the trial."""
        return self._shown == seen and not self._images.due(seen)

    def update(
        self, trial: Storage, seen: TrialView, artifacts: Artifacts, drawing: DrawingTime
    ) -> Sent:
        """Send the trial's news: points, then images, then the state.

        The state comes last, so a run that is marked as finished is complete. If the time for
        drawing is used up, the images wait for the next pass, and so does the final state.

        Raises:
            FileNotFoundError: The trial was compacted meanwhile; view it again.
            ServerAwayError, RefusedError: The server did not take it.
        """
        steps = unsent(trial, seen, self._watermark)
        sent = self._send(steps)
        self._send_marks(seen)
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
        # The server may be ahead of a retried trial: keep those steps.
        self._ahead = {
            key: left for key, have in self._ahead.items() if (left := self._left(key, have))
        }
        return Sent(sent, nonfinite)

    def _look_ahead(self) -> None:
        """Ask the server once which steps of every metric it has beyond the watermark."""
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

    def _send_marks(self, seen: TrialView) -> None:
        since = seen.collapsed_since
        collapsed = None if since is None else f"since step {since}"
        marks = {COLLAPSED_TAG: collapsed, SPIKES_TAG: spikes_text(seen.spikes, seen.spiking_since)}
        for name, text in marks.items():
            if text == self._marks[name]:
                continue
            if text is None:  # recovered, or restarted from an earlier step
                self._tracking.remove_tag(self._run_id, name)
            else:
                self._tracking.send_tags(self._run_id, {name: text})
            self._marks[name] = text

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
            if points := stability_points(seen.result, ended_ms(seen, steps) or now_ms()):
                self._tracking.send_points(self._run_id, points)
        status = status_of(seen.outcome)
        if status != self._status:
            end = None if status == "RUNNING" else ended_ms(seen, steps) or now_ms()
            self._tracking.set_status(self._run_id, status, end)
            self._status = status
        self._tracking.send_tags(
            self._run_id, tags
        )  # last: FINISHED_TAG means that no point is missing

    def _send_files(self, trial: Storage, artifacts: Artifacts) -> None:
        """Send the files that the run lacks.

        A file that the store did not take is sent again when the state changes, and by the next
        exporter.
        """
        for name in FILES:
            if name not in self._files:
                content = get_json(trial, name)
                if content is not None and artifacts.send(self._run_id, name, _json(content)):
                    self._files |= {name}


def has_everything(run: Run, parent_id: str) -> bool:
    """Return whether a finished trial's run is complete on the server: points, files, parent."""
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
    """Find or create the run of a trial.

    Args:
        tracking: The experiment.
        artifacts: Its artifact store.
        family: The parent run and the shared tags.
        run: The trial's run on the server, if there is one.
        trial: The trial's directory.
        planned: The trial's entry in the resolved sweep.yaml: all that is known about a trial that
            failed before it had a spec.
        seen: A view of the trial.

    Returns:
        The run, or None if it is complete.

    Raises:
        OSError, ValueError, KeyError: spec.json cannot be read.
        ServerAwayError, RefusedError: The server did not take it.
    """
    spec = get_json(trial, SPEC)
    if spec is None and seen.outcome != "failed":
        raise FileNotFoundError(f"{trial.url_of(SPEC)} is missing")
    if run is not None and run.tags.get(PARENT_TAG) != family.parent_id:
        tracking.send_tags(run.run_id, {PARENT_TAG: family.parent_id})
    if run is not None and FINISHED_TAG in run.tags:
        if not seen.over or run.tags[FINISHED_TAG] != str((seen.result or {}).get("finished_ms")):
            # The trial was discarded and trained again. Do not mix its points with the old ones.
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
    # Params never change. An exporter that died may have sent some of them.
    tracking.send_params(run.run_id, {k: v for k, v in params.items() if k not in run.params})
    total = ((spec or {}).get("training") or {}).get("steps", 1)
    return TrialRun(tracking, run, known, TrialImages(run.run_id, known, total))


def _files_of(run: Run) -> frozenset[str]:
    return frozenset(run.tags.get(FILES_TAG, "").split())


def status_of(outcome: str) -> str:
    """Return the MLflow status for a trial's outcome. A waiting trial has no run."""
    if outcome == "running":
        return "RUNNING"
    return "FAILED" if outcome in ("failed", "diverged") else "FINISHED"


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
