"""The job server of a Ray cluster, and the jobs of sweeps on it.

A thin layer over Ray's `JobSubmissionClient`. It adds three things. A given address wins over Ray's
environment variables. No request waits for ever. Every failure is one of two errors: InputError if
the user can correct it, ServerLostError if the server does not answer now.
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

#: Metadata keys of a Ray job that mark it as a sweep's.
SWEEP_KEY, STORAGE_KEY = "widthlab_sweep", "widthlab_storage"

#: Ray's client prefers these variables to the address in its arguments.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
AUTH_MODE, TOKENS = "RAY_AUTH_MODE", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
HOW_TO_AUTHENTICATE = (
    "set RAY_AUTH_MODE=token, and put the cluster's token into RAY_AUTH_TOKEN or into the file "
    "that RAY_AUTH_TOKEN_PATH names (default: ~/.ray/auth_token)"
)

#: Seconds to connect and to answer. A busy head is slow to start a job.
REQUEST_TIMEOUT_S = (10.0, 60.0)

#: The exit code of a shell that does not find a command.
NOT_FOUND = 127

#: The command line begins its message about bad input with this.
ERROR = "error: "

CONTINUES = "submit the sweep again to continue it"


class ServerLostError(Exception):
    """The job server does not answer now. Its jobs may still run."""


@dataclass(frozen=True)
class Job:
    """A sweep's job, as the job server reports it."""

    id: str
    sweep: str  # its name
    storage: str  # without user name and password
    state: str  # pending, running, stopped, succeeded or failed
    started_ms: int | None = None
    ended_ms: int | None = None
    driver_exit_code: int | None = None
    message: str | None = None  # Ray's; after a failure it ends with the last lines of the log

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in ("stopped", "succeeded", "failed")

    @property
    def since(self) -> str | None:
        """When the job entered its state: ISO 8601, UTC. None if Ray does not say."""
        time_ms = self.ended_ms if self.over else self.started_ms
        if not time_ms:
            return None
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")

    @property
    def exit_code(self) -> int | None:
        """The exit code for a command that follows the job.

        0 if it succeeded, 2 for bad input, 1 for anything else, None while it runs.
        """
        if not self.over:
            return None
        if self.state == "succeeded":
            return 0
        return 2 if self.driver_exit_code == 2 else 1

    @property
    def ending(self) -> str:
        """One line: how the job ended, and what to do about it."""
        if self.state == "stopped":
            return f"job {self.id} was stopped; {CONTINUES}"
        if self.state != "failed":
            return f"job {self.id} {self.state}"
        code = self.driver_exit_code
        if code is None:  # the driver never ran, or no process was left to see its exit
            why = next(iter((self.message or "").strip().splitlines()), "Ray does not say why")
        elif code == NOT_FOUND:
            why = "the shell on the Ray head finds no `python`; put it on the PATH there"
        elif code == 2:
            why = self._error or "bad input; see the end of its log"
        elif _killed_by(code):
            why = f"{_killed_by(code)} from outside killed its driver; {CONTINUES}"
        else:
            why = f"exit code {code}; see the end of its log"
        return f"job {self.id} failed: {why}"

    @property
    def _error(self) -> str | None:
        """The driver's message about bad input, from the end of its log."""
        lines = (self.message or "").splitlines()
        errors = (line.removeprefix(ERROR) for line in reversed(lines) if line.startswith(ERROR))
        return next(errors, None)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `widthlab submit --json` prints."""
        told = asdict(self) | {"since": self.since, "exit_code": self.exit_code}
        return told | {"message": self.ending if self.over else None}


def _killed_by(exit_code: int) -> str | None:
    """Return the signal that ended a process: -N from its parent, 128 + N from a shell."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


class JobServer:
    """The jobs of sweeps on one cluster. `connect` makes one.

    Every method raises InputError if the server refuses, ServerLostError if it does not answer.
    """

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
        """Upload the working directory and start a job.

        Args:
            job_id: A new id, chosen by the caller.
            entrypoint: The command line, for the cluster's POSIX shell.
            runtime_env: Ray's runtime environment: ``working_dir`` and ``env_vars``.
            metadata: `SWEEP_KEY` and `STORAGE_KEY`.
        """
        with _translated(self.address):
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env=dict(runtime_env),
                metadata=dict(metadata),
            )

    def job(self, job_id: str) -> Job:
        """Return one job. Raises InputError if no job of a sweep has this id."""
        job = self.find(job_id)
        if job is None:
            raise InputError(
                f"{self.address} has no job {job_id!r} that `widthlab submit` started; "
                f"`ray job list --address {self.address}` shows all jobs"
            )
        return job

    def find(self, job_id: str) -> Job | None:
        """Return one job; None if no job of a sweep has this id."""
        if re.fullmatch(r"[\w.~-]+", job_id) is None:
            return None  # such an id would change the URL path of the request
        with _translated(self.address):
            try:
                return _of_widthlab(self._client.get_job_info(job_id))
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

    def jobs(self) -> list[Job]:
        """Return all jobs of sweeps, latest first."""
        with _translated(self.address):
            found = [_of_widthlab(details) for details in self._client.list_jobs()]
        ours = [job for job in found if job is not None]
        return sorted(ours, key=lambda job: job.started_ms or 0, reverse=True)

    def stop(self, job_id: str) -> None:
        """Ask Ray to send the job's driver SIGTERM, and SIGKILL after its grace period."""
        with _translated(self.address):
            self._client.stop_job(job_id)

    def log(self, job_id: str) -> str:
        """Return everything that a job has printed so far."""
        with _translated(self.address):
            text: str = self._client.get_job_logs(job_id)
        return text

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield the output of a job in chunks, from its first line until it ends.

        Raises ServerLostError if the connection breaks.
        """
        from aiohttp import ClientError  # of Ray's client

        try:
            async for chunk in self._client.tail_job_logs(job_id):
                yield chunk
        except (ClientError, OSError, RuntimeError) as error:
            raise ServerLostError(
                f"{self.address} closed the connection: {_short(error)}"
            ) from error


def connect(address: str) -> JobServer:
    """Connect to the job server at ``http://HOST:PORT`` and wait for its first answer.

    Raises InputError for any other kind of address, if no Ray job server answers there, and for a
    missing or wrong token.
    """
    check_address(address)
    for name in ADDRESS_VARIABLES:
        os.environ.pop(name, None)
    if any(map(os.environ.get, TOKENS)):  # a token without a mode is meant to be sent
        os.environ.setdefault(AUTH_MODE, "token")
    from ray.job_submission import JobSubmissionClient

    for chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private"):
        logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Ray's client has no timeout: it would wait for ever for a server that hangs."""

        def _do_request(self, method: str, endpoint: str, **keywords: Any) -> Any:
            keywords.setdefault("timeout", REQUEST_TIMEOUT_S)
            return super()._do_request(method, endpoint, **keywords)

    try:
        with _translated(address):
            return JobServer(address, Client(address))
    except ServerLostError as error:
        raise InputError(f"{error}; give the address of a Ray dashboard") from error


def check_address(address: str) -> None:
    """Raise InputError unless the address is http(s) with a host and without a password."""
    place = redacted(address)
    if place != address:
        raise InputError(
            f"--address {place!r} contains a user name or password, which every user of this "
            "machine can read; use Ray's token authentication instead"
        )
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # unpaired brackets, a port that is not a number
        usable = False
    if not usable:
        raise InputError(
            f"--address {place!r} is not the address of a Ray dashboard; write "
            "http://HOST:8265, with the host of the Ray head and the port of its dashboard"
        )


def _of_widthlab(details: Any) -> Job | None:
    """Ray's details of a job as a `Job`; None if `widthlab submit` did not start it."""
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
    """Turn every error of Ray's client into InputError or ServerLostError."""
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
    except OSError as error:  # errors of `requests` are OSErrors, also those with an HTTP status
        if getattr(error, "response", None) is not None:
            raise InputError(f"{address} is no Ray job server: {_short(error)}") from error
        raise ServerLostError(f"no Ray head answers at {address}: {_reason(error)}") from error


def _refusal(address: str, text: str) -> str:
    if text.startswith("Authentication failed"):
        return f"{address} does not accept the token"
    if text.startswith("Authentication required"):
        return f"{address} asks for a token"
    return f"there is no token for {address} ({text.partition('. ')[0]})"


def _reason(error: BaseException) -> str:
    """Return the innermost error: the operating system's, without the libraries' wrapping."""
    while error.__context__ is not None:
        error = error.__context__
    return _short(error)


def _short(error: BaseException) -> str:
    """Return an error's first line. Some errors quote a whole HTML page or binary data."""
    lines = str(error).strip().splitlines()
    line = lines[0][:300] if lines else type(error).__name__
    return line if line.isprintable() else "an answer in binary"
