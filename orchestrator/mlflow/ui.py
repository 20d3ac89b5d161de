"""Serve MLflow's pages for the sweeps of a local storage, on loopback only."""

import os
import socket
import sys
from typing import NoReturn

from orchestrator.mlflow.sqlite_uri import sqlite_path
from orchestrator.mlflow.tracking import ARTIFACTS, CLIENT_ENVIRONMENT, embedded_uri
from trialstore.errors import InputError
from trialstore.storage import Storage

HOST = "127.0.0.1"
DEFAULT_PORT = 5000
LAST_PORT = 65535

#: Without this, MLflow opens its pages for language model applications.
START_PAGE = "#/experiments?workflowType=machine_learning"

#: Turns off the job workers of MLflow 3, which serve language model applications.
SERVER_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def open_ui(storage: Storage, port: int = DEFAULT_PORT) -> NoReturn:
    """Replace this process by an MLflow server for the storage's SQLite file.

    MLflow's middleware refuses other host names and origins.

    Args:
        storage: A local storage.
        port: The port to use; another one if it is taken.

    Raises:
        InputError: The storage has no MLflow database, or `port` is not a port.
    """
    command, url = server_command(storage, port)
    print(f"MLflow on {storage.url}: {url}/{START_PAGE} (Ctrl-C ends it)", flush=True)
    environment = {**os.environ, **CLIENT_ENVIRONMENT, **SERVER_ENVIRONMENT}
    # exec, not a child process: signals reach the server, and it cannot be orphaned.
    os.execve(command[0], command, environment)


def server_command(storage: Storage, port: int) -> tuple[list[str], str]:
    """Return the command that serves the storage's SQLite file, and its address."""
    uri = embedded_uri(storage)
    database = sqlite_path(uri)
    assert database is not None
    if not database.is_file():
        raise InputError(
            f"there is no MLflow database {database}; run a sweep with this storage, or send an "
            "existing one with `widthlab sync DIR`"
        )
    free = free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--artifacts-destination", (database.parent / ARTIFACTS).as_uri(), "--workers", "1"]
    command += ["--host", HOST, "--port", str(free)]
    return command, f"http://{HOST}:{free}"


def free_port(wanted: int) -> int:
    """Return `wanted` if it is free on loopback, else a free port that the system chooses.

    Raises InputError for a number that is not a port.
    """
    if not 0 <= wanted <= LAST_PORT:
        raise InputError(
            f"--port {wanted} is not a port; give 1 to {LAST_PORT}, or 0 for any free one"
        )
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise InputError(f"no port of {HOST} is free for the MLflow server")
