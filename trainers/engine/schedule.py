"""The learning rate of every update, as a pure function of the training spec.

All schedules warm up linearly to the peak and end at `final_fraction` of it on the last update;
they differ in between. Updates are counted from 0.
"""

import math

from trainers.spec import TrainingSpec


def learning_rate(training: TrainingSpec, update: int) -> float:
    """The rate of the update of that number.

    cosine and linear decay from the end of the warm-up. wsd (warm-up, stable, decay: arXiv
    2404.06395) stays at the peak until `training.stable_end` updates are done and then decays
    linearly; before that its rate does not depend on `steps`, if `warmup_steps` is given.
    """
    if update < training.warmup:
        return training.learning_rate * ((update + 1) / training.warmup)
    return training.learning_rate * _after_warmup(training, update)


def _after_warmup(training: TrainingSpec, update: int) -> float:
    """The fraction of the peak: 1 while it is stable, `final_fraction` on the last update."""
    begin = training.stable_end if training.schedule == "wsd" else training.warmup
    if update < begin:
        return 1.0
    progress = min(1.0, (update - begin + 1) / max(1, training.steps - begin))
    if training.schedule == "cosine":
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        remaining = 1.0 - progress
    return training.final_fraction + (1.0 - training.final_fraction) * remaining
