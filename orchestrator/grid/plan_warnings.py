"""What a sweep cannot answer or does unlike its source, said before the hours are spent."""

from collections.abc import Iterator
from typing import Any

from analysis.collapse import CollapseRule
from analysis.settings import SAMPLES_PER_DIMENSION, WIDTHS_FOR_A_LAW, WIDTHS_WITH_ONE_REPLICATE
from analysis.wording import plural
from orchestrator.grid.expand import PlannedTrial
from orchestrator.grid.plan_cost import measurements
from orchestrator.sweep.config import AXES, SweepConfig

#: The axes along which trials are compared; by the others they are grouped.
WIDTH_AND_SEED = ("width_multiplier", "seed", "d_model", "D")


def warnings(config: SweepConfig, trials: list[PlannedTrial]) -> Iterator[str]:
    """What to mend before the hours are spent, most serious first."""
    widest = max(max(trial.spec.model.ffn_widths) for trial in trials)
    tokens = min(trial.spec.spectra.tokens for trial in trials)
    if tokens < SAMPLES_PER_DIMENSION * widest:
        yield (
            f"spectra.tokens {tokens} is less than {SAMPLES_PER_DIMENSION} per unit of the widest "
            f"FFN (D = {widest}): ranks are biased downward, most at the widest, which looks like "
            f"saturation; use at least {SAMPLES_PER_DIMENSION * widest}"
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
    snapshots, wanted = measurements(steps, every), config.analysis.aggregate_last
    if snapshots - 1 < wanted:
        yield (
            f"{plural(snapshots, 'snapshot')} a trial, that at step 0 included, but a rank is "
            f"the median of the last {wanted} (analysis.aggregate_last): it reaches back to the "
            "untrained model; lower it or spectra.every"
        )
    stopping = any(trial.spec.training.stop_on_collapse for trial in trials)
    if stopping and snapshots - 2 < CollapseRule().snapshots:
        yield (
            f"stop_on_collapse with {plural(snapshots, 'snapshot')} a trial stops nothing: the "
            f"rule needs {CollapseRule().snapshots} after step 0, and one more to stop at; lower "
            "spectra.every"
        )
    yield from _not_as_published(trials)
    yield from _nothing_shared(config, trials)
    yield from _unlike_widths(config)


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
        elif hold != "none" and replicates == 1 and fewest < WIDTHS_WITH_ONE_REPLICATE:
            yield (
                f"hold {hold}: one replicate and {plural(fewest, 'width')} in some group; a "
                f"verdict on loss needs {WIDTHS_WITH_ONE_REPLICATE} widths, or more seeds"
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


def _not_as_published(trials: list[PlannedTrial]) -> Iterator[str]:
    """nGPT with the recipe of another architecture."""
    for training in (t.spec.training for t in trials if t.spec.model.architecture == "ngpt"):
        unlike = [f"{training.warmup} steps of warm-up"] if training.warmup else []
        unlike += [f"final_fraction {training.final_fraction:g}"] if training.final_fraction else []
        if unlike:
            yield (
                f"nGPT with {' and '.join(unlike)} is not as published (arXiv 2410.01131: no "
                "warm-up, and a decay to 0); use overrides: [{when: {architecture: ngpt}, set: "
                "{warmup_fraction: 0, final_fraction: 0}}]"
            )
            return


def _nothing_shared(config: SweepConfig, trials: list[PlannedTrial]) -> Iterator[str]:
    """Several horizons of wsd that are different runs from their first step on."""
    if len(set(config.grid.get("steps", ()))) > 1 and any(
        t.spec.training.schedule == "wsd"
        and t.spec.training.warmup_steps is None
        and t.spec.training.warmup_fraction
        for t in trials
    ):
        yield (
            "schedule wsd with several steps, and a warm-up that is a fraction of them: the runs "
            "differ from the start and share nothing; give training.warmup_steps"
        )


def _unlike_widths(config: SweepConfig) -> Iterator[str]:
    """Overrides that make the widths of a group differ in more than their width."""
    keys = [
        key
        for override in config.overrides
        if override.when.keys() & {"width_multiplier", "ffn_width"}
        for key in override.set
        if key in AXES  # the others say how a trial lies on devices, not what it is
    ]
    if keys:
        yield (
            f"{', '.join(dict.fromkeys(keys))} set for some widths (overrides): widths are then "
            "compared that differ in more than their width"
        )
