"""What has become of every trial of a sweep, read from the trial directories and nothing else."""

import contextlib
import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from trialstore import records
from trialstore.claims import newest_attempt
from trialstore.errors import InputError
from trialstore.json_objects import COUNT, NUMBER
from trialstore.lease import is_fresh
from trialstore.plain_yaml import load_plain_yaml
from trialstore.records import BrokenRecordError
from trialstore.storage import Storage

SWEEP_FILE = "sweep.yaml"

logger = logging.getLogger(__name__)

#: What an id is made of: anything else would lead out of the folder of trials.
TRIAL_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
#: What a lease must say for a trial to be shown.
LEASE_NEEDS = {"attempt": COUNT, "step": COUNT, "steps": COUNT, "loss": NUMBER}

#: Trials that are read side by side: an object store takes its time to answer, a few times for
#: each, and a sweep may have thousands.
READERS = 16

STATES = (
    "waiting",
    "running",
    "stale",
    "completed",
    "collapsed",
    "diverged",
    "stopped",
    "failed",
)


@dataclass(frozen=True)
class TrialStatus:
    """One line of `widthlab status`."""

    id: str
    axes: dict[str, Any]
    state: str
    step: int
    steps: int
    loss: float | None  # nats per token: the final held-out loss, or the last training loss
    tokens_per_s: float | None = None
    message: str | None = None  # why it failed or diverged, or what the last attempt died of
    collapsed_since: int | None = None  # the step from which its layers are marked as collapsed

    @property
    def over(self) -> bool:
        """Whether a run has nothing left to do for it."""
        return self.state in records.OUTCOMES or self.state == "failed"

    @property
    def state_text(self) -> str:
        """The state, and of a trial that is not over whether its layers have collapsed."""
        if self.over or self.collapsed_since is None:
            return self.state
        return f"{self.state}, collapsed since {self.collapsed_since}"


@dataclass(frozen=True)
class Ledger:
    """The status of every trial of a sweep, in the order in which they are run."""

    sweep: str
    trials: tuple[TrialStatus, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state, every state named."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in STATES}

    def to_json(self) -> dict[str, Any]:
        """What `widthlab status --json` prints."""
        return {
            "sweep": self.sweep,
            "counts": self.counts,
            "trials": [
                {
                    "id": trial.id,
                    "axes": trial.axes,
                    "state": trial.state,
                    "step": trial.step,
                    "steps": trial.steps,
                    "loss": trial.loss,
                    "message": trial.message,
                    "collapsed_since": trial.collapsed_since,
                }
                for trial in self.trials
            ],
        }


def resolved_sweep(sweep: Storage) -> dict[str, Any]:
    """The content of a sweep directory's sweep.yaml. Raises InputError if it is none."""
    place = sweep.url_of(SWEEP_FILE)
    try:
        data = sweep.get(SWEEP_FILE)
    except FileNotFoundError as error:
        raise InputError(
            f"{sweep.url} is no sweep's directory: it has no {SWEEP_FILE}; "
            "`widthlab run` makes one below the storage"
        ) from error
    content = load_plain_yaml(data, place)
    if not _is_resolved(content):
        raise InputError(
            f"{place} is not what `widthlab run` writes; running the sweep's file again writes it "
            "anew"
        )
    resolved: dict[str, Any] = content
    return resolved


def _is_resolved(content: Any) -> bool:
    """Whether it has all that commands read of it: a sweep directory may be anybody's."""
    try:
        cells = content["resolved"]["trials"]
        named = all(
            isinstance(cell["id"], str)
            and TRIAL_ID.fullmatch(cell["id"]) is not None
            and isinstance(cell["axes"], dict)
            and COUNT.holds(cell.get("steps", 0))
            for cell in cells
        )
        return named and isinstance(content["name"], str) and isinstance(content["training"], dict)
    except (KeyError, TypeError):
        return False


def read_ledger(sweep: Storage) -> Ledger:
    """The ledger of a sweep's directory. Raises InputError if it is none."""
    content = resolved_sweep(sweep)
    steps = content["training"].get("steps", 0)
    # Sweeps of earlier versions do not say the steps of each cell.
    cells = [
        (cell["id"], cell["axes"], cell.get("steps", cell["axes"].get("steps", steps)))
        for cell in content["resolved"]["trials"]
    ]
    return Ledger(content["name"], tuple(trial_statuses(sweep, cells)))


def trial_storage(sweep: Storage, trial_id: str) -> Storage:
    """A trial's directory. Raises InputError for what is no id."""
    if TRIAL_ID.fullmatch(trial_id) is None:
        raise InputError(f"{trial_id!r} is no trial's id: it has letters, digits, - and _ only")
    return sweep.child(f"trials/{trial_id}")


def trial_statuses(
    sweep: Storage, cells: Iterable[tuple[str, dict[str, Any], int]]
) -> list[TrialStatus]:
    """`trial_status` of many trials: of each its id, axes and steps."""

    def status(cell: tuple[str, dict[str, Any], int]) -> TrialStatus:
        return trial_status(trial_storage(sweep, cell[0]), *cell)

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(status, cells))


def trial_status(trial: Storage, trial_id: str, axes: dict[str, Any], steps: int) -> TrialStatus:
    """What a trial's directory says of it. A directory that is not there is a waiting trial;
    one whose records cannot be read has failed, and says which."""
    try:
        return _status(trial, trial_id, axes, steps)
    except BrokenRecordError as error:
        message = f"{error}; `widthlab rerun` discards the trial"
        return TrialStatus(trial_id, axes, "failed", 0, steps, None, message=message)


def _status(trial: Storage, trial_id: str, axes: dict[str, Any], steps: int) -> TrialStatus:
    result = records.get_result(trial, trial_id)
    if result is not None:
        return TrialStatus(
            trial_id,
            axes,
            result["outcome"],
            result["step"],
            result["steps"],
            result["final"].get("val_loss"),
            message=result.get("reason"),
            collapsed_since=collapsed_since(trial) if result["outcome"] == "collapsed" else None,
        )
    since = collapsed_since(trial)
    lease = _lease(trial)
    failure = records.get_json(trial, records.FAILURE)
    step, loss, rate = 0, None, None
    if lease is not None:
        step, loss = lease["step"], lease["loss"]
        rate = lease.get("tokens_per_s") if NUMBER.holds(lease.get("tokens_per_s")) else None
        steps = lease["steps"]
    if is_fresh(lease, time.time() * 1000):
        return TrialStatus(trial_id, axes, "running", step, steps, loss, rate, None, since)
    message = None if failure is None else str(failure.get("message"))
    if failure is not None and failure.get("gave_up"):
        return TrialStatus(trial_id, axes, "failed", step, steps, loss, None, message, since)
    state = "waiting" if lease is None or lease.get("released") or failure else "stale"
    return TrialStatus(trial_id, axes, state, step, steps, loss, None, message, since)


def _lease(trial: Storage) -> dict[str, Any] | None:
    """What a trial's lease says; nothing rests on one that cannot be read."""
    try:
        return records.get_json(trial, records.LEASE, needs=LEASE_NEEDS)
    except BrokenRecordError as error:
        logger.warning("%s; taken for none", error)
        return None


def collapsed_since(trial: Storage) -> int | None:
    """The step since which a trial's layers are marked as collapsed, None where there is no mark.

    Raises BrokenRecordError for a mark without a step.
    """
    mark = records.get_json(trial, records.COLLAPSE, needs={"step": COUNT})
    return None if mark is None else int(mark["step"])


def give_up(trial: Storage, message: str) -> None:
    """Record that there is no other attempt at a trial. Keeps what the last one said itself."""
    attempt, failure = newest_attempt(trial), None
    # What cannot be read cannot be kept either.
    with contextlib.suppress(BrokenRecordError):
        failure = records.get_json(trial, records.FAILURE, needs={"attempt": COUNT})
    if failure is None or failure["attempt"] < attempt:
        failure = {
            "stage": "process",
            "kind": "error",
            "message": message,
            "traceback": None,
            "attempt": attempt,
            "time_ms": time.time_ns() // 1_000_000,
        }
    trial.put(records.FAILURE, records.encode_json({**failure, "gave_up": True}))


def discard(trial: Storage) -> int:
    """Remove everything of a trial and return how many objects that were.

    Whoever is killed in the middle leaves a trial that begins anew: no result that others take
    for a finished trial, no checkpoint to go on from, and the number of the last attempt until
    its rows have gone, for a smaller one would hide the new rows behind the old.
    """
    keys = trial.list()
    manifests = {records.manifest_key(step) for step in records.committed_steps(keys)}
    first = {records.RESULT: 0, **dict.fromkeys(manifests, 1), records.LEASE: 3}
    for key in sorted(keys, key=lambda key: first.get(key, 2)):
        trial.delete(key)
    for key in trial.unfinished():
        trial.delete(key)
    return len(keys)


def with_results(sweep: Storage) -> set[str]:
    """Ids of the trials in a sweep's directory that are over, whichever version of its file named
    them."""
    return {key.split("/")[1] for key in sweep.list("trials") if key.endswith(f"/{records.RESULT}")}


def measured_rate(sweep: Storage) -> float | None:
    """FLOP/s that one worker has reached in the finished trials of a sweep; None where no result
    tells."""
    flops = seconds = 0.0
    for key in sweep.list("trials"):
        if key.endswith(f"/{records.RESULT}"):
            with contextlib.suppress(BrokenRecordError):
                done, took = _work_of_one_worker(records.get_json(sweep, key) or {})
                flops, seconds = flops + done, seconds + took
    rate = flops / seconds if seconds else 0.0
    return rate if 0 < rate < math.inf else None


def _work_of_one_worker(result: dict[str, Any]) -> tuple[float, float]:
    """FLOPs and seconds of training; none where a result does not tell both."""
    try:
        flops, seconds = result["flops"], result["seconds"]["training"]
        workers = result["layout"]["workers"]
    except (KeyError, TypeError):
        return 0.0, 0.0
    if not (NUMBER.holds(flops) and NUMBER.holds(seconds) and COUNT.holds(workers)):
        return 0.0, 0.0
    return (flops / workers, seconds) if flops and seconds and workers else (0.0, 0.0)


def find_trial(sweep: Storage, prefix: str) -> str:
    """The id of the one trial that starts with `prefix`. Raises InputError for none or several."""
    ids: list[str] = [cell["id"] for cell in resolved_sweep(sweep)["resolved"]["trials"]]
    found = [trial_id for trial_id in ids if prefix and trial_id.startswith(prefix)]
    if len(found) != 1:
        what = f"{len(found)} ids of trials start" if found else "no id of a trial starts"
        raise InputError(f"{what} with {prefix!r}; `widthlab status` lists them")
    return found[0]


def dumps(content: dict[str, Any]) -> str:
    """One JSON object for stdout; what is not finite becomes null."""
    return json.dumps(json.loads(records.encode_json(content)))
