"""The user interface serves one storage to this machine only."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from orchestrator.mlflow.ui import free_port, server_command
from trialstore.errors import InputError
from trialstore.storage import LocalStorage


def test_a_port_in_use_is_replaced_by_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = taken.getsockname()[1]
        assert free_port(wanted) != wanted
    assert free_port(wanted) == wanted


@pytest.mark.parametrize("port", [-1, 65536, 70000])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(InputError, match="--port"):
        free_port(port)


def test_a_storage_without_a_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`widthlab sync"):
        server_command(LocalStorage(tmp_path), 0)


def test_the_server_is_bound_to_loopback_on_this_storage(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    command, url = server_command(LocalStorage(tmp_path), 0)
    given = dict(zip(command[4::2], command[5::2], strict=True))
    assert command[1:4] == ["-m", "mlflow", "server"]
    assert given["--host"] == "127.0.0.1"
    assert given["--backend-store-uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert given["--artifacts-destination"] == f"file://{tmp_path}/mlartifacts"
    assert url == f"http://127.0.0.1:{given['--port']}"


@pytest.mark.slow  # the server takes its time to start; its command line is tested above
def test_the_page_answers_and_an_interrupt_ends_it(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()  # the server makes the schema of an empty file
    serve = "import sys; from trialstore.storage import open_storage; "
    serve += "import orchestrator.mlflow.ui as ui; "
    serve += "ui.open_ui(open_storage(sys.argv[1]), 0)"
    with subprocess.Popen(
        [sys.executable, "-c", serve, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stderr is not None
            url = server.stdout.readline().split()[-4].partition("/#")[0]
            assert any("Uvicorn running" in line for line in server.stderr)
            with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
                assert answer.read() == b"OK"
            elsewhere = urllib.request.Request(f"{url}/", headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(elsewhere, timeout=30)
        finally:
            os.killpg(server.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
            server.communicate(timeout=60)
