"""One driver per sweep: the first to be there, whoever else begins, and at whatever moment."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from owners import name_owners
from storages import ScriptedStorage, meeting

from trialstore import driver_lease
from trialstore.driver_lease import current_driver, driving, is_driven
from trialstore.errors import InputError
from trialstore.records import encode_json
from trialstore.storage import LocalStorage

AWAY = {"host": "elsewhere", "pid": 1, "started": 0.0, "state": "driving"}


def now_ms(seconds_ago: float = 0.0) -> int:
    return int((time.time() - seconds_ago) * 1000)


def claim(sweep: LocalStorage, number: int = 1, owner: str = "a" * 32, **about: object) -> str:
    key = f"drivers/{number:06d}-{owner}.json"
    sweep.put(key, encode_json({**AWAY, "heartbeat_ms": now_ms(), **about}))
    return key


def test_one_driver_has_a_sweep_at_a_time(tmp_path: Path):
    sweep = LocalStorage(tmp_path)
    with driving(sweep) as held:
        assert is_driven(sweep)
        assert current_driver(sweep) == held.owner
        with pytest.raises(InputError, match=f"process {os.getpid()} on "), driving(sweep):
            pass
        assert not held.replaced
        sweep.put("sweep.yaml", b"")
    assert not is_driven(sweep)
    with driving(sweep):
        assert is_driven(sweep)
    assert len(sweep.list("drivers")) == 1  # what is left says which number comes next


def test_a_run_that_was_refused_before_it_wrote_anything_leaves_no_trace(tmp_path: Path):
    sweep = LocalStorage(tmp_path)
    with pytest.raises(InputError), driving(sweep):
        raise InputError("not shared")
    assert sweep.list() == []


@pytest.mark.processes
def test_a_killed_driver_of_this_machine_need_not_be_waited_for(tmp_path: Path):
    source = (
        "import sys, os, signal\n"
        "from trialstore.storage import open_storage\n"
        "from trialstore.driver_lease import driving\n"
        "with driving(open_storage(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", source, str(tmp_path)], check=False)
    assert killed.returncode == -9
    sweep = LocalStorage(tmp_path)
    assert [json.loads(sweep.get(key))["state"] for key in sweep.list()] == ["driving"]
    assert not is_driven(sweep)
    with driving(sweep):
        assert is_driven(sweep)


@pytest.fixture
def nobody_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_lease, "LISTEN_S", 0.0)


def test_a_silent_driver_of_another_machine_is_waited_for_a_minute(
    tmp_path: Path, nobody_beats: None
):
    sweep = LocalStorage(tmp_path)
    claim(sweep)
    assert is_driven(sweep)
    with pytest.raises(InputError, match="process 1 on elsewhere"), driving(sweep):
        pass
    claim(sweep, heartbeat_ms=now_ms(120))
    assert not is_driven(sweep)
    with driving(sweep) as held:
        assert not held.replaced


def test_a_container_of_the_same_host_name_has_processes_of_its_own(
    tmp_path: Path, nobody_beats: None
):
    """Whether its driver lives is not told by who has that pid here."""
    sweep = LocalStorage(tmp_path)
    here = {"host": socket.gethostname(), "pid": 4_000_000, "processes": "boot pid:[1]"}
    claim(sweep, **here)
    assert is_driven(sweep)
    claim(sweep, **here, heartbeat_ms=now_ms(120))
    assert not is_driven(sweep)


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="needs PID namespaces")
def test_a_claim_says_what_its_pid_is_a_number_of(tmp_path: Path):
    sweep = LocalStorage(tmp_path)
    with driving(sweep):
        (key,) = sweep.list()
        boot, space = json.loads(sweep.get(key))["processes"].split()
    assert (len(boot), space) == (36, os.readlink("/proc/self/ns/pid"))


@pytest.mark.parametrize("slow_s", [300, -300])
def test_one_whose_clock_is_wrong_is_heard_by_its_next_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_s: int
):
    sweep = LocalStorage(tmp_path)
    claim(sweep, heartbeat_ms=now_ms(slow_s))
    listened = []

    def beat(seconds: float) -> None:
        listened.append(seconds)
        claim(sweep, heartbeat_ms=now_ms(slow_s) + 1000 * len(listened))

    monkeypatch.setattr(driver_lease.time, "sleep", beat)
    assert is_driven(sweep)
    with pytest.raises(InputError, match="process 1 on elsewhere"), driving(sweep):
        pass
    assert min(listened) > driver_lease.HEARTBEAT_S


def test_one_that_ends_while_it_is_listened_for_is_not_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sweep = LocalStorage(tmp_path)
    claim(sweep, heartbeat_ms=now_ms(300))
    monkeypatch.setattr(driver_lease.time, "sleep", lambda seconds: claim(sweep, state="released"))
    assert not is_driven(sweep)


@pytest.mark.parametrize(("silent_s", "driven"), [(0, True), (300, False)])
def test_of_this_machine_a_process_that_began_at_another_time_may_be_the_same(
    tmp_path: Path, silent_s: int, driven: bool
):
    """Setting the clock moves the time at which processes are said to have begun."""
    sweep = LocalStorage(tmp_path)
    here = {"host": socket.gethostname(), "started": 1.0, "heartbeat_ms": now_ms(silent_s)}
    claim(sweep, pid=os.getppid(), **here)
    assert is_driven(sweep) is driven


def test_this_process_is_not_another_that_had_its_number(tmp_path: Path):
    """In a container every driver may be process 1."""
    sweep = LocalStorage(tmp_path)
    claim(sweep, host=socket.gethostname(), pid=os.getpid(), started=1.0)
    assert not is_driven(sweep)


def test_one_that_may_not_be_looked_at_is_known_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def hidden(pid: int) -> None:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(driver_lease.psutil, "Process", hidden)
    sweep = LocalStorage(tmp_path)
    claim(sweep, host=socket.gethostname())
    assert is_driven(sweep)
    claim(sweep, host=socket.gethostname(), heartbeat_ms=now_ms(300))
    assert not is_driven(sweep)


def test_a_storage_that_fails_at_the_end_undoes_nothing(tmp_path: Path, caplog):
    sweep = ScriptedStorage(tmp_path)
    sweep.put("sweep.yaml", b"")
    with driving(sweep):
        sweep.before("put", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    assert sweep.url in caplog.text


@pytest.mark.parametrize(
    "about",
    [{"pid": "1"}, {"pid": -1}, {"started": None}, {"state": "king"}, {"heartbeat_ms": "now"}],
)
def test_a_claim_that_says_nothing_sensible_is_none(tmp_path: Path, about: dict, caplog):
    sweep = LocalStorage(tmp_path)
    claim(sweep, **about)
    assert not is_driven(sweep)
    assert "drivers/000001-" in caplog.text


def test_other_objects_are_no_claims(tmp_path: Path):
    sweep = LocalStorage(tmp_path)
    sweep.put("drivers/notes.txt", b"hello")
    sweep.put("drivers/000001-x.json", b"{}")
    assert current_driver(sweep) is None


@pytest.fixture
def fast_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_lease, "HEARTBEAT_S", 0.001)


def until(true) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def test_a_driver_that_was_taken_for_gone_gives_way_and_touches_nothing(
    tmp_path: Path, fast_heartbeat: None
):
    sweep = LocalStorage(tmp_path)
    with driving(sweep) as held:
        key = claim(sweep, number=2)
        until(lambda: held.replaced)
        left = {name: sweep.get(name) for name in sweep.list()}
    assert {name: sweep.get(name) for name in sweep.list()} == left
    assert current_driver(sweep) == "a" * 32
    assert key in left


def test_another_that_only_asks_replaces_nobody(tmp_path: Path, fast_heartbeat: None):
    """It began at the same moment, and will find that this one was first."""
    sweep = LocalStorage(tmp_path)
    with driving(sweep) as held:
        (key,) = sweep.list()
        claim(sweep, number=1, owner="f" * 32, state="asking")
        began = json.loads(sweep.get(key))["heartbeat_ms"]
        until(lambda: json.loads(sweep.get(key))["heartbeat_ms"] > began + 10)
        assert not held.replaced
        assert current_driver(sweep) == held.owner


def test_a_driver_whose_claim_was_cleared_away_gives_way_too(tmp_path: Path, fast_heartbeat: None):
    sweep = LocalStorage(tmp_path)
    with driving(sweep) as held:

        def cleared() -> bool:  # again and again: a beat that had looked before writes once more
            for key in sweep.list():
                sweep.delete(key)
            return held.replaced

        until(cleared)
    assert sweep.list() == []


def test_it_beats(tmp_path: Path, fast_heartbeat: None):
    sweep = LocalStorage(tmp_path)
    with driving(sweep):
        (key,) = sweep.list()
        first = json.loads(sweep.get(key))["heartbeat_ms"]
        until(lambda: json.loads(sweep.get(key))["heartbeat_ms"] > first)


# --- at the same moment --------------------------------------------------------------------


def begins(stack: ExitStack, sweep: LocalStorage) -> bool:
    """Whether a driver that begins is not refused; it drives until the stack is closed."""
    try:
        stack.enter_context(driving(sweep))
    except InputError:
        return False
    return True


@pytest.mark.parametrize("parties", [2, 6])
def test_of_many_that_begin_at_once_one_drives(tmp_path: Path, parties: int):
    sweep = ScriptedStorage(tmp_path)
    # None writes before all have looked, and none looks again before all have written.
    sweep.after("list", meeting(parties))
    sweep.after("put", meeting(parties))
    ended = threading.Barrier(parties)

    def drive(_: int) -> bool:
        with ExitStack() as stack:
            drives = begins(stack, sweep)
            ended.wait(30)  # it drives until all others have been refused
        return drives

    with ThreadPoolExecutor(parties) as pool:
        drove = list(pool.map(drive, range(parties)))
    assert sum(drove) == 1
    assert not is_driven(LocalStorage(tmp_path))


@pytest.mark.parametrize("moment", range(1, 5))
@pytest.mark.parametrize("owners", ["ab", "ba"])
def test_wherever_a_second_one_begins_there_are_never_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, owners: str
):
    """The second runs as far as it gets at a moment of the first's beginning."""
    name_owners(monkeypatch, driver_lease, owners)
    monkeypatch.setattr(driver_lease, "HEARTBEAT_S", 1e6)
    sweep = LocalStorage(tmp_path)
    second = Second(sweep)
    first = ScriptedStorage(tmp_path)
    first.after("put list", lambda _: second.begin(), skip=moment - 1, times=1)
    with ExitStack() as stack:
        drives = begins(stack, first)
        second.wait()
        assert drives + second.drives <= 1
        assert drives or second.drives
    second.end()


class Second:
    """Another driver, in a thread: it may have to wait for the first, which is halted meanwhile."""

    def __init__(self, sweep: LocalStorage) -> None:
        self._sweep, self._end, self._settled = sweep, threading.Event(), threading.Event()
        self.drives = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with driving(self._sweep):
                self.drives = True
                self._settled.set()
                self._end.wait(30)
        except InputError:
            self._settled.set()

    def begin(self) -> None:
        self._thread.start()
        self._settled.wait(0.2)  # if it has to wait for the first, that must go on

    def wait(self) -> None:
        if not self._thread.ident:
            self._thread.start()
        assert self._settled.wait(30)

    def end(self) -> None:
        self._end.set()
        self._thread.join(30)
