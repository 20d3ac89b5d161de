"""The identity by which MLflow finds a sweep again, and the removal of a trial's run."""

import logging
import os
import re
import uuid

from orchestrator.mlflow.tracking import RefusedError, ServerAwayError, Tracking, redacted
from orchestrator.mlflow.trial_run import SWEEP_TAG, TRIAL_TAG
from trialstore.errors import InputError
from trialstore.records import BrokenRecordError, encode_json, get_json
from trialstore.storage import Storage, is_away

log = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = "widthlab"
IDENTITY_FILE = "mirror.json"


def experiment_name() -> str:
    """Return the name of the experiment: MLFLOW_EXPERIMENT_NAME, or ``widthlab``."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def identity_of_sweep(sweep: Storage, name: str) -> str:
    """Return the sweep's identity in MLflow: its name and twelve random digits.

    Written beside the sweep at its first export. A path would not do: one directory can be mounted
    at several paths, and two containers can have different sweeps at one path. Raises InputError if
    the identity cannot be written.
    """
    noted = _noted_identity(sweep)
    if noted is not None:
        return noted
    identity = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{uuid.uuid4().hex[:12]}"
    try:
        sweep.put(IDENTITY_FILE, encode_json({"identity": identity}))
    except OSError as error:
        raise InputError(
            f"{sweep.url_of(IDENTITY_FILE)} cannot be written: {error}; MLflow finds the sweep by "
            "this file, so copy the sweep to a folder that you may write to"
        ) from error
    return identity


def forget_trial(sweep: Storage, tracking_uri: str, trial_id: str) -> int:
    """Move the runs of a trial to the experiment's deleted runs. Return how many there were.

    Raises InputError if the server does not answer or refuses.
    """
    identity = _noted_identity(sweep)
    if identity is None:
        return 0  # never exported, or its identity is lost
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
            f"trial {trial_id} cannot be removed from MLflow at {redacted(tracking_uri)}: "
            f"{error}; start the server, or name another with --tracking-uri"
        ) from error
    return len(runs)


def _noted_identity(sweep: Storage) -> str | None:
    """Return the sweep's written identity; None if there is none, or the file is broken."""
    try:
        noted = get_json(sweep, IDENTITY_FILE, needs=["identity"])
        if noted is None:
            return None
        identity = noted["identity"]
        if isinstance(identity, str) and re.fullmatch(r"[A-Za-z0-9._-]+", identity):
            return identity
        raise BrokenRecordError(f"{sweep.url_of(IDENTITY_FILE)}: {identity!r} is not an identity")
    except BrokenRecordError as error:
        log.warning("%s; the sweep gets new runs, and its earlier runs stay in MLflow", error)
        return None
    except OSError as error:
        if is_away(error):
            raise
        raise InputError(f"{sweep.url_of(IDENTITY_FILE)} cannot be read: {error}") from error
