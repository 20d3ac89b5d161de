"""Several horizons from one run: trials of the schedule wsd share their warm-up and stable phase.

Until its stable end a run of the schedule warm-up, stable, decay does not know how long it will
be: trials that differ in `steps` alone are one run until then (arXiv 2404.06395). The longest of
them is the trunk; each shorter one branches off it where its own decay begins.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from trainers.spec import TrialSpec, canonical_json
from trialstore.records import RESULT, checkpoint_folder, committed_steps, manifest_key
from trialstore.storage import Storage
from trialstore.sweep_file import trial_storage


@dataclass(frozen=True)
class Branch:
    """A trial goes on from the checkpoint of trial `trunk` after `step` updates."""

    trunk: str
    step: int


def branches(specs: Iterable[TrialSpec]) -> dict[str, Branch]:
    """Where the trials among `specs` branch off that need not start from the beginning, by id."""
    families: dict[tuple[str, int], list[TrialSpec]] = defaultdict(list)
    for spec in specs:
        if spec.training.schedule == "wsd":
            families[_all_but_steps(spec)].append(spec)
    found: dict[str, Branch] = {}
    for family in families.values():
        trunk, *others = sorted(family, key=lambda spec: -spec.training.steps)
        for other in others:
            step = other.training.stable_end
            if 1 <= step <= trunk.training.stable_end:
                found[other.id] = Branch(trunk.id, step)
    return found


def branch_points(specs: Iterable[TrialSpec]) -> dict[str, tuple[int, ...]]:
    """The updates at which others branch off, by the trunk's id, in order."""
    points: dict[str, set[int]] = defaultdict(set)
    for branch in branches(specs).values():
        points[branch.trunk].add(branch.step)
    return {trunk: tuple(sorted(steps)) for trunk, steps in points.items()}


def drop_used_branch_points(sweep: Storage, specs: Iterable[TrialSpec]) -> None:
    """Remove the checkpoints of finished trunks that all their branches have begun from: a trunk
    keeps them for its branches alone, and does not know of them."""
    waiting: dict[tuple[str, int], list[str]] = defaultdict(list)
    for trial_id, branch in branches(specs).items():
        waiting[branch.trunk, branch.step].append(trial_id)
    for (trunk, step), trial_ids in waiting.items():
        trial = trial_storage(sweep, trunk)
        steps = committed_steps(trial.list("checkpoints"))
        over = RESULT in trial.list()
        if over and step in steps[:-1] and all(_has_begun(sweep, name) for name in trial_ids):
            trial.delete(manifest_key(step))
            for key in trial.list(checkpoint_folder(step)):
                trial.delete(key)


def _has_begun(sweep: Storage, trial_id: str) -> bool:
    keys = trial_storage(sweep, trial_id).list()
    return RESULT in keys or bool(committed_steps(keys))


def _all_but_steps(spec: TrialSpec) -> tuple[str, int]:
    """Equal for trials that are one run as long as both are stable: the warm-up counts in
    updates, however it is given."""
    # Only for its canonical JSON: such a spec is never trained.
    unsized = spec.training.model_copy(
        update={"steps": 1, "warmup_fraction": 0.0, "warmup_steps": None}
    )
    return canonical_json(spec.model_copy(update={"training": unsized})), spec.training.warmup
