"""Plan a sweep before it runs: the cost of each trial and in total, notes and warnings."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.wording import plural
from orchestrator.grid.branches import Branch, branches
from orchestrator.grid.expand import Dropped, Grid, Merged, PlannedTrial
from orchestrator.grid.muon_notes import muon_notes
from orchestrator.grid.plan_comparable import refused_verdicts
from orchestrator.grid.plan_cost import DEFAULT_RATES, START_SECONDS, measuring_flops
from orchestrator.grid.plan_warnings import warnings
from orchestrator.grid.supply import supply_notes, supply_warnings
from orchestrator.sweep.cell import overrides_for
from orchestrator.sweep.config import SweepConfig
from trainers.accounting import (
    Parameters,
    parameters,
    training_flops_per_token,
    training_memory_bytes,
)
from trainers.data.contents import Contents


@dataclass(frozen=True)
class PlanRow:
    """One trial and its cost.

    Attributes:
        tokens: Tokens that its weights have seen at the end, those of the trunk included.
        memory_bytes: Estimated memory of one worker.
        seconds: Estimated wall-clock time. The updates that a branch shares with its trunk count
            for the trunk.
        branch: Where the trial branches off, if it does.
    """

    trial: PlannedTrial
    parameters: Parameters
    flops_per_token: int
    tokens: int
    memory_bytes: int
    workers: int
    seconds: float
    branch: Branch | None = None

    @property
    def flops(self) -> int:
        """Training FLOPs of the updates that are not shared with a trunk."""
        training = self.trial.spec.training
        own = training.steps - (self.branch.step if self.branch else 0)
        return self.flops_per_token * own * training.batch_tokens


@dataclass(frozen=True)
class Adjusted:
    """A value that normalising changed in `trials` trials.

    `after` is None if the key has no meaning in them.
    """

    key: str
    before: Any
    after: Any
    why: str
    trials: int


@dataclass(frozen=True)
class OverrideUse:
    """An override of the file, and the number of trials that it matches."""

    when: dict[str, tuple[Any, ...]]
    set: dict[str, Any]
    trials: int


@dataclass(frozen=True)
class Totals:
    """Sums over the trials. Energy and cost are None if the file gives no watts or no price."""

    trials: int
    flops: int
    device_hours: float
    energy_kwh: float | None
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """A sweep before it runs.

    Attributes:
        axes: Axis of the grid -> the values of the file.
        matchings: The matchings of the sweep, in the order of the file.
        rate: FLOP/s of one worker, measured if `rate_measured`, otherwise a default.
        ids_known: Whether a run would use these ids. If not, they only tell the trials apart.
        contents: Documents, bytes and tokens of the corpus; None if unknown.
    """

    sweep: str
    axes: dict[str, tuple[Any, ...]]
    matchings: tuple[str, ...]
    rows: list[PlanRow]
    dropped: list[Dropped]
    merged: list[Merged]
    adjusted: list[Adjusted]
    overrides: list[OverrideUse]
    notes: list[str]
    warnings: list[str]
    totals: Totals
    rate: float
    rate_measured: bool
    ids_known: bool = True
    contents: Contents | None = None


def make_plan(
    config: SweepConfig,
    grid: Grid,
    rate: float | None = None,
    *,
    ids_known: bool = True,
    contents: Contents | None = None,
) -> Plan:
    """Make the plan of an expanded sweep.

    Args:
        config: The sweep.
        grid: Its trials.
        rate: Measured FLOP/s of one worker; None takes a default for the device.
        ids_known: Whether the grid was expanded with the tokens of a run.
        contents: Documents, bytes and tokens of the corpus, if known.
    """
    layout = grid.trials[0].spec.layout
    cores = layout.cpus_per_worker if layout.device == "cpu" else 1
    per_worker = rate or DEFAULT_RATES[layout.device] * cores
    shared = branches(trial.spec for trial in grid.trials)
    rows = [_row(trial, per_worker, shared.get(trial.id)) for trial in grid.trials]
    return Plan(
        sweep=config.name,
        axes=config.grid,
        matchings=config.match,
        rows=rows,
        dropped=grid.dropped,
        merged=grid.merged,
        adjusted=adjusted(grid.trials),
        overrides=_overrides(config, grid.trials),
        notes=[*_notes(rows, ids_known), *_of_supply(supply_notes, contents, grid)],
        warnings=[
            *_of_supply(supply_warnings, contents, grid),
            *refused_verdicts(grid.trials),
            *warnings(config, grid.trials),
        ],
        totals=_totals(config, rows),
        rate=per_worker,
        rate_measured=rate is not None,
        ids_known=ids_known,
        contents=contents,
    )


def _of_supply(
    say: Callable[[Contents, Sequence[PlannedTrial]], Iterator[str]],
    contents: Contents | None,
    grid: Grid,
) -> Iterator[str]:
    """Notes or warnings about the supply of tokens; none if the corpus is unknown."""
    if contents is None:
        yield from ()
    else:
        yield from say(contents, grid.trials)


def _row(trial: PlannedTrial, rate: float, branch: Branch | None) -> PlanRow:
    spec = trial.spec
    workers = spec.layout.workers
    begin = branch.step if branch else 0
    work = trial.flops * (spec.training.steps - begin) / spec.training.steps
    return PlanRow(
        trial=trial,
        parameters=parameters(spec.model),
        flops_per_token=training_flops_per_token(spec.model),
        tokens=spec.training.steps * spec.training.batch_tokens,
        memory_bytes=training_memory_bytes(spec),
        workers=workers,
        seconds=START_SECONDS + (work + measuring_flops(spec, begin)) / (rate * workers),
        branch=branch,
    )


def _totals(config: SweepConfig, rows: list[PlanRow]) -> Totals:
    hours = sum(row.seconds * row.workers for row in rows) / 3600
    watts = config.resources.watts_per_worker
    price = config.resources.price_per_device_hour
    return Totals(
        trials=len(rows),
        flops=sum(row.flops for row in rows),
        device_hours=hours,
        energy_kwh=None if watts is None else hours * watts / 1000,
        cost=None if price is None else hours * price,
    )


def adjusted(trials: Sequence[PlannedTrial]) -> list[Adjusted]:
    """Return the changes of normalising; equal changes of several trials are one entry."""
    first = {repr(change): change for trial in trials for change in trial.changes}
    counts = Counter(repr(change) for trial in trials for change in trial.changes)
    return [
        Adjusted(change.key, change.before, change.after, change.why, counts[key])
        for key, change in first.items()
    ]


def _overrides(config: SweepConfig, trials: Sequence[PlannedTrial]) -> list[OverrideUse]:
    counts = Counter(
        number for trial in trials for number in overrides_for(config, trial.cell.typed)
    )
    return [
        OverrideUse(override.when, override.set, counts[number])
        for number, override in enumerate(config.overrides)
    ]


def _notes(rows: Sequence[PlanRow], ids_known: bool) -> Iterator[str]:
    if not ids_known:
        yield "ids are unknown until widthlab run has fetched the corpus"
    branched = [row for row in rows if row.branch]
    if branched:
        steps = sum(row.branch.step for row in branched if row.branch)
        yield (
            f"{plural(len(branched), 'trial')} with fewer steps branch off from longer ones at the "
            f"end of the stable phase: {steps:,} updates are trained once and counted once"
        )
    yield from muon_notes(row.trial.spec for row in rows)
