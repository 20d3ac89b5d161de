"""Who may write a trial: attempts are claimed under names of their own, and the newest holds.

Object stores have no compare-and-swap, so nothing here rests on one object that two could both
overwrite. A claim is an object whose name carries its attempt and its owner; it is written once
and never again, so that whoever lists the claims sees every one that was ever made. A process
that was halted for hours, and goes on in the middle of a write, can bring back an old heartbeat
or an old part, but never an old claim to be the newest.
"""

import os
import re
import socket
import time
import uuid
from dataclasses import dataclass

from trialstore.errors import FinalError
from trialstore.records import LEASE, BrokenRecordError, encode_json, get_json
from trialstore.storage import Storage

CLAIMS = "attempts"


class LeaseLostError(FinalError, RuntimeError):
    """A newer attempt writes this trial now; the holder must stop without writing."""


@dataclass(frozen=True, order=True)
class Claim:
    """Of two with the same attempt the larger owner is the newer."""

    attempt: int
    owner: str

    @property
    def key(self) -> str:
        return f"{CLAIMS}/{self.attempt:06d}-{self.owner}.json"

    @classmethod
    def parse(cls, key: str) -> "Claim | None":
        """The claim that a key names, or None for any other object."""
        match = re.fullmatch(rf"{CLAIMS}/(\d{{6,9}})-([0-9a-f]{{32}})\.json", key)
        return None if match is None else cls(int(match[1]), match[2])


def claims(trial: Storage) -> list[Claim]:
    """Every attempt at a trial so far, oldest first."""
    return sorted(claim for claim in map(Claim.parse, trial.list(CLAIMS)) if claim)


def newest_attempt(trial: Storage) -> int:
    """The number of the last attempt at a trial; 0 if there was none."""
    claimed = claims(trial)
    if claimed:
        return claimed[-1].attempt
    try:  # trials of earlier versions have a lease only
        attempt = (get_json(trial, LEASE) or {}).get("attempt")
    except BrokenRecordError:
        return 0
    return attempt if type(attempt) is int and attempt > 0 else 0


def take(trial: Storage) -> Claim:
    """Claim the next attempt. Raises LeaseLostError where another has at the same moment."""
    owner = uuid.uuid4().hex
    attempt = newest_attempt(trial) + 1
    while True:
        mine = Claim(attempt, owner)
        about = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time_ms": time.time_ns() // 1_000_000,
        }
        trial.put(mine.key, encode_json(about))
        others = [claim for claim in claims(trial) if claim.owner != owner]
        newest = max(others, default=None)
        if newest is None or newest.attempt < attempt:
            return mine
        if newest > mine:
            raise LeaseLostError(
                f"{trial.url}: attempt {newest.attempt} was begun elsewhere at the same moment"
            )
        # Before it saw this claim, the other may have begun to write under the same number.
        attempt += 1


@dataclass(frozen=True)
class Fence:
    """What a process asks before each of its writes."""

    trial: Storage
    claim: Claim

    def holds(self) -> bool:
        """Whether this attempt is the newest. One whose claim was discarded is none."""
        made = claims(self.trial)
        return bool(made) and made[-1] == self.claim

    def check(self) -> None:
        """Raises LeaseLostError if a newer attempt has taken over, or the trial was discarded."""
        if not self.holds():
            raise LeaseLostError(
                f"{self.trial.url}: attempt {self.claim.attempt} was replaced by a newer one"
            )
