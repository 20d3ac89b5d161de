"""What other processes inherit means the same place in whatever folder they run."""

import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tune.path_variables import (
    CACHES,
    LONGEST_SOCKET,
    PATHS,
    check_sockets,
    make_absolute,
    require_absolute,
)
from orchestrator.tune.ray_cluster import cluster
from trialstore.errors import InputError


@pytest.mark.parametrize("name", PATHS)
def test_a_relative_path_becomes_that_of_the_folder_of_the_command(name: str, tmp_path: Path):
    environment = {name: "rel/cache", "HOME": "/home/a", "OTHER": "rel"}
    make_absolute(environment, tmp_path)
    assert environment == {name: f"{tmp_path}/rel/cache", "HOME": "/home/a", "OTHER": "rel"}


@given(st.dictionaries(st.sampled_from([*PATHS, "PYTHONPATH"]), st.text("ab/.~:", max_size=9)))
def test_absolute_paths_stay_and_a_second_time_changes_nothing(environment: dict[str, str]):
    once = dict(environment)
    make_absolute(once, Path("/here"))
    twice = dict(once)
    make_absolute(twice, Path("/elsewhere"))
    assert twice == once
    for name, path in environment.items():
        if path.startswith(("/", "~")) and name != "PYTHONPATH":
            assert once[name] == path or os.path.normpath(once[name]) == os.path.normpath(path)


def test_every_folder_of_a_search_path_is_made_absolute():
    environment = {"PYTHONPATH": os.pathsep.join(["src", "/opt/lib", ""])}
    make_absolute(environment, Path("/here"))
    assert environment["PYTHONPATH"].split(os.pathsep) == ["/here/src", "/opt/lib", "/here"]


def test_an_empty_folder_for_temporary_files_is_none():
    environment = {"TMPDIR": "", "HF_HOME": ""}
    make_absolute(environment, Path("/here"))
    assert environment == {"HF_HOME": ""}


@pytest.mark.parametrize("name", CACHES)
def test_a_node_whose_caches_would_be_the_trials_own_is_refused(name: str):
    require_absolute({name: "/cache"})
    require_absolute({name: "~/cache"})
    require_absolute({name: ""})
    with pytest.raises(InputError, match=f"{name} 'relcache'"):
        require_absolute({name: "relcache"})


# --- sockets -------------------------------------------------------------------------------


def of_length(nbytes: int) -> str:
    return "/" + "x" * (nbytes - 1)


@given(st.integers(40, 120), st.sampled_from([7, 12345, 4_194_304]))
def test_a_folder_is_refused_exactly_where_the_system_would_not_bind(nbytes: int, pid: int):
    """The path is Ray's own; whether a socket can have it is asked of the system itself."""
    path = f"{of_length(nbytes)}/ray/session_2026-11-30_12-00-00_123456_{pid}/sockets/plasma_store"
    with socket.socket(socket.AF_UNIX) as asked:
        try:
            asked.bind(path)
        except FileNotFoundError:  # there is no such folder, and the name would do
            binds = True
        except OSError:
            binds = False
    try:
        check_sockets({"TMPDIR": of_length(nbytes)}, pid)
        passes = True
    except InputError:
        passes = False
    assert passes == (binds and len(path) <= LONGEST_SOCKET)


def test_bytes_are_counted_and_the_message_says_how_many_fit():
    with pytest.raises(InputError, match=r"TMPDIR .* bytes .*RAY_TMPDIR .* (\d+)") as no:
        check_sockets({"TMPDIR": "/" + "ä" * 30}, 12345)
    room = int(str(no.value).split("at most ")[1].split()[0])
    check_sockets({"TMPDIR": of_length(room)}, 12345)
    with pytest.raises(InputError):
        check_sockets({"TMPDIR": of_length(room + 1)}, 12345)


def test_rays_own_variable_comes_first():
    check_sockets({"RAY_TMPDIR": "/tmp", "TMPDIR": of_length(200)}, 1)
    with pytest.raises(InputError, match="RAY_TMPDIR '"):
        check_sockets({"RAY_TMPDIR": of_length(200), "TMPDIR": "/tmp"}, 1)


def test_a_ray_is_not_even_begun_below_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # its import would fail
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", of_length(150))
    with pytest.raises(InputError, match="TMPDIR"), cluster(None):
        pass
