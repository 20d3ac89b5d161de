"""The commands, called as a shell would, with nothing behind them that trains, serves or waits."""

import contextlib
import io
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

from orchestrator.cli import __main__ as cli
from orchestrator.mlflow.tracking import Run, ServerAwayError
from trainers import __main__ as trainers_main
from trialstore.errors import InputError

#: What `widthlab` says where it comes as far as training.
STOPPED = "stopped before training"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    errors: str


def widthlab(*arguments: str) -> Ended:
    """`widthlab ARGUMENTS`. AssertionError where it ends with a traceback, or says nothing of
    what is wrong."""

    def command() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", ["widthlab", *arguments])
            cli.main()

    return _ended(command, arguments)


def trainers(*arguments: str) -> Ended:
    """`python -m trainers ARGUMENTS`, in the same way."""
    return _ended(lambda: sys.exit(trainers_main.main(list(arguments))), arguments)


def _ended(command: Callable[[], None], arguments: tuple[str, ...]) -> Ended:
    output, errors = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            command()
        except SystemExit as stopped:
            code = stopped.code or 0
        except Exception as error:
            raise AssertionError(f"{arguments}:\n{traceback.format_exc()}") from error
    ended = Ended(code, output.getvalue(), errors.getvalue())
    assert ended.code in (0, 1, 2), (arguments, ended)
    assert "Traceback" not in ended.errors, (arguments, ended)
    if ended.code == 2:
        assert ended.errors.strip(), arguments
    return ended


class SilentTracking:
    """A server that takes everything and tells nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def runs(self, *_: Any) -> Iterator[Run]:
        return iter(())

    def run(self, run_id: str) -> Run:
        return Run(run_id, "RUNNING", {}, frozenset(), frozenset())

    def create(self, *_: Any) -> Run:
        return self.run("run")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def _stop(*_: Any, **__: Any) -> NoReturn:
    raise InputError(STOPPED)


def _away(*_: Any) -> NoReturn:
    raise ServerAwayError("nobody answers")


def _serve(*_: Any) -> NoReturn:
    raise SystemExit(0)


def disarm(patched: pytest.MonkeyPatch, *, server: bool = False) -> None:
    """Have commands end where they would train, fetch, serve or call a server.

    With `server` there is one that takes everything.
    """
    for name in ("open_store", "pin"):
        patched.setattr(f"orchestrator.run.{name}", _stop)
    patched.setattr("trainers.train.train", _stop)
    patched.setattr("orchestrator.mlflow.ui.os.execve", _serve)
    tracking = SilentTracking if server else _away
    for module in ("export_sweep", "identity"):
        patched.setattr(f"orchestrator.mlflow.{module}.Tracking", tracking)
    patched.setattr("orchestrator.mlflow.reader.client_of", _away)
    patched.setenv("HF_HUB_OFFLINE", "1")
    for variable in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "WIDTHLAB_STORAGE"):
        patched.delenv(variable, raising=False)
