"""Learning-rate schedules: cosine, linear and wsd (warm-up, stable, decay)."""

import math

from trainers.spec import TrainingSpec


def learning_rate(training: TrainingSpec, update: int) -> float:
    """Return the learning rate of one update. Updates count from 0.

    All schedules warm up linearly to the peak `training.learning_rate` and end at
    `final_fraction` of it on the last update. cosine and linear decay from the end of the
    warm-up. wsd (arXiv 2404.06395) stays at the peak for the first `training.stable_end` updates,
    then decays linearly; until then its rate is independent of `steps` if `warmup_steps` is set.
    """
    if update < training.warmup:
        return training.learning_rate * ((update + 1) / training.warmup)
    return training.learning_rate * _after_warmup(training, update)


def _after_warmup(training: TrainingSpec, update: int) -> float:
    """Return the fraction of the peak: 1 while stable, `final_fraction` on the last update."""
    begin = training.stable_end if training.schedule == "wsd" else training.warmup
    if update < begin:
        return 1.0
    progress = min(1.0, (update - begin + 1) / max(1, training.steps - begin))
    if training.schedule == "cosine":
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        remaining = 1.0 - progress
    return training.final_fraction + (1.0 - training.final_fraction) * remaining
