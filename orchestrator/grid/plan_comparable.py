"""Say before a sweep runs which verdicts its analysis will refuse, because trials of a group would
differ in more than their width.

The analysis compares what the trials were trained with by the same rules
(`analysis.verdict.differences`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from analysis.settings import MINIMUM_RATES, TUNED
from analysis.tables.trial_settings import flat_settings
from analysis.verdict.differences import DEVICE, LEARNING_RATE, TOKENS, Setup, compare
from analysis.wording import group_label
from orchestrator.grid.expand import PlannedTrial
from orchestrator.grid.plan_warnings import WIDTH_AND_SEED

RATE = "learning_rate"
#: Axes that tell the trials of a group apart; the rate only where it is tuned.
WITHIN_A_GROUP = ("width_multiplier", "d_model", "seed", RATE)
#: Budgets, the deciding one first, and the rank laws by their matching.
BUDGETS, RANK_LAWS = ("params", "flops"), "none"
#: Groups that one warning names.
MOST_GROUPS = 3


def refused_verdicts(trials: Sequence[PlannedTrial]) -> Iterator[str]:
    """Yield one warning per reason for which verdicts or rank laws will be refused.

    Args:
        trials: The planned trials.
    """
    refused: dict[tuple[str, str], list[str]] = {}
    for matching in (*BUDGETS, RANK_LAWS):
        what = "rank laws" if matching == RANK_LAWS else "verdict"
        own = [
            trial
            for trial in trials  # the analysis leaves out those whose layers differ in width
            if matching in trial.matchings and len(set(trial.spec.model.ffn_widths)) == 1
        ]
        for label, members, tuned in _groups(own, tune=matching != RANK_LAWS):
            found = compare(
                [_setup(trial) for trial in members],
                ranks=matching == RANK_LAWS,
                free=(LEARNING_RATE,) if tuned else (),
            )
            if found is not None:
                why = f"{found.reason}; give all of them the same {found.names} in the sweep file"
                labels = refused.setdefault((what, why), [])
                if label not in labels:
                    labels.append(label)
    for (what, why), labels in refused.items():
        yield f"the {what} of {_named(labels)} will be refused: {why}"


def _setup(trial: PlannedTrial) -> Setup:
    """What a trial will be trained with, named by its place in the group: ids may be unknown."""
    spec = trial.spec
    recorded = {
        TOKENS: spec.training.steps * spec.training.batch_tokens,
        DEVICE: spec.layout.device,
    }
    settings = recorded | flat_settings(spec.model_dump(mode="json"))
    place = [f"{axis} {trial.axes[axis]}" for axis in WITHIN_A_GROUP if axis in trial.axes]
    return Setup(", ".join(place), float(trial.axes["width_multiplier"]), settings)


def _groups(
    trials: Sequence[PlannedTrial], *, tune: bool
) -> Iterator[tuple[str, list[PlannedTrial], bool]]:
    """The label and trials of each group of the analysis, and whether its rate is tuned."""
    for axes, members in _by(trials, without=(RATE,)):
        rates = {trial.axes.get(RATE) for trial in members}
        if tune and len(rates - {None}) >= MINIMUM_RATES:
            yield group_label({**axes, RATE: TUNED}), members, True
            continue
        for own, alike in _by(members, without=()):
            yield group_label(own), alike, False


def _by(
    trials: Sequence[PlannedTrial], without: Sequence[str]
) -> list[tuple[dict[str, Any], list[PlannedTrial]]]:
    """Trials by all axes but width, replicate and those `without`; a size has its d_model."""
    found: dict[str, tuple[dict[str, Any], list[PlannedTrial]]] = {}
    sizes = {trial.cell.base.model.d_model for trial in trials}
    for trial in trials:
        axes = {
            axis: value
            for axis, value in trial.axes.items()
            if axis not in WIDTH_AND_SEED and axis not in without
        }
        if len(sizes) > 1:
            axes["base_d_model"] = trial.cell.base.model.d_model
        found.setdefault(repr(axes), (axes, []))[1].append(trial)
    return list(found.values())


def _named(labels: Sequence[str]) -> str:
    rest = len(labels) - MOST_GROUPS
    more = f" and {rest} more" if rest > 0 else ""
    group = "group" if len(labels) == 1 else "groups"
    return f"{group} {'; '.join(labels[:MOST_GROUPS])}{more}"
