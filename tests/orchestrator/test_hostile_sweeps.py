"""No sweep file, whatever is in it, ends a command with a traceback, or begins to train."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import alias_bomb, mutated_yaml
from hostile_command import STOPPED, disarm, widthlab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repository import SWEEPS, TINY

SHIPPED = [path.read_bytes() for path in sorted(SWEEPS.glob("*.yaml"))]
SOUND = TINY.read_bytes()
#: Of a sweep file, with what each needs beside it.
COMMANDS = {"plan": [], "run": [], "status": [], "stop": [], "rerun": ["0a1b"], "gc": []}

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a file is put; nothing behind the commands is there."""
    with pytest.MonkeyPatch.context() as patched:
        disarm(patched)
        yield tmp_path_factory.mktemp("sweeps")


def assert_survived(folder: Path, name: str, data: bytes) -> None:
    """The command ends in order; what it could not use it has not begun."""
    file, storage = folder / "sweep.yaml", folder / "storage"
    file.write_bytes(data)
    ended = widthlab(name, str(file), *COMMANDS[name], "--storage", str(storage))
    if name == "run":
        assert ended.code == 2
    if ended.code == 2 and STOPPED not in ended.errors:
        assert ended.errors.startswith(("error: ", "Usage: ")), ended.errors
    assert not storage.exists()


@FEW
@given(data=mutated_yaml(SHIPPED), name=st.sampled_from(sorted(COMMANDS)))
@pytest.mark.long
def test_a_spoilt_sweep_file_is_bad_input_or_another_sweep(
    folder: Path, data: bytes, name: str
) -> None:
    assert_survived(folder, name, data)


@pytest.mark.slow
@MANY
@given(data=mutated_yaml(SHIPPED), name=st.sampled_from(sorted(COMMANDS)))
def test_thousands_of_spoilt_sweep_files_are_bad_input_or_other_sweeps(
    folder: Path, data: bytes, name: str
) -> None:
    assert_survived(folder, name, data)


def edited(old: bytes, new: bytes) -> bytes:
    assert old in SOUND
    return SOUND.replace(old, new)


def long_list(length: int) -> bytes:
    return b", ".join(str(number).encode() for number in range(length))


GRID = b"[1, 2, 4]"
BOMB = b"resolved:\n" + b"".join(b"  " + line + b"\n" for line in alias_bomb(9).splitlines())
WORST = {
    "empty": b"",
    "binary": bytes(range(256)),
    "utf-16 that does not say so": SOUND.decode().encode("utf-16-le"),
    "a list": b"- 1",
    "brackets without end": SOUND + b"x: " + b"[" * 100_000,
    "brackets": SOUND + b"x: " + b"[" * 3000 + b"]" * 3000,
    "an indentation without end": SOUND
    + b"x:\n"
    + b"".join(b" " * n + b"a:\n" for n in range(1, 2000)),
    "nested axis": edited(GRID, b"[" * 300 + b"1" + b"]" * 300),
    "billion laughs": BOMB + SOUND,
    "billion laughs on the grid": BOMB + edited(GRID, b"*a8"),
    "billion laughs as a target": BOMB + edited(b"{aggregate_last: 2}", b"{target: *a8}"),
    "billion laughs as a name": BOMB + edited(b"name: tiny", b"name: *a8"),
    "an anchor within itself": SOUND + b"x: &x [*x]",
    "a number of ten thousand digits": edited(b"steps: 20", b"steps: " + b"9" * 10_000),
    "a grid of 1e12 cells": edited(
        GRID,
        GRID
        + b"".join(b"\n  %s: [%s]" % (key, long_list(2000)) for key in (b"seed", b"warmup_steps")),
    ),
    "a width beyond all numbers": edited(GRID, b"[1e308]"),
    "a constructor": b"!!python/object/apply:os.system [id]",
}


@pytest.mark.parametrize("data", WORST.values(), ids=WORST.keys())
@pytest.mark.long
def test_a_file_made_to_exhaust_or_to_run_something_is_bad_input(folder: Path, data: bytes) -> None:
    (folder / "sweep.yaml").write_bytes(data)
    for name in ("plan", "run"):
        ended = widthlab(name, str(folder / "sweep.yaml"), "--storage", str(folder / "storage"))
        assert ended.code == 2
        assert ended.errors.startswith("error: ")
        assert len(ended.errors) < 5000
        assert not (folder / "storage").exists()
