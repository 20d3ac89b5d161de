"""What a sweep comes to before it runs: cost per trial and in all, and what it cannot answer."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from analysis.wording import plural
from orchestrator import strict_yaml
from orchestrator.grid import Dropped, Grid, Merged, PlannedTrial
from orchestrator.sweep import RESOLVED
from orchestrator.sweep_config import SweepConfig
from trainers.accounting import (
    Parameters,
    inference_flops_per_token,
    parameters,
    training_flops_per_token,
    training_memory_bytes,
)
from trainers.spec import SEMANTICS_VERSION, DataSpec, TrialSpec

#: FLOP/s that one CPU core (float32, models of 0.1M parameters: measured 4e10 to 5e10) and one GPU
#: (bf16, a third of an A100's peak) reach in training, where nothing better is known.
DEFAULT_RATES = {"cpu": 4e10, "cuda": 1e14}
#: A snapshot's eigenvalues cost about this times D^3 FLOPs, at the rate of training (0.2 s at
#: D = 2048 on two cores).
EIGENVALUE_FLOPS = 2.0
#: Starting a trial and ending it, seconds.
START_SECONDS = 4.0

#: Below this many tokens per unit of width every rank of a spectrum is biased downward.
TOKENS_PER_WIDTH = 10
WIDTHS_FOR_A_LAW = 3
#: With one replicate the scatter about the quadratic is the only noise there is to see.
WIDTHS_WITHOUT_REPLICATES = 6


@dataclass(frozen=True)
class PlanRow:
    """One trial and its cost. `memory_bytes` is of one worker, `seconds` an estimate."""

    trial: PlannedTrial
    parameters: Parameters
    flops_per_token: int
    tokens: int
    memory_bytes: int
    workers: int
    seconds: float

    @property
    def flops(self) -> int:
        """Training FLOPs of the whole trial."""
        return self.flops_per_token * self.tokens


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
    """A sweep before it runs. `rate` is FLOP/s of one worker, measured or a default."""

    sweep: str
    rows: list[PlanRow]
    dropped: list[Dropped]
    merged: list[Merged]
    warnings: list[str]
    totals: Totals
    rate: float
    rate_measured: bool


def make_plan(config: SweepConfig, grid: Grid, rate: float | None = None) -> Plan:
    """Cost of every trial. `rate` is the FLOP/s that one worker was measured to reach, if any."""
    layout = grid.trials[0].spec.layout
    cores = layout.cpus_per_worker if layout.device == "cpu" else 1
    per_worker = rate or DEFAULT_RATES[layout.device] * cores
    rows = [_row(trial, per_worker) for trial in grid.trials]
    return Plan(
        sweep=config.name,
        rows=rows,
        dropped=grid.dropped,
        merged=grid.merged,
        warnings=list(_warnings(config, grid.trials)),
        totals=_totals(config, rows),
        rate=per_worker,
        rate_measured=rate is not None,
    )


def _row(trial: PlannedTrial, rate: float) -> PlanRow:
    spec = trial.spec
    workers = spec.layout.workers
    return PlanRow(
        trial=trial,
        parameters=parameters(spec.model),
        flops_per_token=training_flops_per_token(spec.model),
        tokens=spec.training.steps * spec.training.batch_tokens,
        memory_bytes=training_memory_bytes(spec),
        workers=workers,
        seconds=START_SECONDS + (trial.flops + _measuring_flops(spec)) / (rate * workers),
    )


def _measuring_flops(spec: TrialSpec) -> float:
    """FLOPs of evaluations and snapshots: forward passes, covariances 2 N D^2, eigenvalues."""
    steps, forward = spec.training.steps, inference_flops_per_token(spec.model)
    evaluation, spectra = spec.evaluation, spec.spectra
    snapshot = sum(
        2 * spectra.tokens * D**2 + EIGENVALUE_FLOPS * D**3 for D in spec.model.ffn_widths
    ) * len(spectra.sites)
    evaluations = _measurements(steps, evaluation.every)
    snapshots = _measurements(steps, spectra.every)
    return evaluations * evaluation.tokens * forward + snapshots * (
        spectra.tokens * forward + snapshot
    )


def _measurements(steps: int, every: int) -> int:
    """How often something at step 0, every `every` updates and at the end happens."""
    return 1 + -(-steps // every)


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


# --- what the sweep cannot answer ----------------------------------------------------------


def _warnings(config: SweepConfig, trials: list[PlannedTrial]) -> Iterator[str]:
    """What to mend before the hours are spent, most serious first."""
    widest = max(max(trial.spec.model.ffn_widths) for trial in trials)
    tokens = min(trial.spec.spectra.tokens for trial in trials)
    if tokens < TOKENS_PER_WIDTH * widest:
        yield (
            f"spectra.tokens {tokens} is less than {TOKENS_PER_WIDTH} per unit of the widest FFN "
            f"(D = {widest}): ranks are biased downward, most at the widest, which looks like "
            f"saturation; use at least {TOKENS_PER_WIDTH * widest}"
        )
    budgets = [hold for hold in config.hold if hold != "none"]
    if not budgets:
        yield (
            "no equal budgets (hold has neither params nor flops): wider models are also bigger "
            "ones, so no best width by loss can be told; use hold: [none, params]"
        )
    if "none" not in config.hold:
        yield (
            "no equal d_model (hold has no none): there will be no laws of rank against width; "
            "use hold: [none, " + ", ".join(budgets) + "]"
        )
    yield from _too_few(config, trials)
    far = [trial for trial in trials if any(abs(e) > 0.02 for e in trial.budget_errors.values())]
    if far:
        worst = max(abs(error) for trial in far for error in trial.budget_errors.values())
        yield (
            f"{plural(len(far), 'trial')} off the budget by more than 2 % (at worst "
            f"{worst:.1%}): a smaller model.ffn_multiple comes nearer"
        )
    steps = min(trial.spec.training.steps for trial in trials)
    every = max(trial.spec.spectra.every for trial in trials)
    snapshots, wanted = _measurements(steps, every), config.analysis.aggregate_last
    if snapshots - 1 < wanted:
        yield (
            f"{plural(snapshots, 'snapshot')} a trial, that at step 0 included, but a rank is "
            f"the median of the last {wanted} (analysis.aggregate_last): it reaches back to the "
            "untrained model; lower it or spectra.every"
        )


def _too_few(config: SweepConfig, trials: list[PlannedTrial]) -> Iterator[str]:
    """Halves of the grid with too few widths for a verdict."""
    replicates = len(set(config.grid["seed"]))
    for hold in config.hold:
        fewest = min(len(widths) for widths in _widths_by_group(trials, hold))
        if fewest < WIDTHS_FOR_A_LAW:
            yield (
                f"hold {hold}: {plural(fewest, 'width')} in some group; a law or an "
                f"optimum needs at least {WIDTHS_FOR_A_LAW}"
            )
        elif hold != "none" and replicates == 1 and fewest < WIDTHS_WITHOUT_REPLICATES:
            yield (
                f"hold {hold}: one replicate and {plural(fewest, 'width')} in some group; a "
                f"verdict on loss needs {WIDTHS_WITHOUT_REPLICATES} widths, or more seeds"
            )


def _widths_by_group(trials: list[PlannedTrial], hold: str) -> list[set[tuple[Any, ...]]]:
    """Distinct shapes of each group of trials that differ in width and seed alone."""
    groups: dict[str, set[tuple[Any, ...]]] = {}
    for trial in trials:
        if hold in trial.holds:
            model = trial.spec.model
            # The head count tells sizes apart where d_model is an axis: a budget keeps it.
            axes = [v for k, v in trial.axes.items() if k not in WIDTH_AND_SEED]
            key = repr([*axes, model.heads])
            groups.setdefault(key, set()).add((model.d_model, model.ffn_widths))
    return list(groups.values()) or [set()]


WIDTH_AND_SEED = ("width_multiplier", "seed", "d_model", "D")


# --- outputs -------------------------------------------------------------------------------


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as `widthlab plan --json` prints it."""
    return {
        "sweep": plan.sweep,
        "trials": [
            {
                "id": row.trial.id,
                "holds": list(row.trial.holds),
                "axes": row.trial.axes,
                "parameters": asdict(row.parameters),
                "flops_per_token": row.flops_per_token,
                "tokens": row.tokens,
                "memory_bytes": row.memory_bytes,
                "workers": row.workers,
                "seconds": row.seconds,
            }
            for row in plan.rows
        ],
        "dropped": [asdict(cell) for cell in plan.dropped],
        "merged": [asdict(cell) for cell in plan.merged],
        "warnings": plan.warnings,
        "rate": {"flops_per_s": plan.rate, "measured": plan.rate_measured},
        "totals": asdict(plan.totals),
    }


def resolved_yaml(
    config: SweepConfig,
    grid: Grid,
    data: DataSpec,
    vocab_size: int,
    git: Mapping[str, Any] | None = None,
) -> str:
    """sweep.yaml as run: every default written out, and what the grid came to.

    `git` is the commit and dirty flag of the checkout that the sweep was started in, if any.

    Reading it gives an equal config: the section `resolved` is for the analysis and is not read
    back, since the trials follow from the rest.
    """
    resolved = {
        "semantics_version": SEMANTICS_VERSION,
        "corpus_fingerprint": data.corpus_fingerprint,
        "tokenizer_hash": data.tokenizer_hash,
        "vocab_size": vocab_size,
        "git": dict(git or {}),
        "trials": [
            {
                "id": trial.id,
                "holds": list(trial.holds),
                "axes": strict_yaml.Inline(trial.axes),
                "parameters": strict_yaml.Inline(asdict(parameters(trial.spec.model))),
                "flops": trial.flops,
            }
            for trial in grid.trials
        ],
        "dropped": [strict_yaml.Inline(asdict(cell)) for cell in grid.dropped],
        "merged": [strict_yaml.Inline(asdict(cell)) for cell in grid.merged],
    }
    return strict_yaml.dump({**config.to_dict(), RESOLVED: resolved})
