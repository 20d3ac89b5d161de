"""Export a sweep's directory to MLflow: a parent run, and a nested run for every started trial.

The directory is the source; MLflow is a copy. An exporter keeps no state that it could not read
again from the server or the directory, so it may be killed and restarted at any time.
"""

import logging
import math
from collections import Counter
from dataclasses import dataclass, field

from orchestrator.mlflow.artifacts import Artifacts
from orchestrator.mlflow.identity import experiment_name, identity_of_sweep
from orchestrator.mlflow.images import DrawingTime
from orchestrator.mlflow.parent_run import ParentRun, parent_params
from orchestrator.mlflow.tracking import RefusedError, Run, ServerAwayError, Tracking, redacted
from orchestrator.mlflow.trial_run import (
    FINISHED_TAG,
    SWEEP_TAG,
    TRIAL_TAG,
    Family,
    Sent,
    TrialRun,
    follow,
    has_everything,
    now_ms,
)
from orchestrator.mlflow.trial_view import started_ms, view
from trialstore.records import BrokenRecordError
from trialstore.storage import Storage
from trialstore.sweep_file import ResolvedSweep, read_sweep_file, trial_storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncReport:
    """What one pass over the sweep has sent, and what MLflow still lacks."""

    points: int = 0
    runs: int = 0  # of trials, created or changed
    nonfinite: int = 0  # NaN and infinities: counted, not sent
    #: Trials that MLflow lacks: the server refused them, or they cannot be read.
    refused: int = 0
    #: Finished runs without their spec, result or report: the artifact store did not take them.
    fileless: int = 0
    away: str | None = None  # why the server could not be reached

    @property
    def complete(self) -> bool:
        """Whether MLflow has everything."""
        return self.away is None and not self.refused and not self.fileless


@dataclass
class _Server:
    """What the exporter knows about a server. Discarded when the server does not answer."""

    tracking: Tracking
    artifacts: Artifacts
    parent: ParentRun
    family: Family
    found: dict[str, Run]  # by trial: on the server, not yet followed
    followed: dict[str, TrialRun] = field(default_factory=dict)


class Exporter:
    """Sends one sweep to one experiment. Never raises because a server does not answer.

    Args:
        sweep: The sweep's directory.
        tracking_uri: The server, or an SQLite URI.
        drawing_s: Seconds that one pass may spend on images, while the points of other trials wait.

    Raises:
        InputError: `sweep` is not a sweep's directory, or its identity file cannot be written.
    """

    def __init__(self, sweep: Storage, tracking_uri: str, drawing_s: float = math.inf) -> None:
        self._drawing_s = drawing_s
        self._sweep = sweep
        self._uri = tracking_uri
        self._resolved = read_sweep_file(sweep)
        self._name = self._resolved.name
        self._planned = {cell.id: cell for cell in self._resolved.cells}
        self._identity = identity_of_sweep(sweep, self._name)
        self._tags = {SWEEP_TAG: self._identity, "sweep": self._name, **_git_tags(self._resolved)}

        self._outcomes = dict.fromkeys(self._planned, "waiting")
        self._complete: set[str] = set()  # trials without anything left to send
        self._fileless: set[str] = set()  # complete, but for files
        self._refused: set[str] = set()  # by the server, once
        self._given_up: set[str] = set()  # refused again
        self._said: dict[str, str] = {}
        self._away = False
        self._server: _Server | None = None

    @property
    def outcomes(self) -> dict[str, str]:
        """Trial id -> waiting, running, failed, or the outcome in its result, at the last pass."""
        return dict(self._outcomes)

    def sync_once(self) -> SyncReport:
        """Send every durable record that MLflow lacks."""
        return self._sync(last=False)

    def finish(self) -> SyncReport:
        """`sync_once`, then end the sweep's run: FAILED if a trial has failed, else FINISHED.

        Ask the server again what it has, even if this exporter has sent it.
        """
        self._server = None
        return self._sync(last=True)

    def _sync(self, last: bool) -> SyncReport:
        sent: list[Sent] = []
        left_out: set[str] = set()
        away = None
        try:
            try:
                left_out = self._look(last, sent)
            except RefusedError as error:  # the server lost the sweep's run or its database
                self._say("sweep", f"sent again: {error}")
                self._server = None
                left_out = self._look(last, sent)
        except (ServerAwayError, RefusedError) as error:
            away = str(error)
            self._server = None  # the last call may or may not have arrived
        self._tell_weather(away)
        fileless = len(self._fileless)
        if self._server is not None:
            fileless += self._server.parent.lacks_files
        return SyncReport(
            sum(s.points for s in sent),
            len(sent),
            sum(s.nonfinite for s in sent),
            len(left_out | self._given_up),
            fileless,
            away,
        )

    def _look(self, last: bool, sent: list[Sent]) -> set[str]:
        """Send the news of every trial, and append to `sent`. Return the trials left out.

        Raises ServerAwayError, and RefusedError if the server lacks the sweep's own run.
        """
        server = self._server = self._server or self._contact()
        left_out: set[str] = set()
        drawing = DrawingTime(math.inf if last else self._drawing_s)
        for trial_id in sorted(self._planned.keys() - self._complete, key=self._drawn_at):
            try:
                try:
                    news = self._sync_trial(server, trial_id, drawing)
                except FileNotFoundError:  # compacted just now: read again
                    news = self._sync_trial(server, trial_id, drawing)
            except ServerAwayError:
                raise
            except RefusedError as error:
                server.tracking.run(
                    server.parent.run_id
                )  # raises if the sweep's run is gone: then no trial is at fault
                left_out.add(trial_id)
                self._set_aside(server, trial_id, error)
            except Exception as error:  # a broken trial must not stop the others
                left_out.add(trial_id)
                self._complain(trial_id, error)
            else:
                sent += [news] if news else []
        server.parent.update(Counter(self._outcomes.values()), last)
        return left_out

    # --- the server ------------------------------------------------------------------------

    def _contact(self) -> _Server:
        """Connect, find the sweep's runs, create the parent run if it is missing.

        Follow a complete trial again if this server lacks it.
        """
        tracking = Tracking(self._uri, experiment_name())
        artifacts = Artifacts(tracking)
        found: dict[str | None, Run] = {}
        for run in list(
            tracking.runs(SWEEP_TAG, self._identity)
        ):  # a list: deletions shift the pages
            if found.setdefault(run.tags.get(TRIAL_TAG), run) is not run:
                # A retried call, or two exporters, created it twice. Keep the oldest run: it has
                # or gets every point.
                which = run.tags.get(TRIAL_TAG, "the sweep")
                log.warning("MLflow had a second run of %s; deleted run %s", which, run.run_id)
                tracking.delete(run.run_id)
        parent = found.pop(None, None) or tracking.create(self._name, self._tags, self._first_ms())
        params = parent_params(self._resolved.content)
        # Params never change. An exporter that died may have sent some of them.
        tracking.send_params(
            parent.run_id, {key: text for key, text in params.items() if key not in parent.params}
        )
        of_trials = {trial_id: run for trial_id, run in found.items() if trial_id is not None}
        self._complete = {
            trial_id
            for trial_id in self._complete
            if trial_id in of_trials and has_everything(of_trials[trial_id], parent.run_id)
        }
        self._fileless, self._given_up, self._refused = set(), set(), set()
        return _Server(
            tracking,
            artifacts,
            ParentRun(tracking, artifacts, parent, self._sweep, self._say),
            Family(parent.run_id, self._tags),
            {key: run for key, run in of_trials.items() if key not in self._complete},
        )

    def _first_ms(self) -> int:
        """Return the start of the first trial with rows; trials start in the order of the plan."""
        for trial_id in self._planned:
            trial = trial_storage(self._sweep, trial_id)
            try:
                begun = started_ms(trial, view(trial))
            except Exception:  # reported when the trial itself is read
                continue
            if begun is not None:
                return begun
        return now_ms()

    # --- trials ----------------------------------------------------------------------------

    def _sync_trial(self, server: _Server, trial_id: str, drawing: DrawingTime) -> Sent | None:
        """Send one trial's news; None if there was nothing new."""
        trial = trial_storage(self._sweep, trial_id)
        seen = view(trial)
        self._outcomes[trial_id] = seen.outcome
        if seen.outcome == "waiting":
            return None
        run = server.followed.get(trial_id)
        if run is not None and run.shows(seen):
            return None
        if run is None or run.is_retried(seen):
            found = server.found.pop(trial_id, None)
            if found is None and run is not None:
                found = server.tracking.run(run.run_id)
            elif found is not None and FINISHED_TAG not in found.tags:
                found = server.tracking.run(found.run_id)
            run = follow(
                server.tracking,
                server.artifacts,
                server.family,
                found,
                trial,
                self._planned[trial_id],
                seen,
            )
        if run is None:
            self._complete.add(trial_id)
            return None
        server.followed[trial_id] = run
        sent = run.update(trial, seen, server.artifacts, drawing)
        if seen.over and run.shows(seen):
            self._complete.add(trial_id)
            del server.followed[trial_id]
            if run.lacks_files:
                self._fileless.add(trial_id)
        return sent

    def _drawn_at(self, trial_id: str) -> tuple[float, str]:
        """Sort key: the trial whose images are oldest comes first."""
        run = self._server.followed.get(trial_id) if self._server else None
        return (-math.inf if run is None else run.drawn_at, trial_id)

    def _set_aside(self, server: _Server, trial_id: str, error: RefusedError) -> None:
        """After a refusal: look for the run again, as it may have been deleted; then give up."""
        server.followed.pop(trial_id, None)
        server.found.pop(trial_id, None)
        # Use a run that still exists: a second one would hold every point twice.
        for run in server.tracking.runs(TRIAL_TAG, trial_id):
            if run.tags.get(SWEEP_TAG) == self._identity:
                server.found.setdefault(trial_id, run)
        if trial_id in self._refused:
            self._complete.add(trial_id)
            self._given_up.add(trial_id)
            self._say(trial_id, f"MLflow lacks this trial until the next `widthlab sync`: {error}")
        else:
            self._refused.add(trial_id)
            self._say(trial_id, str(error))

    def _complain(self, trial_id: str, error: Exception) -> None:
        """Warn that a trial cannot be read.

        Broken records mean a failed trial, as in the ledger. Any other error keeps its outcome.
        """
        if isinstance(error, BrokenRecordError):
            self._outcomes[trial_id] = "failed"
        self._say(trial_id, f"cannot be read: {type(error).__name__}: {error}")

    # --- messages for the user -------------------------------------------------------------

    def _tell_weather(self, away: str | None) -> None:
        """Warn once when the server stops answering, and once when it answers again."""
        if away and not self._away:
            log.warning(
                "MLflow at %s does not answer; training goes on, and the rest is sent later (%s)",
                redacted(self._uri),
                away,
            )
        elif self._away and not away:
            log.warning("MLflow at %s answers again", redacted(self._uri))
        self._away = away is not None

    def _say(self, about: str, message: str) -> None:
        """Warn, unless the last message about it was the same."""
        if self._said.get(about) != message:
            log.warning("MLflow exporter of %s: %s: %s", self._name, about, message)
            self._said[about] = message


def _git_tags(sweep: ResolvedSweep) -> dict[str, str]:
    """Return the sweep's commit, under MLflow's tag names."""
    git = sweep.content["resolved"].get("git") or {}
    return {f"mlflow.source.git.{name}": str(value).lower() for name, value in git.items()}
