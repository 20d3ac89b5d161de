"""One driver's run of a sweep: the state that the functions of a run share."""

from dataclasses import dataclass
from functools import cached_property

from orchestrator.grid.branches import Branch, branches
from orchestrator.grid.expand import Grid, PlannedTrial
from orchestrator.sweep.config import SweepConfig
from trainers.spec import TrialSpec
from trialstore.driver_lease import Driving
from trialstore.retries import Budget
from trialstore.storage import Storage


@dataclass(frozen=True)
class SweepRun:
    """What a driver trains, where, and under which lease.

    Attributes:
        config: The sweep file, with hub revisions resolved.
        sweep: The sweep's directory.
        grid: Every trial of the sweep.
        todo: The trials of the grid to train, in the layouts that they run in.
        at_once: How many of them the nodes have room for side by side.
        held: The driver's lease on the sweep.
        retry_failed: Whether trials that were given up are tried again.
    """

    config: SweepConfig
    sweep: Storage
    grid: Grid
    todo: list[PlannedTrial]
    at_once: int
    held: Driving
    retry_failed: bool = False

    @property
    def specs(self) -> list[TrialSpec]:
        """The trials to train."""
        return [trial.spec for trial in self.todo]

    @property
    def budget(self) -> Budget:
        """How often a trial may fail and be preempted."""
        return Budget(self.config.resources.retries, self.config.resources.preemptions)

    @cached_property
    def branches(self) -> dict[str, Branch]:
        """Where trials branch off others, by the branch's id."""
        return branches(trial.spec for trial in self.grid.trials)
