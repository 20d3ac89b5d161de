"""The ledger of a sweep: the state of each planned trial, read from the trial directories."""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from analysis.wording import plural
from trialstore.errors import InputError
from trialstore.json_objects import BrokenRecordError
from trialstore.storage import Storage
from trialstore.sweep_file import read_sweep_file, trial_storage
from trialstore.trial_state import READERS, STATES, TrialState, read_state


@dataclass(frozen=True, kw_only=True)
class TrialStatus(TrialState):
    """One line of `widthlab status`: a planned trial and its state."""

    id: str
    axes: Mapping[str, Any]  # axis -> value

    @property
    def state_text(self) -> str:
        """The state; of a trial that is not over also its collapse; and the spikes of its loss."""
        collapsed = "" if self.over else self.collapse_text
        return ", ".join(text for text in (self.state, collapsed, self.spike_text) if text)

    @property
    def collapse_text(self) -> str:
        """`collapsed since 40`; empty for a trial that has not collapsed."""
        return "" if self.collapsed_since is None else f"collapsed since {self.collapsed_since}"

    @property
    def spike_text(self) -> str:
        """`2 loss spikes`; with what lasts: `loss spiking since 310 (2 spikes)`; else empty."""
        if not self.spikes:
            return ""
        counted = plural(self.spikes, "loss spike")
        if self.spiking_since is None:
            return counted
        if self.over:
            return f"{counted}, not recovered"
        return f"loss spiking since {self.spiking_since} ({plural(self.spikes, 'spike')})"


@dataclass(frozen=True)
class Ledger:
    """The status of every trial of a sweep, in the order of the plan."""

    sweep: str  # its name
    trials: tuple[TrialStatus, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of trials in each state, with every state as a key."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in STATES}

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as `widthlab status --json` prints it."""
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
                    "spikes": trial.spikes,
                    "spiking_since": trial.spiking_since,
                }
                for trial in self.trials
            ],
        }


def read_ledger(sweep: Storage) -> Ledger:
    """Read the ledger of a sweep's directory. Raises InputError if it is not one."""
    resolved = read_sweep_file(sweep)
    cells = [(cell.id, cell.axes, cell.steps) for cell in resolved.cells]
    return Ledger(resolved.name, tuple(trial_statuses(sweep, cells)))


def trial_statuses(
    sweep: Storage, cells: Iterable[tuple[str, Mapping[str, Any], int]]
) -> list[TrialStatus]:
    """Read the status of many trials at the same time, each as `trial_status` does.

    Args:
        sweep: The sweep's directory.
        cells: The id, axes and planned updates of each trial.

    Returns:
        The statuses in the order of `cells`.
    """

    def status(cell: tuple[str, Mapping[str, Any], int]) -> TrialStatus:
        return trial_status(trial_storage(sweep, cell[0]), *cell)

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(status, cells))


def trial_status(trial: Storage, trial_id: str, axes: Mapping[str, Any], steps: int) -> TrialStatus:
    """Read the status of one trial; one with a broken record is "failed" and names the record.

    Args:
        trial: The trial's directory, which need not exist.
        trial_id: Its id.
        axes: Its axes, which the status carries along.
        steps: Updates planned, for a trial that has not begun.
    """
    try:
        state = read_state(trial, trial_id, steps)
    except BrokenRecordError as error:
        message = f"{error}; `widthlab rerun` discards the trial"
        state = TrialState(state="failed", steps=steps, message=message)
    return TrialStatus(**vars(state), id=trial_id, axes=axes)


def find_trial(sweep: Storage, prefix: str) -> str:
    """Return the id of the one planned trial that starts with `prefix`.

    Raises:
        InputError: No id or several ids start with it, or `sweep` is not a sweep's directory.
    """
    ids = read_sweep_file(sweep).ids
    found = [trial_id for trial_id in ids if prefix and trial_id.startswith(prefix)]
    if len(found) != 1:
        raise InputError(
            f"{len(found) or 'no'} trial ids start with {prefix!r}; `widthlab status` lists the ids"
        )
    return found[0]
