"""One driver per sweep: two would train the same trials side by side.

A driver claims the sweep under a name of its own, which nobody else writes: no object store could
keep two from overwriting one they share. The first to be there drives, and later ones are refused
while it lives. Of two that begin at the same moment each writes its claim before it looks, so at
least one of them sees the other, and the one with the larger name steps back.

A driver that was thought to be gone (halted, or cut off for a minute) finds a higher number than
its own when it comes back, and begins nothing more; what it has running is replaced trial by trial
(`trialstore.claims`), or ends.
"""

import contextlib
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import psutil

from trialstore.errors import InputError
from trialstore.heartbeat import every
from trialstore.json_objects import (
    COUNT,
    NUMBER,
    TEXT,
    BrokenRecordError,
    Kind,
    encode_json,
    get_json,
)
from trialstore.storage import Storage
from trialstore.sweep_file import SWEEP_FILE

logger = logging.getLogger(__name__)

DRIVERS = "drivers"

HEARTBEAT_S = 5.0
#: A driver of another machine that has not been heard of for this long is gone,
STALE_S = 60.0
#: unless it beats while somebody listens: by a clock that is set wrong a living one looks silent.
LISTEN_S = 2.5 * HEARTBEAT_S
#: Between two looks at another that began at the same moment.
LOOK_S = 0.05

State = Literal["asking", "driving", "released"]
SECONDS = Kind("a number of seconds", lambda value: value is not None and NUMBER.holds(value))
STATE = Kind("a driver's state", lambda value: value in get_args(State))


NEEDS = {
    "host": TEXT, "pid": COUNT, "started": SECONDS, "state": STATE, "heartbeat_ms": COUNT
}  # fmt: skip


@dataclass(frozen=True)
class Driver:
    """One claim. `started` is when its process began, in seconds by the clock of its host, and
    `processes` what its pid is a number of."""

    number: int
    owner: str
    host: str
    pid: int
    started: float
    processes: str = ""
    state: State = "asking"
    heartbeat_ms: int = 0

    @property
    def key(self) -> str:
        return f"{DRIVERS}/{self.number:06d}-{self.owner}.json"

    @property
    def place(self) -> tuple[int, str]:
        """The order of claims; of equal numbers the smaller owner goes first."""
        return self.number, self.owner

    @property
    def alive(self) -> bool:
        """Whether its process is still there, as far as this one can tell."""
        if self.state == "released":
            return False
        here = self._is_here() if self._is_of_this_machine else None
        if here is not None:
            return here
        return abs(time.time() * 1000 - self.heartbeat_ms) < STALE_S * 1000

    @property
    def silent(self) -> bool:
        """Whether it has let go of nothing, and only its silence says that it is gone."""
        return self.state != "released" and not self._is_of_this_machine and not self.alive

    @property
    def _is_of_this_machine(self) -> bool:
        """Containers may share a host's name and still have processes of their own."""
        same = self.processes in ("", _processes())  # not said by earlier versions
        return same and self.host == socket.gethostname()

    def _is_here(self) -> bool | None:
        """Whether its process is on this machine, where a killed one need not be waited for; None
        where that cannot be told."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            same = abs(process.create_time() - self.started) < 1.0
        except psutil.AccessDenied:
            return None
        except (psutil.NoSuchProcess, OverflowError, ValueError):
            return False
        if same or self.pid == os.getpid():
            return same
        # Another process by that number, or the same: setting the clock moves all starts.
        return None


class Driving:
    """That this process drives a sweep, for as long as it does."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._replaced = threading.Event()

    @property
    def replaced(self) -> bool:
        """Whether another has taken the sweep, thinking this one gone."""
        return self._replaced.is_set()

    def give_way(self) -> None:
        """Another drives now."""
        self._replaced.set()


@contextlib.contextmanager
def driving(sweep: Storage) -> Iterator[Driving]:
    """Be the driver of a sweep for the time of the block.

    Raises InputError if another process is.
    """
    mine = _claim(sweep)
    held = Driving(mine.owner)

    def beat() -> None:
        if _replaced(sweep, mine):
            held.give_way()
        else:
            _put(sweep, mine)

    try:
        with every(HEARTBEAT_S, beat):
            yield held
    finally:
        try:
            if not _replaced(sweep, mine):
                _let_go(sweep, mine)
        except OSError as error:  # what has been done counts; whoever comes next may have to wait
            logger.warning("%s: the sweep was not released: %s", sweep.url, error)


def _processes() -> str:
    """Which processes the pids of this one number: the boot and the namespace; empty where the
    system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _let_go(sweep: Storage, mine: Driver) -> None:
    """Say that it is over; where a run was refused before it began the sweep, leave no trace."""
    try:
        sweep.get(SWEEP_FILE)
    except FileNotFoundError:
        sweep.delete(mine.key)
    else:
        _put(sweep, replace(mine, state="released"))


def is_driven(sweep: Storage) -> bool:
    """Whether a driver is at work on a sweep. Takes seconds where one has fallen silent."""
    return _at_work(sweep)[1] is not None


def current_driver(sweep: Storage) -> str | None:
    """Who drives a sweep, or was the last to: its owner's name, which is of one run."""
    drove = [driver for driver in _claims(sweep) if driver.state != "asking"]
    return drove[-1].owner if drove else None


def _at_work(sweep: Storage) -> tuple[list[Driver], Driver | None]:
    """Every claim, and among them one of a driver that is at work."""
    claims = _claims(sweep)
    silent = {driver.owner: driver.heartbeat_ms for driver in claims if driver.silent}
    if silent and not any(driver.alive for driver in claims):
        time.sleep(LISTEN_S)
        claims = _claims(sweep)
    for driver in claims:
        beats = silent.get(driver.owner, driver.heartbeat_ms) != driver.heartbeat_ms
        if driver.alive or (beats and driver.state != "released"):
            return claims, driver
    return claims, None


def _claim(sweep: Storage) -> Driver:
    seen, other = _at_work(sweep)
    if other is not None:
        raise _refusal(other)
    process = psutil.Process()
    mine = Driver(
        number=1 + max((driver.number for driver in seen), default=0),
        owner=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=process.pid,
        started=process.create_time(),
        processes=_processes(),
    )
    _put(sweep, mine)
    try:
        _wait_for_my_turn(sweep, mine)
    except BaseException:
        sweep.delete(mine.key)
        raise
    mine = replace(mine, state="driving")
    _put(sweep, mine)
    for driver in seen:  # what is left of drivers that are gone; a higher number stands
        sweep.delete(driver.key)
    return mine


def _wait_for_my_turn(sweep: Storage, mine: Driver) -> None:
    """Raises InputError where another that began at the same moment goes first."""
    while True:
        others = [other for other in _claims(sweep) if other.owner != mine.owner]
        rivals = [other for other in others if other.number >= mine.number and other.alive]
        for other in rivals:
            if other.state == "driving" or other.number > mine.number or other.place < mine.place:
                raise _refusal(other)
        if not rivals:
            return
        time.sleep(LOOK_S)  # it steps back, or has begun to drive before it could see this one


def _replaced(sweep: Storage, mine: Driver) -> bool:
    """Whether the claim is gone, or a newer one drives: one that only asks may yet step back."""
    return current_driver(sweep) != mine.owner


def _refusal(other: Driver) -> InputError:
    return InputError(
        f"sweep is being run by process {other.pid} on {other.host}; "
        "follow it with `widthlab status`, or end it with `widthlab stop`"
    )


def _put(sweep: Storage, driver: Driver) -> None:
    now = time.time_ns() // 1_000_000
    sweep.put(driver.key, encode_json(asdict(replace(driver, heartbeat_ms=now))))


def _claims(sweep: Storage) -> list[Driver]:
    """Every claim in order; those that cannot be read are told of, and are none."""
    found = (_read(sweep, key) for key in sweep.list(DRIVERS))
    return sorted((driver for driver in found if driver), key=lambda driver: driver.place)


def _read(sweep: Storage, key: str) -> Driver | None:
    match = re.fullmatch(rf"{DRIVERS}/(\d{{6,9}})-([0-9a-f]{{32}})\.json", key)
    if match is None:
        return None
    try:
        content = get_json(sweep, key, needs=NEEDS)
    except BrokenRecordError as error:
        logger.warning("%s; taken for no driver", error)
        return None
    if content is None:
        return None
    about = {name: content[name] for name in NEEDS}
    if TEXT.holds(content.get("processes")):
        about["processes"] = content["processes"]
    return Driver(number=int(match[1]), owner=match[2], **about)
