"""The sweep's own run in MLflow: its description, its report, its status."""

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from orchestrator.mlflow.artifacts import Artifacts
from orchestrator.mlflow.points import flat, note, progress
from orchestrator.mlflow.tracking import Run, Tracking
from orchestrator.mlflow.trial_run import now_ms
from trialstore.records import get_json
from trialstore.storage import Storage
from trialstore.sweep_file import RECOMMENDATION, REPORT, SWEEP_FILE

REPORT_TAG = "widthlab.report"
SWEEP_FILE_TAG = "widthlab.sweep_file"


class ParentRun:
    """The parent run of a sweep's trials.

    Args:
        tracking: The experiment.
        artifacts: Its artifact store.
        run: The run on the server.
        sweep: The sweep's directory.
        say: Logs a warning: a subject, a message.

    Raises:
        FileNotFoundError: `sweep` has no sweep.yaml.
    """

    def __init__(
        self,
        tracking: Tracking,
        artifacts: Artifacts,
        run: Run,
        sweep: Storage,
        say: Callable[[str, str], None],
    ) -> None:
        self.run_id = run.run_id
        self._tracking = tracking
        self._artifacts = artifacts
        self._status = run.status
        self._sweep = sweep
        self._say = say
        self._file = sweep.get(SWEEP_FILE)
        self._stored = dict(run.tags)  # digests of the run's files, by tag
        self._note = ""
        self._glance = ""  # a cheap digest of the report
        self.lacks_files = False  # the artifact store did not take every file

    def update(self, counts: Counter[str], last: bool) -> None:
        """Send the news of the sweep as a whole.

        Args:
            counts: The number of trials by state.
            last: End the run: FAILED if a trial has failed, else FINISHED.

        Raises:
            RefusedError: The run is no longer on the server.
            ServerAwayError: The server does not answer.
        """
        self.lacks_files = False
        try:
            self._send_report(certain=last)
        except OSError as error:
            self._say(REPORT, f"cannot be read: {type(error).__name__}: {error}")
        # The resolved sweep.yaml is the plan, for readers of MLflow without the directory.
        self._send_files(SWEEP_FILE_TAG, _digest(self._file), {SWEEP_FILE: self._file})
        self._send_note(counts)
        if last:
            self._set_status("FAILED" if counts["failed"] else "FINISHED")
        elif self._status != "RUNNING" and counts["running"]:
            self._set_status("RUNNING")

    def _set_status(self, status: str) -> None:
        self._tracking.set_status(self.run_id, status, None if status == "RUNNING" else now_ms())
        self._status = status

    def _send_note(self, counts: Counter[str]) -> None:
        try:
            recommendation = get_json(self._sweep, f"{REPORT}/{RECOMMENDATION}")
            text = note(counts, recommendation)
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
        ):  # a file that the analysis did not write
            text = note(counts, None)
        if text != self._note:
            tags = {"mlflow.note.content": text, "trials": progress(counts)}
            self._tracking.send_tags(self.run_id, tags)
            self._note = text

    def _send_report(self, certain: bool) -> None:
        """Send the whole report if it has changed. Read every file only if `certain`."""
        keys = self._sweep.list(REPORT)
        if not keys:
            return
        main = f"{REPORT}/{RECOMMENDATION}"
        judged = self._sweep.get(main) if main in keys else b""
        glance = _digest("\n".join(keys).encode() + judged)
        if glance == self._glance and not certain:
            return
        files = {key: self._sweep.get(key) for key in keys}
        sums = "".join(f"{key} {_digest(data)}\n" for key, data in files.items())
        if self._send_files(REPORT_TAG, _digest(sums.encode()), files):
            self._glance = glance

    def _send_files(self, tag: str, digest: str, files: Mapping[str, bytes]) -> bool:
        """Send files unless the run's tag has their digest. Return whether the run has them."""
        if self._stored.get(tag) == digest:
            return True
        if not all(self._artifacts.send(self.run_id, key, data) for key, data in files.items()):
            self.lacks_files = True
            return False
        self._tracking.send_tags(self.run_id, {tag: digest})
        self._stored[tag] = digest
        return True


def parent_params(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the params of the sweep's run, from a resolved sweep.yaml."""
    resolved = config["resolved"]
    facts = {key: value for key, value in resolved.items() if isinstance(value, str | int)}
    told = {key: config.get(key) for key in ("corpus", "tokenizer")}
    # MLflow keeps the parameter `hold`; so do older files keep the key.
    told["hold"] = config.get("match", config.get("hold"))
    return flat(told | facts)


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()
