"""Who may write a trial: every attempt writes a claim of its own, and the newest claim holds.

The rule needs a list that shows every finished put. S3, Google Cloud Storage, Azure, HDFS and local
file systems have that. The rule needs no conditional put (put if absent): S3, Google Cloud Storage
and Azure offer one today, but HDFS and some S3-compatible servers do not, and neither does
pyarrow.fs.

The key of a claim holds its attempt and its owner. A claim is written once and never changed. A
process that was suspended for hours in the middle of a write can bring back an old heartbeat or an
old part, but it cannot make an old claim the newest.
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
    """A newer attempt writes this trial now. The holder of the old claim must stop writing."""


@dataclass(frozen=True, order=True)
class Claim:
    """One attempt at a trial. Of two claims with equal `attempt` the larger `owner` is newer.

    Attributes:
        attempt: Counts from 1.
        owner: 32 random hexadecimal digits.
    """

    attempt: int
    owner: str

    @property
    def key(self) -> str:
        return f"{CLAIMS}/{self.attempt:06d}-{self.owner}.json"

    @classmethod
    def parse(cls, key: str) -> "Claim | None":
        """Return the claim that a key names; None for the key of any other object."""
        match = re.fullmatch(rf"{CLAIMS}/(\d{{6,9}})-([0-9a-f]{{32}})\.json", key)
        return None if match is None else cls(int(match[1]), match[2])


def claims(trial: Storage) -> list[Claim]:
    """Return all claims on a trial, oldest first. Raises OSError if the storage cannot answer."""
    return sorted(claim for claim in map(Claim.parse, trial.list(CLAIMS)) if claim)


def newest_attempt(trial: Storage) -> int:
    """Return the number of the last attempt at a trial; 0 if there was none."""
    claimed = claims(trial)
    if claimed:
        return claimed[-1].attempt
    try:  # trials of earlier versions have only a lease
        attempt = (get_json(trial, LEASE) or {}).get("attempt")
    except BrokenRecordError:
        return 0
    return attempt if type(attempt) is int and attempt > 0 else 0


def take(trial: Storage) -> Claim:
    """Write a claim for the next attempt at a trial.

    Two takers at the same moment both write, then list: at least one of them sees the other. The
    newer claim wins, under a number that no other claim has.

    Returns:
        The claim, which is the newest one on the trial.

    Raises:
        LeaseLostError: Another process claimed a newer attempt at the same moment.
        OSError: The storage does not answer or has no room.
    """
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
                f"{trial.url}: another process began attempt {newest.attempt} at the same moment"
            )
        # The other taker may not have seen this claim yet and may write under the same number.
        attempt += 1


@dataclass(frozen=True)
class Fence:
    """A trial and a claim on it. The holder asks it before each write."""

    trial: Storage
    claim: Claim

    def holds(self) -> bool:
        """Return whether this claim is the newest. False if the trial was discarded."""
        made = claims(self.trial)
        return bool(made) and made[-1] == self.claim

    def check(self) -> None:
        """Raise LeaseLostError if a newer attempt has taken over or the trial was discarded."""
        if not self.holds():
            raise LeaseLostError(
                f"{self.trial.url}: attempt {self.claim.attempt} was replaced by a newer one"
            )
