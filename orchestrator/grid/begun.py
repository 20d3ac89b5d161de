"""Trials that a run continues in the layout they were begun in, whatever the sweep file asks."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from analysis.wording import plural
from orchestrator.grid.expand import PlannedTrial
from trainers.durable.begun_layout import as_begun
from trialstore.records import RESULT
from trialstore.storage import Storage
from trialstore.sweep_file import trial_storage

#: Settings of `resources` that a begun trial keeps.
KEPT = (
    *("workers", "cpus_per_worker", "zero_stage", "micro_batch"),
    *("checkpoint_every", "keep_checkpoints"),
)


def begun_trials(sweep: Storage) -> set[str]:
    """Return the ids of trials with a checkpoint and without a result, from one listing."""
    keys = [key.split("/") for key in sweep.list("trials")]
    begun = {key[1] for key in keys if len(key) > 2 and key[2] == "checkpoints"}
    return begun - {key[1] for key in keys if key[2:] == [RESULT]}


def in_begun_layouts(
    sweep: Storage, trials: Sequence[PlannedTrial], begun: Collection[str]
) -> list[PlannedTrial]:
    """Return the trials, those of the ids `begun` in the layout of their checkpoints."""
    return [
        replace(trial, spec=as_begun(trial_storage(sweep, trial.id), trial.spec))
        if trial.id in begun
        else trial
        for trial in trials
    ]


def begun_notes(asked: Sequence[PlannedTrial], kept: Sequence[PlannedTrial]) -> Iterator[str]:
    """Yield a note for every setting of the sweep file that begun trials do not take.

    Args:
        asked: The trials as the sweep file lays them out.
        kept: The same trials in the layouts that they continue in.
    """
    for name in KEPT:
        pairs = Counter(
            (getattr(old.spec.layout, name), getattr(new.spec.layout, name))
            for old, new in zip(asked, kept, strict=True)
        )
        for (wanted, has), count in pairs.items():
            if wanted != has:
                yield (
                    f"{plural(count, 'unfinished trial')} will continue with resources.{name} "
                    f"{_word(has)}, not {_word(wanted)}: a trial keeps the layout that it was "
                    "begun in; `widthlab rerun` begins it anew"
                )


def _word(value: object) -> str:
    return "null" if value is None else str(value)
