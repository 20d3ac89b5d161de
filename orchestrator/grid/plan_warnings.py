"""Warnings about questions that a sweep cannot answer, before it costs device-hours."""

from collections.abc import Iterator
from typing import Any

from analysis.collapse import CollapseRule
from analysis.settings import SAMPLES_PER_DIMENSION, WIDTHS_FOR_A_LAW, WIDTHS_WITH_ONE_REPLICATE
from analysis.wording import plural
from orchestrator.grid.expand import PlannedTrial
from orchestrator.grid.plan_cost import measurements
from orchestrator.sweep.config import SweepConfig

#: Axes along which trials are compared. The other axes define the groups.
WIDTH_AND_SEED = ("width_multiplier", "seed", "d_model", "D")


def warnings(config: SweepConfig, trials: list[PlannedTrial]) -> Iterator[str]:
    """Yield the warnings about a sweep, most serious first."""
    widest = max(max(trial.spec.model.ffn_widths) for trial in trials)
    tokens = min(trial.spec.spectra.tokens for trial in trials)
    if tokens < SAMPLES_PER_DIMENSION * widest:
        yield (
            f"spectra.tokens {tokens} is less than {SAMPLES_PER_DIMENSION} per unit of the widest "
            f"FFN (D = {widest}): ranks are biased downward, most at the largest width, which "
            f"looks like saturation; use at least {SAMPLES_PER_DIMENSION * widest}"
        )
    budgets = [matching for matching in config.match if matching != "none"]
    if not budgets:
        yield (
            "no equal budgets (match has neither params nor flops): wider models are also bigger, "
            "so the loss cannot show the best width; use match: [none, params]"
        )
    if "none" not in config.match:
        yield (
            "no fixed d_model (match lacks none): there will be no laws of rank against width; "
            "use match: [none, " + ", ".join(budgets) + "]"
        )
    yield from _too_few(config, trials)
    far = [trial for trial in trials if any(abs(e) > 0.02 for e in trial.budget_errors.values())]
    if far:
        worst = max(abs(error) for trial in far for error in trial.budget_errors.values())
        yield (
            f"{plural(len(far), 'trial')} off the budget by more than 2 % (at worst {worst:.1%}): "
            "a smaller model.ffn_multiple reduces the error"
        )
    steps = min(trial.spec.training.steps for trial in trials)
    every = max(trial.spec.spectra.every for trial in trials)
    snapshots, wanted = measurements(steps, every), config.analysis.aggregate_last
    if snapshots - 1 < wanted:
        yield (
            f"{plural(snapshots, 'snapshot')} per trial with that at step 0, but a rank is the "
            f"median of the last {wanted} (analysis.aggregate_last), so it would include the "
            "untrained model; lower analysis.aggregate_last or spectra.every"
        )
    stopping = any(trial.spec.training.stop_on_collapse for trial in trials)
    if stopping and snapshots - 2 < CollapseRule().snapshots:
        yield (
            f"stop_on_collapse has no effect with {plural(snapshots, 'snapshot')} per trial: the "
            f"rule needs {CollapseRule().snapshots} after step 0 and stops at the next; lower "
            "spectra.every"
        )
    yield from _not_as_published(trials)
    yield from _nothing_shared(config, trials)


def _too_few(config: SweepConfig, trials: list[PlannedTrial]) -> Iterator[str]:
    """Matchings with too few widths for a verdict."""
    replicates = len(set(config.grid["seed"]))
    for matching in config.match:
        fewest = min(len(widths) for widths in _widths_by_group(trials, matching))
        if fewest < WIDTHS_FOR_A_LAW:
            yield (
                f"match {matching}: some group has {plural(fewest, 'width')}; a law or an optimum "
                f"needs at least {WIDTHS_FOR_A_LAW}"
            )
        elif matching != "none" and replicates == 1 and fewest < WIDTHS_WITH_ONE_REPLICATE:
            yield (
                f"match {matching}: some group has {plural(fewest, 'width')} and one replicate; a "
                f"verdict on loss needs {WIDTHS_WITH_ONE_REPLICATE} widths, or more seeds"
            )


def _widths_by_group(trials: list[PlannedTrial], matching: str) -> list[set[tuple[Any, ...]]]:
    """Distinct shapes in each group of trials that differ only in width and seed."""
    groups: dict[str, set[tuple[Any, ...]]] = {}
    for trial in trials:
        if matching in trial.matchings:
            model = trial.spec.model
            # If d_model is an axis, the head count identifies the size: matching keeps it.
            axes = [v for k, v in trial.axes.items() if k not in WIDTH_AND_SEED]
            key = repr([*axes, model.heads])
            groups.setdefault(key, set()).add((model.d_model, model.ffn_widths))
    return list(groups.values()) or [set()]


def _not_as_published(trials: list[PlannedTrial]) -> Iterator[str]:
    """nGPT with the recipe of another architecture."""
    for training in (t.spec.training for t in trials if t.spec.model.architecture == "ngpt"):
        unlike = [f"{training.warmup} steps of warm-up"] if training.warmup else []
        unlike += [f"final_fraction {training.final_fraction:g}"] if training.final_fraction else []
        if unlike:
            yield (
                f"nGPT with {' and '.join(unlike)} differs from its paper (arXiv 2410.01131: no "
                "warm-up, a decay to 0); use overrides: [{when: {architecture: ngpt}, set: "
                "{warmup_fraction: 0, final_fraction: 0}}]"
            )
            return


def _nothing_shared(config: SweepConfig, trials: list[PlannedTrial]) -> Iterator[str]:
    """Several horizons of wsd that differ from the first step and so share no updates."""
    if len(set(config.grid.get("steps", ()))) > 1 and any(
        t.spec.training.schedule == "wsd"
        and t.spec.training.warmup_steps is None
        and t.spec.training.warmup_fraction
        for t in trials
    ):
        yield (
            "schedule wsd with several values of steps, but the warm-up is a fraction of them: the "
            "runs differ from the start and share no updates; set training.warmup_steps"
        )
