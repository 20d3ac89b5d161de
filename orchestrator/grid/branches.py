"""Several horizons from one run: trials of schedule wsd share their warm-up and stable phase.

Under warm-up-stable-decay (arXiv 2404.06395), a run does not depend on its length until its decay
begins. Trials that differ only in `steps` are one run until then. The longest is the trunk; each
shorter trial branches off at the checkpoint where its own decay begins.
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
    """A trial starts from the checkpoint of trial `trunk` after `step` updates."""

    trunk: str
    step: int


def branches(specs: Iterable[TrialSpec]) -> dict[str, Branch]:
    """Return the branch of every trial among `specs` that can start from another one, by id."""
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
    """Return the updates at which other trials branch off, ascending, by the id of the trunk."""
    points: dict[str, set[int]] = defaultdict(set)
    for branch in branches(specs).values():
        points[branch.trunk].add(branch.step)
    return {trunk: tuple(sorted(steps)) for trunk, steps in points.items()}


def drop_used_branch_points(sweep: Storage, specs: Iterable[TrialSpec]) -> None:
    """Delete checkpoints of finished trunks once every branch from them has begun.

    A trunk keeps these checkpoints only for its branches and cannot tell when they have begun. Its
    last checkpoint stays.
    """
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
    """Key that is equal for trials that are the same run until the shorter one decays.

    The warm-up enters in updates, whether the file gives steps or a fraction.
    """
    # This spec exists only for its canonical JSON and is never trained.
    unsized = spec.training.model_copy(
        update={"steps": 1, "warmup_fraction": 0.0, "warmup_steps": None}
    )
    return canonical_json(spec.model_copy(update={"training": unsized})), spec.training.warmup
