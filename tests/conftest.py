"""What holds for all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Tests are no package: without this none could import what several share. Not the folder of this
# file: its `analysis` would be found before the real one.
sys.path.insert(0, str(Path(__file__).parent / "support"))

from s3_server import CREDENTIALS, S3Server

# No test asserts a wall-clock time: the machine may be busy.
settings.register_profile("widthlab", deadline=None)
settings.load_profile("widthlab")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.end()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server and, in the environment, what it is asked with."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return s3_server
