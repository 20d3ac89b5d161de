"""Submit a sweep as a Ray job: check it here, then send it.

The job runs `python -m orchestrator.cli run SWEEP.yaml`. Ray sets RAY_ADDRESS, and `run` joins that
cluster. Passwords reach the driver in a file that the job's shell reads first: everybody who may
list jobs can see their command lines, metadata and runtime environments.
"""

import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.jobs.follow import PATIENCE_S, POLL_S
from orchestrator.jobs.package import ENVIRONMENT_FILE, fill, own_modules
from orchestrator.jobs.server import (
    STORAGE_KEY,
    SWEEP_KEY,
    Job,
    JobServer,
    ServerLostError,
    check_address,
)
from orchestrator.mlflow.sqlite_uri import is_sqlite
from orchestrator.mlflow.tracking import (
    DIRTY,
    GIT_VARIABLE,
    URI_VARIABLE,
    git_state,
    given_uri,
    redacted,
)
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.load import STORAGE_VARIABLE, load_sweep
from orchestrator.sweep.paths import paths_of
from trialstore.errors import InputError
from trialstore.storage_url import FILE, file_url_path, refuse_secrets

#: Variables that MLflow's client reads: the experiment and its credentials.
MLFLOW_VARIABLES = (
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "DATABRICKS_HOST",
    "DATABRICKS_TOKEN",
)

#: Seconds between Ray's SIGTERM to a driver and its SIGKILL. Trials write checkpoints meanwhile.
STOP_PATIENCE_S = 600

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Submission:
    """A sweep file and the options of `widthlab run` for it."""

    sweep: Path
    overrides: tuple[str, ...]
    storage: str
    tracking_uri: str | None
    retry_failed: bool = False
    require_verdict: bool = False


@dataclass(frozen=True)
class Prepared:
    """A submission that passed all checks on this machine."""

    config: SweepConfig
    storage: str
    blocks: tuple[Path, ...]  # modules of own blocks that travel
    environment: dict[str, str]  # of the driver
    notes: tuple[str, ...]  # for the user: what only the cluster can check


def prepare(submission: Submission, address: str) -> Prepared:
    """Make all checks that need no cluster.

    Raises InputError for a sweep file, storage, MLflow URI or data path that a job cannot use.
    """
    check_address(address)
    config = load_sweep(submission.sweep, submission.overrides)
    typed = load_sweep(submission.sweep, submission.overrides, as_typed=True)
    _check_storage(submission.storage)
    uri = _tracking_uri(submission)
    folders = [submission.sweep.resolve().parent, Path.cwd()]
    notes = [*_about_data(typed, config), *_about_tracking(uri, address)]
    return Prepared(
        config,
        submission.storage,
        tuple(own_modules(config, folders)),
        _environment(submission.storage, uri),
        tuple(notes),
    )


def submit_sweep(server: JobServer, submission: Submission, prepared: Prepared) -> Job:
    """Start the job of a prepared submission.

    Raises:
        InputError: The cluster runs this sweep already, or the job's files are too large.
        ServerLostError: The server did not answer. The message says if the job may have started.
    """
    sweep, storage = prepared.config.name, prepared.storage
    for job in server.jobs():
        if (job.sweep, job.storage) == (sweep, storage) and not job.over:
            raise InputError(
                f"job {job.id} runs sweep {sweep} already ({job.state} since {job.since}); "
                "follow it with --attach or stop it with --stop"
            )
    job_id = f"widthlab-{sweep}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="widthlab-job-") as scratch:
        folder = Path(scratch)
        file = fill(folder, submission.sweep, prepared.blocks, prepared.environment)
        # Ray's default is three seconds: too short for a checkpoint.
        patience = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_PATIENCE_S)}
        runtime_env = {"working_dir": str(folder), "env_vars": patience}
        metadata = {SWEEP_KEY: sweep, STORAGE_KEY: storage}
        return _started(server, job_id, entrypoint(file, submission), runtime_env, metadata)


def _started(
    server: JobServer,
    job_id: str,
    command: str,
    runtime_env: dict[str, Any],
    metadata: dict[str, str],
) -> Job:
    """Start a job exactly once, with retries.

    A head that has just started has no job agent yet. A busy head may start a job without
    answering in time, so look for the job before each retry.
    """
    deadline = time.monotonic() + PATIENCE_S
    asked = False
    while True:
        try:
            started = server.find(job_id) if asked else None
            if started is None:
                asked = True
                server.submit(job_id, command, runtime_env, metadata)
                started = server.job(job_id)
            return started
        except ServerLostError as error:
            if time.monotonic() > deadline:
                unknown = f"job {job_id} may or may not have started"
                raise ServerLostError(f"{unknown}: {error}") from error
            time.sleep(POLL_S)


def entrypoint(file: Path, submission: Submission) -> str:
    """Return the job's command line, for a POSIX shell in the job's working directory."""
    words = ["python", "-m", "orchestrator.cli", "run", str(file)]
    for setting in submission.overrides:
        words += ["--set", setting]
    words += ["--retry-failed"] * submission.retry_failed
    words += ["--require-verdict"] * submission.require_verdict
    # exec: the driver gets the job's signals, and its exit code becomes the job's.
    return f". ./{ENVIRONMENT_FILE} && exec {shlex.join(words)}"


def _environment(storage: str, uri: str | None) -> dict[str, str]:
    """Return the driver's environment variables. Trials contact no server and get none of them."""
    given = {name: os.environ.get(name) for name in MLFLOW_VARIABLES}
    git = git_state(Path.cwd())
    commit = f"{git['commit']}{DIRTY if git['dirty'] else ''}" if git else None
    told = {STORAGE_VARIABLE: storage, URI_VARIABLE: uri, GIT_VARIABLE: commit, **given}
    return {name: value for name, value in told.items() if value}


def _check_storage(storage: str) -> None:
    refuse_secrets(storage)
    path = storage.removeprefix(FILE)
    if "://" in path:
        return
    if not path.startswith(("/", "~")):
        raise InputError(
            f"storage {storage!r} is relative to this folder, but a job runs on the cluster in a "
            f"folder that Ray deletes; set --storage or {STORAGE_VARIABLE} to an absolute path "
            "that every node mounts, or to a URL such as s3://bucket/folder"
        )
    if storage.startswith(FILE):
        file_url_path(storage)  # raises here rather than in the job


def _tracking_uri(submission: Submission) -> str | None:
    """Return the URI of the job's MLflow server; None for the SQLite file beside the sweeps."""
    raw = submission.tracking_uri or os.environ.get(URI_VARIABLE, "")
    if is_sqlite(raw) and not raw.partition(":///")[2].startswith("/"):
        raise InputError(
            f"the tracking URI {raw!r} is a file of this folder, which is not on the cluster; give "
            "an MLflow server's URI with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    uri = given_uri(submission.tracking_uri)
    storage = submission.storage.removeprefix(FILE)
    if uri is None and "://" in storage:
        raise InputError(
            f"storage {storage!r} is remote and cannot hold an MLflow database; give an MLflow "
            "server's URI with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return uri


def _about_tracking(uri: str | None, address: str) -> Iterator[str]:
    here = [urlsplit(each).hostname in LOOPBACK for each in (uri or "", address)]
    if here == [True, False]:
        yield f"{redacted(uri or '')} means MLflow on the Ray head for the job, not on this machine"


def _about_data(typed: SweepConfig, config: SweepConfig) -> Iterator[str]:
    """Notes on the data that every node must have. Data do not travel with a job.

    `typed` holds the paths as the user wrote them, `config` the same paths made absolute. Raises
    InputError for a relative path.
    """
    for path, found in zip(paths_of(typed), paths_of(config), strict=True):
        if path.maybe_hub and found.maybe_hub:
            continue  # a repository of the hub, OWNER/NAME
        if path.relative:
            raise InputError(
                f"{path.place} {path.text!r} is relative to a folder of this machine, and data do "
                "not travel with a job; put them where every node of the cluster can read them, "
                f"and give the absolute path (on this machine it is {found.text})"
            )
        where = "must be there on every node of the cluster"
        yield f"{path.place} {path.text} {where}; it does not travel with the job"
