"""What an MLflow server knows a sweep by, and how one of its trials is taken out of it."""

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
    """MLFLOW_EXPERIMENT_NAME, or ``widthlab``."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def identity_of_sweep(sweep: Storage, name: str) -> str:
    """What the server knows the sweep by, noted beside it when it is first exported.

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
            f"{sweep.url_of(IDENTITY_FILE)} cannot be written: {error}; MLflow finds the sweep "
            "again by it, so copy the sweep to where you may write"
        ) from error
    return identity


def forget_trial(sweep: Storage, tracking_uri: str, trial_id: str) -> int:
    """Take a trial that is about to be discarded out of MLflow; returns how many runs that were.

    They move to the experiment's deleted runs. Raises InputError where the server is away.
    """
    identity = _noted_identity(sweep)
    if identity is None:
        return 0  # never exported, or not to be found again
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


def _noted_identity(sweep: Storage) -> str | None:
    """The identity that was noted; None where there is none, or none that can be used."""
    try:
        noted = get_json(sweep, IDENTITY_FILE, needs=["identity"])
        if noted is None:
            return None
        identity = noted["identity"]
        if isinstance(identity, str) and re.fullmatch(r"[A-Za-z0-9._-]+", identity):
            return identity
        raise BrokenRecordError(f"{sweep.url_of(IDENTITY_FILE)}: {identity!r} is no identity")
    except BrokenRecordError as error:
        log.warning("%s; the sweep's earlier runs stay in MLflow, and it gets new ones", error)
        return None
    except OSError as error:
        if is_away(error):
            raise
        raise InputError(f"{sweep.url_of(IDENTITY_FILE)} cannot be read: {error}") from error
