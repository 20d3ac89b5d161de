"""What a sweep comes to before it runs: cost per trial and in all, and what it cannot answer."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from analysis.wording import plural
from orchestrator.grid.branches import Branch, branches
from orchestrator.grid.expand import Dropped, Grid, Merged, PlannedTrial
from orchestrator.grid.muon_notes import muon_notes
from orchestrator.grid.plan_cost import DEFAULT_RATES, START_SECONDS, measuring_flops
from orchestrator.grid.plan_warnings import warnings
from orchestrator.grid.supply import passes, supply_notes, supply_warnings
from orchestrator.sweep import strict_yaml
from orchestrator.sweep.cell import matching
from orchestrator.sweep.config import SweepConfig
from orchestrator.sweep.load import RESOLVED
from trainers.accounting import (
    Parameters,
    parameters,
    training_flops_per_token,
    training_memory_bytes,
)
from trainers.data.contents import Contents
from trainers.data.sources import DataSpec
from trainers.spec import SEMANTICS_VERSION


@dataclass(frozen=True)
class PlanRow:
    """One trial and its cost. `memory_bytes` is of one worker, `seconds` an estimate.

    `tokens` are all that its weights have seen at the end; what a `branch` takes over from its
    trunk costs it neither FLOPs nor seconds.
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
        """Training FLOPs of its own updates."""
        training = self.trial.spec.training
        own = training.steps - (self.branch.step if self.branch else 0)
        return self.flops_per_token * own * training.batch_tokens


@dataclass(frozen=True)
class Adjusted:
    """A key of some trials that is not what the file says: `after` is None where it means
    nothing in them."""

    key: str
    before: Any
    after: Any
    why: str
    trials: int


@dataclass(frozen=True)
class OverrideUse:
    """An override of the file, and how many trials it is for."""

    when: dict[str, tuple[Any, ...]]
    set: dict[str, Any]
    trials: int


@dataclass(frozen=True)
class Totals:
    """Sums over the trials; energy and cost are None where the file gives no rate for them."""

    trials: int
    flops: int
    device_hours: float
    energy_kwh: float | None
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """A sweep before it runs. `rate` is FLOP/s of one worker, measured or a default.

    `axes` are those of the grid with the values that the file gives, `holds` its halves. Where
    `ids_known` is false, ids tell the trials of this plan apart and are not those of a run.
    """

    sweep: str
    axes: dict[str, tuple[Any, ...]]
    holds: tuple[str, ...]
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
    """Cost of every trial. `rate` is the FLOP/s that one worker was measured to reach, if any;
    `ids_known` is false where the grid was made before its corpus could be looked at; `contents`
    is what the corpus holds, where that is known."""
    layout = grid.trials[0].spec.layout
    cores = layout.cpus_per_worker if layout.device == "cpu" else 1
    per_worker = rate or DEFAULT_RATES[layout.device] * cores
    shared = branches(trial.spec for trial in grid.trials)
    rows = [_row(trial, per_worker, shared.get(trial.id)) for trial in grid.trials]
    return Plan(
        sweep=config.name,
        axes=config.grid,
        holds=config.hold,
        rows=rows,
        dropped=grid.dropped,
        merged=grid.merged,
        adjusted=_adjusted(grid.trials),
        overrides=_overrides(config, grid.trials),
        notes=[*_notes(rows, ids_known), *_of_supply(supply_notes, contents, grid)],
        warnings=[
            *_of_supply(supply_warnings, contents, grid),
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
    """What there is to say of the corpus's tokens, where they are known."""
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


def _adjusted(trials: Sequence[PlannedTrial]) -> list[Adjusted]:
    """What trials have that is not as the file says, alike changes together."""
    first = {repr(change): change for trial in trials for change in trial.changes}
    counts = Counter(repr(change) for trial in trials for change in trial.changes)
    return [
        Adjusted(change.key, change.before, change.after, change.why, counts[key])
        for key, change in first.items()
    ]


def _overrides(config: SweepConfig, trials: Sequence[PlannedTrial]) -> list[OverrideUse]:
    counts = Counter(number for trial in trials for number in matching(config, trial.cell.typed))
    return [
        OverrideUse(override.when, override.set, counts[number])
        for number, override in enumerate(config.overrides)
    ]


def _notes(rows: Sequence[PlanRow], ids_known: bool) -> Iterator[str]:
    if not ids_known:
        yield "ids are known once the corpus has been fetched: widthlab run does it"
    branched = [row for row in rows if row.branch]
    if branched:
        steps = sum(row.branch.step for row in branched if row.branch)
        yield (
            f"{plural(len(branched), 'trial')} with fewer steps branch off from longer ones at the "
            f"end of the stable phase: {steps:,} updates are trained once and counted once"
        )
    yield from muon_notes(row.trial.spec for row in rows)


# --- outputs -------------------------------------------------------------------------------


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as `widthlab plan --json` prints it."""
    return {
        "sweep": plan.sweep,
        "trials": [
            {
                "id": row.trial.id if plan.ids_known else None,
                "holds": list(row.trial.holds),
                "axes": row.trial.axes,
                "parameters": asdict(row.parameters),
                "flops_per_token": row.flops_per_token,
                "tokens": row.tokens,
                "passes": None
                if plan.contents is None
                else _finite(passes(row.trial.spec, plan.contents)),
                "memory_bytes": row.memory_bytes,
                "workers": row.workers,
                "seconds": row.seconds,
                "branch": _branch_json(row.branch, plan.ids_known),
            }
            for row in plan.rows
        ],
        "dropped": [asdict(cell) for cell in plan.dropped],
        "merged": [
            asdict(cell) | ({} if plan.ids_known else {"into": None}) for cell in plan.merged
        ],
        "adjusted": [_adjusted_json(change) for change in plan.adjusted],
        "overrides": [asdict(override) for override in plan.overrides],
        "notes": plan.notes,
        "warnings": plan.warnings,
        "rate": {"flops_per_s": plan.rate, "measured": plan.rate_measured},
        "totals": asdict(plan.totals),
        "corpus": None if plan.contents is None else plan.contents.to_dict(),
    }


def _finite(number: float) -> float | None:
    return number if number < float("inf") else None


def _branch_json(branch: Branch | None, ids_known: bool) -> dict[str, Any] | None:
    if branch is None:
        return None
    return {"trunk": branch.trunk if ids_known else None, "step": branch.step}


def _adjusted_json(change: Adjusted) -> dict[str, Any]:
    return {
        "key": change.key,
        "from": change.before,
        "to": change.after,
        "why": change.why,
        "trials": change.trials,
    }


def resolved_yaml(
    config: SweepConfig,
    grid: Grid,
    data: DataSpec,
    vocab_size: int,
    git: Mapping[str, Any] | None = None,
    contents: Contents | None = None,
) -> str:
    """sweep.yaml as run: every default written out, and what the grid came to.

    `git` is the commit and dirty flag of the checkout that the sweep was started in, if any;
    `contents` is what the corpus holds.

    Reading it gives an equal config: the section `resolved` is for the analysis and is not read
    back, since the trials follow from the rest.
    """
    resolved = {
        "semantics_version": SEMANTICS_VERSION,
        "corpus_fingerprint": data.corpus_fingerprint,
        "tokenizer_hash": data.tokenizer_hash,
        "vocab_size": vocab_size,
        "git": dict(git or {}),
        "corpus": None if contents is None else _contents_yaml(contents),
        "trials": [
            {
                "id": trial.id,
                "holds": list(trial.holds),
                "axes": strict_yaml.Inline(trial.axes),
                "parameters": strict_yaml.Inline(asdict(parameters(trial.spec.model))),
                "steps": trial.spec.training.steps,
                "flops": trial.flops,
            }
            for trial in grid.trials
        ],
        "dropped": [strict_yaml.Inline(asdict(cell)) for cell in grid.dropped],
        "merged": [strict_yaml.Inline(asdict(cell)) for cell in grid.merged],
        "adjusted": [
            strict_yaml.Inline(_adjusted_json(change)) for change in _adjusted(grid.trials)
        ],
    }
    return strict_yaml.dump({**config.to_dict(), RESOLVED: resolved})


def _contents_yaml(contents: Contents) -> dict[str, Any]:
    """A line for each source and each kind of what was left out."""
    found = contents.to_dict()
    for key in ("sources", "left_out"):
        found[key] = [strict_yaml.Inline(entry) for entry in found[key]]
    return found
