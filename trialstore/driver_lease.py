"""One driver per sweep: two drivers would train the same trials at the same time.

Each driver writes a claim under a name of its own, so no driver overwrites another's. The first
driver holds the sweep, and later ones are refused while it lives. Two drivers that start at the
same moment both write their claims before they look, so at least one sees the other; the one with
the larger name steps back.

A driver may come back after it was taken for gone (it was suspended, or its network failed for a
minute). It then finds a claim with a higher number than its own and starts no more trials. Its
running trials are replaced one by one (`trialstore.claims`), or end.
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
from trialstore.heartbeat import HEARTBEAT_S, STALE_S, every
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

#: Seconds to watch a silent driver of another machine before it counts as gone: if the clocks
#: differ, a living driver looks silent.
LISTEN_S = 2.5 * HEARTBEAT_S
#: Seconds between two looks at a driver that started at the same moment.
LOOK_S = 0.05

State = Literal["asking", "driving", "released"]
SECONDS = Kind("a number of seconds", lambda value: value is not None and NUMBER.holds(value))
STATE = Kind("a driver's state", lambda value: value in get_args(State))


NEEDS = {
    "host": TEXT, "pid": COUNT, "started": SECONDS, "state": STATE, "heartbeat_ms": COUNT
}  # fmt: skip


@dataclass(frozen=True)
class Driver:
    """A driver's claim on a sweep."""

    number: int  # one higher than the claims it found
    owner: str  # a random name
    host: str
    pid: int
    started: float  # start of its process, in seconds by the clock of its host
    processes: str = ""  # the boot and PID namespace that `pid` belongs to
    state: State = "asking"
    heartbeat_ms: int = 0

    @property
    def key(self) -> str:
        """The claim's object in the sweep's directory."""
        return f"{DRIVERS}/{self.number:06d}-{self.owner}.json"

    @property
    def place(self) -> tuple[int, str]:
        """The order of claims: by number, then by owner."""
        return self.number, self.owner

    @property
    def alive(self) -> bool:
        """Whether its process still runs, as far as this process can tell."""
        if self.state == "released":
            return False
        here = self._is_here() if self._is_of_this_machine else None
        if here is not None:
            return here
        return abs(time.time() * 1000 - self.heartbeat_ms) < STALE_S * 1000

    @property
    def silent(self) -> bool:
        """Whether it released nothing and only looks gone because its heartbeat is old."""
        return self.state != "released" and not self._is_of_this_machine and not self.alive

    @property
    def _is_of_this_machine(self) -> bool:
        """Compares the PID namespace too: containers may share a host's name."""
        same = self.processes in ("", _processes())  # earlier versions left it out
        return same and self.host == socket.gethostname()

    def _is_here(self) -> bool | None:
        """Whether its process runs on this machine; None if that cannot be determined.

        A process that was killed here need not be waited for.
        """
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
        # Another process has the pid, or the clock was set, which moves all start times.
        return None


class Driving:
    """This process's hold on a sweep, for the time of `driving`."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._replaced = threading.Event()

    @property
    def replaced(self) -> bool:
        """Whether another driver took the sweep because this one looked gone."""
        return self._replaced.is_set()

    def give_way(self) -> None:
        """Note that another driver has the sweep."""
        self._replaced.set()


@contextlib.contextmanager
def driving(sweep: Storage) -> Iterator[Driving]:
    """Be the driver of a sweep for the time of the block.

    Yields:
        The hold on the sweep. Check its `replaced` before starting anything.

    Raises:
        InputError: Another process drives the sweep; the message names its host and pid.
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
        except OSError as error:  # the next driver may have to wait until it is stale
            logger.warning("%s: the driver's claim was not released: %s", sweep.url, error)


def _processes() -> str:
    """The boot and PID namespace of this process; empty if the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _let_go(sweep: Storage, mine: Driver) -> None:
    """Release the claim, or delete it if the run was refused before it wrote the sweep's file."""
    try:
        sweep.get(SWEEP_FILE)
    except FileNotFoundError:
        sweep.delete(mine.key)
    else:
        _put(sweep, replace(mine, state="released"))


def is_driven(sweep: Storage) -> bool:
    """Return whether a driver is at work on a sweep. Takes LISTEN_S if one looks silent."""
    return _at_work(sweep)[1] is not None


def current_driver(sweep: Storage) -> str | None:
    """Return the owner of the newest driver that has driven a sweep; each run has its own."""
    drove = [driver for driver in _claims(sweep) if driver.state != "asking"]
    return drove[-1].owner if drove else None


def _at_work(sweep: Storage) -> tuple[list[Driver], Driver | None]:
    """All claims, and the one whose driver is at work, if any."""
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
    for driver in seen:  # of drivers that are gone
        sweep.delete(driver.key)
    return mine


def _wait_for_my_turn(sweep: Storage, mine: Driver) -> None:
    """Raises InputError if another driver that started at the same moment goes first."""
    while True:
        others = [other for other in _claims(sweep) if other.owner != mine.owner]
        rivals = [other for other in others if other.number >= mine.number and other.alive]
        for other in rivals:
            if other.state == "driving" or other.number > mine.number or other.place < mine.place:
                raise _refusal(other)
        if not rivals:
            return
        time.sleep(LOOK_S)  # until it steps back or drives


def _replaced(sweep: Storage, mine: Driver) -> bool:
    """Whether a newer claim drives. One that is only asking may still step back."""
    return current_driver(sweep) != mine.owner


def _refusal(other: Driver) -> InputError:
    return InputError(
        f"the sweep is being run by process {other.pid} on {other.host}; "
        "follow it with `widthlab status`, or end it with `widthlab stop`"
    )


def _put(sweep: Storage, driver: Driver) -> None:
    now = time.time_ns() // 1_000_000
    sweep.put(driver.key, encode_json(asdict(replace(driver, heartbeat_ms=now))))


def _claims(sweep: Storage) -> list[Driver]:
    """All readable claims in order. A broken one is logged and ignored."""
    found = (_read(sweep, key) for key in sweep.list(DRIVERS))
    return sorted((driver for driver in found if driver), key=lambda driver: driver.place)


def _read(sweep: Storage, key: str) -> Driver | None:
    match = re.fullmatch(rf"{DRIVERS}/(\d{{6,9}})-([0-9a-f]{{32}})\.json", key)
    if match is None:
        return None
    try:
        content = get_json(sweep, key, needs=NEEDS)
    except BrokenRecordError as error:
        logger.warning("%s; the claim is ignored", error)
        return None
    if content is None:
        return None
    about = {name: content[name] for name in NEEDS}
    if TEXT.holds(content.get("processes")):
        about["processes"] = content["processes"]
    return Driver(number=int(match[1]), owner=match[2], **about)
