"""What holds for all tests."""

import multiprocessing.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

# Tests are no package: without this none could import what several share. Not the folder of this
# file: its `analysis` would be found before the real one.
sys.path.insert(0, str(Path(__file__).parent / "support"))

from s3_server import CREDENTIALS, S3Server

from trialstore.storage import LocalStorage

# Ray makes its workers wait for all else, by fifteen steps of niceness: beside two processes that
# compute they would hardly come to run.
os.environ.setdefault("RAY_worker_niceness", "0")

# No test asserts a wall-clock time: the machine may be busy. The same examples in every run: a
# change is never refused for what another one did.
settings.register_profile("widthlab", deadline=None, derandomize=True)
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


@pytest.fixture
def trial(tmp_path: Path) -> LocalStorage:
    """A trial's directory, which is not there yet."""
    return LocalStorage(tmp_path / "trial")


# --- without processes ---------------------------------------------------------------------

#: Fixtures that start a process: whoever asks for one is marked by it.
STARTING = {"s3", "s3_server"}
#: What Python tells an audit hook before it starts one.
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"}
#: What is asked of the machine in passing, in milliseconds: by a submission, which commit it is
#: of; by DeepSpeed, at ZeRO 3, which memory is near; by platform, which processor this is.
ASKED = {"git", "numactl", "uname"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-processes",
        action="store_true",
        help="leave out the tests marked `processes`; any other that starts one fails",
    )


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if STARTING & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.processes)
    starting = {item.path for item in items if item.get_closest_marker("processes")}
    # Files that wait for processes go first: what only computes fills the cores while they do,
    # and none of them is left alone at the end. Sorting keeps the order within each kind.
    items.sort(key=lambda item: item.path not in starting)
    if config.getoption("--no-processes"):
        left_out = [item for item in items if item.get_closest_marker("processes")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("processes")]


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--no-processes"):
        return

    def refuse(*what: Any) -> NoReturn:
        pytest.fail(f"a process is started, so the test needs @pytest.mark.processes: {what}")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS and _under_test and not ASKED.intersection(map(str, arguments[:1])):
            refuse(event, *arguments)

    sys.addaudithook(audit)
    spawn: Any = multiprocessing.util.spawnv_passfds  # which tells no hook

    def watched(*arguments: Any) -> Any:
        return refuse(*arguments) if _under_test else spawn(*arguments)

    setattr(multiprocessing.util, "spawnv_passfds", watched)  # noqa: B010 (no type has it)


_under_test: list[pytest.Item] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _under_test.append(item)
    try:
        return (yield)
    finally:
        _under_test.remove(item)
