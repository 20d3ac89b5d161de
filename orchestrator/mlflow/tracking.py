"""MLflow for the exporter: the tracking URI, and the calls to the server.

MLflow is imported only when a connection is made, because the command line and the driver import
this module too. Every call succeeds or raises `ServerAwayError` or `RefusedError`.
"""

import contextlib
import fcntl
import getpass
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from orchestrator.mlflow.sqlite_uri import is_sqlite, sqlite_path, sqlite_uri
from orchestrator.mlflow.text import calls, storable
from trialstore.errors import InputError
from trialstore.storage import LocalStorage, Storage, open_storage

if TYPE_CHECKING:
    import numpy as np
    from mlflow.tracking import MlflowClient
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
IMAGE_FOLDER = "images"  # MLflow's folder among a run's artifacts
URI_VARIABLE = "MLFLOW_TRACKING_URI"
#: Tells a job its commit, as HASH or HASH-dirty: its working directory is no checkout.
GIT_VARIABLE = "WIDTHLAB_GIT_COMMIT"
DIRTY = "-dirty"

#: The most items in one call (mlflow.utils.validation).
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100

#: Short timeouts: a server that does not answer must not delay the end of a sweep. Values that the
#: user sets win.
CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

#: Without the kind, MLflow shows the experiment's pages for language model applications.
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "How wide should the feed-forward network be? A parent run is a sweep "
    "and holds its report; the runs below it are its trials.",
}

#: HTTP status of refusals: the request is wrong. Any other error is about the server's state.
REFUSALS = (400, 404)


class ServerAwayError(Exception):
    """The server did not answer or cannot serve now. The call may have arrived."""


class RefusedError(Exception):
    """The server refused a call: the run was deleted, or a value is invalid."""


class Point(NamedTuple):
    """One value of one metric; `step` counts optimiser updates."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class Image:
    """A picture of a run at a step. `pixels` is RGB, [height, width, 3], 0 to 255."""

    key: str  # such as spectra/post/heat_map
    pixels: "NDArray[np.uint8]"
    time_ms: int
    step: int


@dataclass(frozen=True)
class Run:
    """A run on the server, with the names of its params and metrics."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: frozenset[str]
    metrics: frozenset[str]


# --- the tracking URI ----------------------------------------------------------------------


def tracking_uri(storage: Storage, override: str | None = None) -> str:
    """Return the tracking URI for the sweeps of a storage.

    Args:
        storage: The storage. By default its root holds an SQLite file.
        override: Wins over MLFLOW_TRACKING_URI, which wins over the default.

    Raises:
        InputError: MLflow cannot serve the URI, or the storage is remote and no URI is given.
    """
    return given_uri(override) or embedded_uri(storage)


def given_uri(override: str | None = None) -> str | None:
    """Return the URI from `override` or else MLFLOW_TRACKING_URI; None if neither is set.

    Raises InputError for a URI that MLflow cannot serve, such as an empty `override`.
    """
    if override is not None:  # "--tracking-uri $UNSET" is an error, not the default
        return _checked(override, "--tracking-uri")
    uri = os.environ.get(URI_VARIABLE)
    return _checked(uri, URI_VARIABLE) if uri else None


def storage_of(sweep: Storage) -> Storage:
    """Return the storage that holds a sweep's directory."""
    if isinstance(sweep, LocalStorage):
        return LocalStorage(sweep.root.parent)
    # Keep the options after the question mark: s3://bucket/folder?region=x.
    folder, mark, options = sweep.url.partition("?")
    return open_storage(f"{folder.rstrip('/').rpartition('/')[0]}{mark}{options}")


def embedded_uri(storage: Storage) -> str:
    """Return the URI of the SQLite file in a storage. Raises InputError for a remote one."""
    if not isinstance(storage, LocalStorage):
        raise InputError(
            f"storage {storage.url!r} is remote and cannot hold an MLflow database; give the URI "
            "of an MLflow server with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return sqlite_uri(storage.path(DATABASE))


def redacted(uri: str) -> str:
    """Return a URI without user name and password, for messages. Accepts any text."""
    if is_sqlite(uri):
        return uri
    # Up to the last @: a password may contain an unescaped slash or @.
    return re.sub(r"^(\w[\w+.-]*://)?.*@", r"\1", uri, flags=re.DOTALL)


def _checked(uri: str, place: str) -> str:
    try:
        database = sqlite_path(uri)
    except InputError as error:
        raise InputError(f"{place} {error}") from error
    if database is not None:
        if str(database) == ":memory:" or uri.endswith("/") or database.is_dir():
            raise InputError(
                f"{place} {uri!r} names no file for MLflow's database; use "
                "sqlite:////absolute/path/mlflow.db"
            )
        # Absolute: a relative path would change its meaning with the working directory.
        return sqlite_uri(database.absolute())
    if _has_host(uri) or re.match(r"databricks(://|$)", uri):
        return uri
    raise InputError(
        f"{place} {redacted(uri)!r} is not the URI of an MLflow server; use http://HOST:5000, "
        "https://..., databricks, or sqlite:////absolute/path/mlflow.db"
    )


def _has_host(uri: str) -> bool:
    """Return whether this is an http(s) URL with a host and a valid port."""
    try:
        parts = urlsplit(uri)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # unpaired brackets, a port that is not a number
        return False


def git_state(folder: Path) -> dict[str, str | bool]:
    """Return the commit and the dirty flag of the checkout around `folder`.

    Empty if there is no checkout or no git. WIDTHLAB_GIT_COMMIT wins: a job runs in a copy.
    """
    if told := os.environ.get(GIT_VARIABLE):
        return {"commit": told.removesuffix(DIRTY), "dirty": told.endswith(DIRTY)}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": bool(changes)}


# --- the connection ------------------------------------------------------------------------


def client_of(uri: str) -> "MlflowClient":
    """MLflow's own client, with short timeouts and without its chatter in the log."""
    for name, value in CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    # A new database logs every migration, a lost connection every retry.
    for chatty in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient(uri)


class Tracking:
    """One experiment on an MLflow server or in an SQLite file. Created if missing.

    Every method raises ServerAwayError or RefusedError.

    Args:
        uri: The tracking URI.
        experiment: The experiment's name.

    Raises:
        ServerAwayError: The server does not answer, or there is no MLflow at this address.
        InputError: The experiment was deleted on the server.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        try:
            with talking(f"connecting to {redacted(uri)}"), _alone(uri):
                self._client = client_of(uri)
                found = self._client.get_experiment_by_name(experiment)
                self._experiment = (
                    found.experiment_id
                    if found
                    else self._client.create_experiment(
                        experiment, _artifact_location(uri), EXPERIMENT_TAGS
                    )
                )
        except RefusedError as refusal:  # a wrong address or a missing permission
            raise ServerAwayError(str(refusal)) from refusal
        if found and found.lifecycle_stage == "deleted":
            raise InputError(
                f"experiment {experiment!r} was deleted on {redacted(uri)}; restore it there, or "
                "set MLFLOW_EXPERIMENT_NAME to another name"
            )

    def runs(self, tag: str, value: str) -> Iterator[Run]:
        """Yield the runs of the experiment with this value of a tag, oldest first."""
        token = None
        while True:
            with talking("looking for runs"):
                page = self._client.search_runs(
                    [self._experiment],
                    f"tags.`{tag}` = '{value}'",
                    max_results=100,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            yield from map(_run, page)
            token = page.token
            if not token:
                return

    def run(self, run_id: str) -> Run:
        """Read a run."""
        with talking(f"reading run {run_id}"):
            return _run(self._client.get_run(run_id))

    def create(self, name: str, tags: Mapping[str, str], start_ms: int) -> Run:
        """Create a run with the status RUNNING. `start_ms` is Unix time in milliseconds."""
        about = {"mlflow.user": _user(), "mlflow.source.name": "widthlab", **_cut(tags)}
        with talking(f"creating run {name!r}"):
            return _run(
                self._client.create_run(
                    self._experiment, start_time=start_ms, tags=about, run_name=name
                )
            )

    def send_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Send params that the run lacks. MLflow refuses to change a param."""
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        texts = {key: storable(value, MAX_PARAM_VAL_LENGTH) for key, value in params.items()}
        for call in calls(texts, PARAMS_PER_CALL):
            with talking(f"sending params of run {run_id}"):
                self._client.log_batch(run_id, params=[Param(*item) for item in call.items()])

    def send_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Send at most METRICS_PER_CALL finite points in one call."""
        from mlflow.entities import Metric

        metrics = [Metric(p.key, p.value, p.time_ms, p.step) for p in points]
        with talking(f"sending metrics of run {run_id}"):
            self._client.log_batch(run_id, metrics=metrics)

    def send_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags; replace older values."""
        from mlflow.entities import RunTag

        items = [RunTag(key, value) for key, value in _cut(tags).items()]
        with talking(f"tagging run {run_id}"):
            self._client.log_batch(run_id, tags=items)

    def send_artifact(self, run_id: str, path: str, data: bytes) -> None:
        """Store a file under a relative path such as ``report/figures/loss.svg``."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary, talking(f"sending {path}"):
            local = Path(temporary, name)
            local.write_bytes(data)
            self._client.log_artifact(run_id, str(local), folder or None)

    def send_image(self, run_id: str, image: Image) -> None:
        """Store an image. MLflow shows the images of one key with a slider over steps."""
        with talking(f"sending {image.key}"):
            self._client.log_image(
                run_id,
                image.pixels,
                key=image.key,
                step=image.step,
                timestamp=image.time_ms,
                synchronous=True,
            )

    def image_steps(self, run_id: str) -> dict[str, int]:
        """Return the last step at which the server has a complete image, by key."""
        with talking(f"listing images of run {run_id}"):
            files = self._client.list_artifacts(run_id, IMAGE_FOLDER)
        reached: dict[str, int] = {}
        for file in files:
            # Match the thumbnail: MLflow stores it after the image itself.
            if match := re.fullmatch(r"images/(.+?)[+%]step[+%](\d+)[+%].*\.webp", file.path):
                key, step = match.group(1).replace("~", "/"), int(match.group(2))
                reached[key] = max(reached.get(key, 0), step)
        return reached

    def steps(self, run_id: str, key: str) -> set[int]:
        """Return the steps at which the server has a point of a metric."""
        with talking(f"reading {key} of run {run_id}"):
            return {metric.step for metric in self._client.get_metric_history(run_id, key)}

    def remove_tag(self, run_id: str, key: str) -> None:
        """Remove a tag from a run that has it."""
        with talking(f"removing tag {key} of run {run_id}"):
            self._client.delete_tag(run_id, key)

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Set a run to RUNNING, or with `end_ms` (Unix milliseconds) to FINISHED or FAILED."""
        with talking(f"setting run {run_id} to {status}"):
            if end_ms is None:
                self._client.update_run(run_id, status)
            else:
                self._client.set_terminated(run_id, status, end_ms)

    def delete(self, run_id: str) -> None:
        """Move a run to the experiment's deleted runs. MLflow can restore it from there."""
        with talking(f"deleting run {run_id}"):
            self._client.delete_run(run_id)


@contextlib.contextmanager
def talking(doing: str) -> Iterator[None]:
    """Turn every error of MLflow's client into ServerAwayError or RefusedError.

    `doing` begins the message, such as ``reading run 0a1b``.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        kind = RefusedError if error.get_http_status_code() in REFUSALS else ServerAwayError
        raise kind(f"{doing}: {first_line(error)}") from error
    except (OSError, SQLAlchemyError) as error:  # requests' errors are OSErrors
        raise ServerAwayError(f"{doing}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error, at most 300 characters, without passwords in URLs."""
    first = str(error).partition("\n")[0]
    return re.sub(r"(?<=://)[^\s/]*@", "", first)[:300]


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a lock while MLflow creates the schema of an SQLite file; two at once break it."""
    database = sqlite_path(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _artifact_location(uri: str) -> str | None:
    """Return the artifact folder beside an SQLite file; None lets a server decide."""
    database = sqlite_path(uri)
    return None if database is None else (database.parent / ARTIFACTS).absolute().as_uri()


def _run(run: Any) -> Run:
    data = run.data
    return Run(
        run.info.run_id, run.info.status, data.tags, frozenset(data.params), frozenset(data.metrics)
    )


def _cut(tags: Mapping[str, str]) -> dict[str, str]:
    from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

    return {key: storable(value, MAX_TAG_VAL_LENGTH) for key, value in tags.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        return str(os.getuid())
