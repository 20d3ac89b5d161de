"""From a sweep's directory to MLflow: a parent run, and a nested run for every trial begun.

The directory is the truth and MLflow shows it. Nothing is remembered that the server or the
directory could not tell again, so a mirror may be killed, started again and left out at will.
"""

import logging
import math
import os
import re
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from analysis.errors import InputError
from analysis.records import BrokenRecordError, encode_json, get_json
from analysis.storage import Storage
from orchestrator.artifacts import Artifacts
from orchestrator.ledger import SWEEP_FILE, resolved_sweep, trial_storage
from orchestrator.mirror_images import DrawingTime
from orchestrator.mirror_points import flat, note, progress
from orchestrator.mirror_run import (
    FINISHED_TAG,
    SWEEP_TAG,
    TRIAL_TAG,
    Family,
    Sent,
    TrialRun,
    follow,
    now_ms,
)
from orchestrator.mirror_trial import started_ms, view
from orchestrator.tracking import RefusedError, Run, ServerAwayError, Tracking, redacted

log = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = "widthlab"
IDENTITY_FILE = "mirror.json"
REPORT = "report"
RECOMMENDATION = "report/recommendation.json"
REPORT_TAG = "widthlab.report"
SWEEP_FILE_TAG = "widthlab.sweep_file"


@dataclass(frozen=True)
class SyncReport:
    """What one look at the sweep has sent. `away` says why the server could not be reached."""

    points: int = 0
    runs: int = 0  # of trials, made or changed
    nonfinite: int = 0  # met and counted, not sent
    #: Trials that MLflow lacks now: the server would not take them, or they cannot be read.
    refused: int = 0
    away: str | None = None


class Mirror:
    """Sends one sweep to one experiment. Never raises for a server that is away."""

    def __init__(self, sweep: Storage, tracking_uri: str, drawing_s: float = math.inf) -> None:
        """`drawing_s` is what a look may spend on images: points of other trials wait for them.

        Raises InputError where `sweep` is no sweep, or where its identity cannot be written.
        """
        self._drawing_s = drawing_s
        self._sweep = sweep
        self._uri = tracking_uri
        config = resolved_sweep(sweep)
        self._config = config
        self._file = sweep.get(SWEEP_FILE)
        self._name = str(config["name"])
        self._planned = {str(trial["id"]): trial for trial in config["resolved"]["trials"]}
        self._identity = _identity(sweep, self._name)
        self._tags = {SWEEP_TAG: self._identity, "sweep": self._name, **_git_tags(config)}

        self._outcomes = dict.fromkeys(self._planned, "waiting")
        self._complete: set[str] = set()
        self._refused: set[str] = set()  # by the server, once
        self._given_up: set[str] = set()  # refused again
        self._said: dict[str, str] = {}
        self._away = False
        self._tracking: Tracking | None = None
        self._forget()

    @property
    def outcomes(self) -> dict[str, str]:
        """Trial id -> waiting, running, failed, or the outcome of its result, when last seen."""
        return dict(self._outcomes)

    def sync_once(self) -> SyncReport:
        """Send everything that is durable and not yet sent."""
        return self._sync(last=False)

    def finish(self) -> SyncReport:
        """The same, and end the sweep's run: FAILED if a trial has failed, else FINISHED."""
        return self._sync(last=True)

    def _sync(self, last: bool) -> SyncReport:
        sent: list[Sent] = []
        left_out: set[str] = set()
        away = None
        try:
            tracking, parent, artifacts = self._contact()
            family = Family(parent.run_id, self._tags)
            self._drawing = DrawingTime(math.inf if last else self._drawing_s)
            for trial_id in sorted(self._planned, key=self._drawn_at):
                if trial_id in self._complete:
                    continue
                try:
                    try:
                        news = self._sync_trial(tracking, artifacts, family, trial_id)
                    except FileNotFoundError:  # it has just been compacted: look again
                        news = self._sync_trial(tracking, artifacts, family, trial_id)
                except ServerAwayError:
                    raise
                except RefusedError as error:
                    left_out.add(trial_id)
                    self._set_aside(trial_id, error)
                except Exception as error:  # whatever the records hold, the others are sent
                    left_out.add(trial_id)
                    self._complain(trial_id, error)
                else:
                    sent += [news] if news else []
            self._sync_parent(tracking, parent, artifacts, last)
        except ServerAwayError as error:
            away = str(error)
            self._forget()  # whether the last call got through is not known
        self._tell_weather(away)
        points, nonfinite = sum(s.points for s in sent), sum(s.nonfinite for s in sent)
        return SyncReport(points, len(sent), nonfinite, len(left_out | self._given_up), away)

    # --- the server ------------------------------------------------------------------------

    def _forget(self) -> None:
        """Have the next look ask the server again what it has."""
        self._parent: Run | None = None
        self._runs: dict[str, Run] = {}  # found on the server and not yet followed
        self._followed: dict[str, TrialRun] = {}
        self._note = ""
        self._report = ""  # digest of what the parent run has of the report
        self._sweep_file = ""  # digest of what it has as sweep.yaml
        self._glance = ""  # the same, cheap to find

    def _contact(self) -> tuple[Tracking, Run, Artifacts]:
        """The connection, with the sweep's runs found and its own made where it is missing."""
        if self._tracking is None:
            self._tracking = Tracking(self._uri, experiment_name())
        if self._parent is None:
            self._artifacts = Artifacts(self._tracking)
            parent = None
            for run in self._tracking.runs(SWEEP_TAG, self._identity):
                if TRIAL_TAG in run.tags:
                    self._runs.setdefault(run.tags[TRIAL_TAG], run)
                else:
                    parent = parent or run
            self._parent = parent or self._create_parent(self._tracking)
            self._report = self._parent.tags.get(REPORT_TAG, "")
            self._sweep_file = self._parent.tags.get(SWEEP_FILE_TAG, "")
        return self._tracking, self._parent, self._artifacts

    def _create_parent(self, tracking: Tracking) -> Run:
        run = tracking.create(self._name, self._tags, self._first_ms())
        resolved = self._config["resolved"]
        facts = {key: value for key, value in resolved.items() if isinstance(value, str | int)}
        about = {key: self._config.get(key) for key in ("corpus", "tokenizer", "hold")}
        tracking.send_params(run.run_id, flat(about | facts))
        return run

    def _first_ms(self) -> int:
        """When the first trial that has rows began; trials start in the order of the plan."""
        for trial_id in self._planned:
            trial = trial_storage(self._sweep, trial_id)
            try:
                begun = started_ms(trial, view(trial))
            except Exception:  # complained of where the trial itself is read
                continue
            if begun is not None:
                return begun
        return now_ms()

    # --- trials ----------------------------------------------------------------------------

    def _sync_trial(
        self, tracking: Tracking, artifacts: Artifacts, family: Family, trial_id: str
    ) -> Sent | None:
        """What was sent, None if there was nothing new."""
        trial = trial_storage(self._sweep, trial_id)
        seen = view(trial)
        self._outcomes[trial_id] = seen.outcome
        if seen.outcome == "waiting":
            return None
        run = self._followed.get(trial_id)
        if run is not None and run.shows(seen):
            return None
        if run is None:
            found = self._runs.get(trial_id)
            if found is not None and FINISHED_TAG not in found.tags:
                found = tracking.run(found.run_id)
            run = follow(tracking, artifacts, family, found, trial, self._planned[trial_id], seen)
            self._runs.pop(trial_id, None)
        if run is None:
            self._complete.add(trial_id)
            return None
        self._followed[trial_id] = run
        sent = run.update(trial, seen, artifacts, self._drawing)
        if seen.over and run.shows(seen):
            self._complete.add(trial_id)
            del self._followed[trial_id]
        return sent

    def _drawn_at(self, trial_id: str) -> float:
        """Longest ago first, so that every trial gets its turn at drawing."""
        run = self._followed.get(trial_id)
        return -math.inf if run is None else run.drawn_at

    def _set_aside(self, trial_id: str, error: RefusedError) -> None:
        """Look for the run once more, for it may have been deleted; then give the trial up."""
        self._followed.pop(trial_id, None)
        self._runs.pop(trial_id, None)
        if trial_id in self._refused:
            self._complete.add(trial_id)
            self._given_up.add(trial_id)
            self._say(trial_id, f"left out of MLflow until the next `widthlab sync`: {error}")
        else:
            self._refused.add(trial_id)
            self._say(trial_id, str(error))

    def _complain(self, trial_id: str, error: Exception) -> None:
        """Say that a trial cannot be read. If its records are broken it has failed, as in the
        ledger; after any other error it is what it was when last seen."""
        if isinstance(error, BrokenRecordError):
            self._outcomes[trial_id] = "failed"
        self._say(trial_id, f"cannot be read: {type(error).__name__}: {error}")

    # --- the sweep's own run ---------------------------------------------------------------

    def _sync_parent(
        self, tracking: Tracking, parent: Run, artifacts: Artifacts, last: bool
    ) -> None:
        try:
            self._send_report(tracking, parent, artifacts, certain=last)
        except OSError as error:
            self._say(REPORT, f"cannot be read: {type(error).__name__}: {error}")
        counts = Counter(self._outcomes.values())
        try:
            self._send_sweep_file(tracking, parent, artifacts)
            self._send_note(tracking, parent, counts)
            if last:
                status = "FAILED" if counts["failed"] else "FINISHED"
                tracking.set_status(parent.run_id, status, now_ms())
            elif parent.status != "RUNNING" and counts["running"]:
                tracking.set_status(parent.run_id, "RUNNING")
                self._parent = tracking.run(parent.run_id)
        except RefusedError as error:
            self._say("sweep", str(error))
            self._forget()  # deleted on the server: the next look makes another

    def _send_sweep_file(self, tracking: Tracking, parent: Run, artifacts: Artifacts) -> None:
        """Send the resolved sweep.yaml, which says what was planned, to whoever has no more."""
        digest = sha256(self._file).hexdigest()
        if digest != self._sweep_file and artifacts.send(parent.run_id, SWEEP_FILE, self._file):
            tracking.send_tags(parent.run_id, {SWEEP_FILE_TAG: digest})
            self._sweep_file = digest

    def _send_note(self, tracking: Tracking, parent: Run, counts: Counter[str]) -> None:
        try:
            recommendation = get_json(self._sweep, RECOMMENDATION)
            text = note(counts, recommendation)
        except (OSError, ValueError, TypeError, AttributeError):  # not what the analysis writes
            text = note(counts, None)
        if text != self._note:
            tags = {"mlflow.note.content": text, "trials": progress(counts)}
            tracking.send_tags(parent.run_id, tags)
            self._note = text

    def _send_report(
        self, tracking: Tracking, parent: Run, artifacts: Artifacts, certain: bool
    ) -> None:
        """Send the report whole when it has changed; only if `certain` is every file read."""
        keys = self._sweep.list(REPORT)
        if not keys:
            return
        main = self._sweep.get(RECOMMENDATION) if RECOMMENDATION in keys else b""
        glance = sha256("\n".join(keys).encode() + main).hexdigest()
        if glance == self._glance and not certain:
            return
        files = {key: self._sweep.get(key) for key in keys}
        sums = "".join(f"{key} {sha256(data).hexdigest()}\n" for key, data in files.items())
        digest = sha256(sums.encode()).hexdigest()
        if digest != self._report:
            if not all(artifacts.send(parent.run_id, key, data) for key, data in files.items()):
                return
            tracking.send_tags(parent.run_id, {REPORT_TAG: digest})
        self._report, self._glance = digest, glance

    # --- what the user should know ---------------------------------------------------------

    def _tell_weather(self, away: str | None) -> None:
        """Warn when the server goes away, once, and tell when it is back."""
        if away and not self._away:
            log.warning(
                "MLflow at %s is away; the sweep goes on, and what is missing is sent later (%s)",
                redacted(self._uri),
                away,
            )
        elif self._away and not away:
            log.warning("MLflow at %s is back", redacted(self._uri))
        self._away = away is not None

    def _say(self, about: str, message: str) -> None:
        """Warn, unless the same was the last thing said of the same."""
        if self._said.get(about) != message:
            log.warning("mirror of %s: %s: %s", self._name, about, message)
            self._said[about] = message


def forget_trial(sweep: Storage, tracking_uri: str, trial_id: str) -> int:
    """Take a trial that is about to be discarded out of MLflow; returns how many runs that were.

    They move to the experiment's deleted runs. Raises InputError where the server is away.
    """
    identity = _noted_identity(sweep)
    if identity is None:
        return 0  # never mirrored, or not to be found again
    try:
        tracking = Tracking(tracking_uri, experiment_name())
        runs = [
            run.run_id
            for run in tracking.runs(SWEEP_TAG, identity)
            if run.tags.get(TRIAL_TAG) == trial_id
        ]
        for run_id in runs:
            tracking.delete(run_id)
    except (ServerAwayError, RefusedError) as error:
        raise InputError(
            f"trial {trial_id} cannot be taken out of MLflow at {redacted(tracking_uri)}: "
            f"{error}; start the server, or name another with --tracking-uri"
        ) from error
    return len(runs)


def experiment_name() -> str:
    """MLFLOW_EXPERIMENT_NAME, or ``widthlab``."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def _identity(sweep: Storage, name: str) -> str:
    """What the server knows the sweep by, noted beside it when it is first mirrored.

    Its path would not do: one directory is mounted in several places, and two people's sweeps of
    one name lie at equal paths of their containers. Raises InputError if it cannot be noted.
    """
    noted = _noted_identity(sweep)
    if noted is not None:
        return noted
    identity = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{uuid.uuid4().hex[:12]}"
    try:
        sweep.put(IDENTITY_FILE, encode_json({"identity": identity}))
    except OSError as error:
        raise InputError(
            f"{sweep.url}/{IDENTITY_FILE} cannot be written: {error}; MLflow finds the sweep "
            "again by it, so copy the sweep to where you may write"
        ) from error
    return identity


def _noted_identity(sweep: Storage) -> str | None:
    """The identity that was noted; None where there is none, or none that can be used."""
    try:
        noted = get_json(sweep, IDENTITY_FILE, needs=["identity"])
        if noted is None:
            return None
        identity = noted["identity"]
        if isinstance(identity, str) and re.fullmatch(r"[A-Za-z0-9._-]+", identity):
            return identity
        raise BrokenRecordError(f"{sweep.url}/{IDENTITY_FILE}: {identity!r} is no identity")
    except BrokenRecordError as error:
        log.warning("%s; the sweep's earlier runs stay in MLflow, and it gets new ones", error)
        return None
    except OSError as error:
        raise InputError(f"{sweep.url}/{IDENTITY_FILE} cannot be read: {error}") from error


def _git_tags(config: Mapping[str, Any]) -> dict[str, str]:
    """The checkout that the sweep was started in, under MLflow's own names."""
    git = config["resolved"].get("git") or {}
    return {f"mlflow.source.git.{name}": str(value).lower() for name, value in git.items()}
