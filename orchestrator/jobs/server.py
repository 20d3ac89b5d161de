"""A Ray cluster's job server as widthlab speaks to it, and what it knows of widthlab's jobs.

Ray's own client does the talking. What is added: an address that is given wins over Ray's
variables, no request waits for ever, and whatever goes wrong is one of two errors: an InputError
that the user can mend, or a ServerLostError for a server that is away now.
"""

import contextlib
import logging
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from orchestrator.mlflow.tracking import redacted
from trialstore.errors import InputError

#: Metadata by which widthlab's jobs are known among others.
SWEEP_KEY, STORAGE_KEY = "widthlab_sweep", "widthlab_storage"

#: Ray takes them in the place of the address that its client is given.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
AUTH_MODE, TOKENS = "RAY_AUTH_MODE", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
HOW_TO_AUTHENTICATE = (
    "set RAY_AUTH_MODE=token, and the cluster's token in a file that RAY_AUTH_TOKEN_PATH names "
    "(default: ~/.ray/auth_token) or in RAY_AUTH_TOKEN"
)

#: To connect, and for an answer: a busy head takes its time to start a job.
REQUEST_TIMEOUT_S = (10.0, 60.0)

#: How a shell says that it has not found a command.
NOT_FOUND = 127

#: How the command line begins the one message of bad input.
ERROR = "error: "

CONTINUES = "submitting the sweep again continues it"


class ServerLostError(Exception):
    """The job server does not answer now; jobs may go on without it."""


@dataclass(frozen=True)
class Job:
    """A sweep's job as the job server has it."""

    id: str
    sweep: str
    storage: str  # without user name and password
    state: str  # pending, running, stopped, succeeded or failed
    started_ms: int | None = None
    ended_ms: int | None = None
    driver_exit_code: int | None = None
    message: str | None = None  # Ray's; of a job that failed it ends with the log's last lines

    @property
    def over(self) -> bool:
        return self.state in ("stopped", "succeeded", "failed")

    @property
    def since(self) -> str | None:
        """When the job came into its state, in ISO 8601 and UTC."""
        time_ms = self.ended_ms if self.over else self.started_ms
        if not time_ms:
            return None
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")

    @property
    def exit_code(self) -> int | None:
        """What a command that followed the job ends with: 0 succeeded, 2 bad input, 1 otherwise.

        None while it is not over.
        """
        if not self.over:
            return None
        if self.state == "succeeded":
            return 0
        return 2 if self.driver_exit_code == 2 else 1

    @property
    def ending(self) -> str:
        """What became of it, and what to do about that, in a sentence."""
        if self.state == "stopped":
            return f"job {self.id} was stopped; {CONTINUES}"
        if self.state != "failed":
            return f"job {self.id} {self.state}"
        code = self.driver_exit_code
        if code is None:  # its driver never ran, or nobody was left to see it end
            why = next(iter((self.message or "").strip().splitlines()), "Ray does not say why")
        elif code == NOT_FOUND:
            why = "the cluster's shell finds no `python`; it must be on the PATH of the Ray head"
        elif code == 2:
            why = self._error or "bad input, which the end of its log explains"
        elif _killed_by(code):
            why = f"its driver was killed from outside, by {_killed_by(code)}; {CONTINUES}"
        else:
            why = f"exit code {code}; the end of its log says why"
        return f"job {self.id} failed: {why}"

    @property
    def _error(self) -> str | None:
        """The message with which the driver refused its input."""
        lines = (self.message or "").splitlines()
        errors = (line.removeprefix(ERROR) for line in reversed(lines) if line.startswith(ERROR))
        return next(errors, None)

    def to_json(self) -> dict[str, Any]:
        """What `widthlab submit --json` prints of a job."""
        told = asdict(self) | {"since": self.since, "exit_code": self.exit_code}
        return told | {"message": self.ending if self.over else None}


def _killed_by(exit_code: int) -> str | None:
    """The signal that ended a process, as its parent or a shell in between reports it."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


class JobServer:
    """The jobs of one cluster. Every call may raise InputError or ServerLostError."""

    def __init__(self, address: str, client: Any) -> None:
        self.address = address
        self._client = client

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> None:
        """Send the working directory and start a job of that id."""
        with _translated(self.address):
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env=dict(runtime_env),
                metadata=dict(metadata),
            )

    def job(self, job_id: str) -> Job:
        """One job. Raises InputError for an id that is none of a sweep's."""
        job = self.find(job_id)
        if job is None:
            raise InputError(
                f"{self.address} has no job {job_id!r} that `widthlab submit` started; "
                "--list shows those there are"
            )
        return job

    def find(self, job_id: str) -> Job | None:
        """One job, None for an id that is none of a sweep's."""
        if re.fullmatch(r"[\w.~-]+", job_id) is None:
            return None  # within a URL it would be another resource of the server's
        with _translated(self.address):
            try:
                return _of_widthlab(self._client.get_job_info(job_id))
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

    def jobs(self) -> list[Job]:
        """All jobs of sweeps, the latest first."""
        with _translated(self.address):
            found = [_of_widthlab(details) for details in self._client.list_jobs()]
        ours = [job for job in found if job is not None]
        return sorted(ours, key=lambda job: job.started_ms or 0, reverse=True)

    def stop(self, job_id: str) -> None:
        """Ask Ray to send the job's driver SIGTERM, and to kill it when its time is over."""
        with _translated(self.address):
            self._client.stop_job(job_id)

    def log(self, job_id: str) -> str:
        """All that a job has printed so far."""
        with _translated(self.address):
            text: str = self._client.get_job_logs(job_id)
        return text

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """What a job prints, from its first line until its end. Raises ServerLostError where the
        connection breaks."""
        from aiohttp import ClientError  # of Ray's client

        try:
            async for chunk in self._client.tail_job_logs(job_id):
                yield chunk
        except (ClientError, OSError, RuntimeError) as error:
            raise ServerLostError(f"{self.address} has hung up: {_short(error)}") from error


def connect(address: str) -> JobServer:
    """The job server at http://HOST:PORT, after it has answered.

    Raises InputError for an address of another kind, where nobody or something else answers, and
    for a token that is missing or wrong.
    """
    check_address(address)
    for name in ADDRESS_VARIABLES:
        os.environ.pop(name, None)
    if any(map(os.environ.get, TOKENS)):  # who names a token wants it sent
        os.environ.setdefault(AUTH_MODE, "token")
    from ray.job_submission import JobSubmissionClient

    for chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private"):
        logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Ray's own would wait for ever for a server that hangs."""

        def _do_request(self, method: str, endpoint: str, **keywords: Any) -> Any:
            keywords.setdefault("timeout", REQUEST_TIMEOUT_S)
            return super()._do_request(method, endpoint, **keywords)

    try:
        with _translated(address):
            return JobServer(address, Client(address))
    except ServerLostError as error:
        raise InputError(f"{error}; give the address of a Ray head's dashboard") from error


def check_address(address: str) -> None:
    """Raises InputError where it is no http address, or has what nobody should read."""
    place = redacted(address)
    if place != address:
        raise InputError(
            f"--address {place!r} holds a user name or password, which every user of this machine "
            "could read; Ray's token does without"
        )
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not pair, a port that is no number
        usable = False
    if not usable:
        raise InputError(
            f"--address {place!r} is not the address of a Ray dashboard, which takes jobs; "
            "write http://HOST:8265, with the head's host and its dashboard's port"
        )


def _of_widthlab(details: Any) -> Job | None:
    """A job of Ray's as one of ours, None for others."""
    metadata = details.metadata or {}
    if details.submission_id is None or SWEEP_KEY not in metadata:
        return None
    return Job(
        details.submission_id,
        metadata[SWEEP_KEY],
        metadata.get(STORAGE_KEY, ""),
        str(details.status).lower(),
        details.start_time or None,
        details.end_time or None,
        details.driver_exit_code,
        details.message,
    )


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into the two errors of this module."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise InputError(f"{_refusal(address, str(error))}: {HOW_TO_AUTHENTICATE}") from error
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        status = re.match(r"Request failed with status code (\d+)", str(error))
        if status is None:
            raise InputError(f"{address} is no Ray job server: {_short(error)}") from error
        if status[1].startswith("5"):
            raise ServerLostError(f"{address} cannot serve: {_short(error)}") from error
        raise InputError(f"{address} refuses: {_short(error)}") from error
    except OSError as error:  # requests' errors are OSErrors, those of an HTTP status too
        if getattr(error, "response", None) is not None:
            raise InputError(f"{address} is no Ray job server: {_short(error)}") from error
        raise ServerLostError(f"no Ray head answers at {address}: {_reason(error)}") from error


def _refusal(address: str, text: str) -> str:
    if text.startswith("Authentication failed"):
        return f"{address} does not accept the token that was sent"
    if text.startswith("Authentication required"):
        return f"{address} asks for a token, and none was sent"
    return f"there is no token for {address} ({text.partition('. ')[0]})"


def _reason(error: BaseException) -> str:
    """What the system said, below all that libraries have wrapped around it."""
    while error.__context__ is not None:
        error = error.__context__
    return _short(error)


def _short(error: BaseException) -> str:
    """An error's first line; some quote whole pages, or what another protocol says."""
    lines = str(error).strip().splitlines()
    line = lines[0][:300] if lines else type(error).__name__
    return line if line.isprintable() else "an answer that is no text"
