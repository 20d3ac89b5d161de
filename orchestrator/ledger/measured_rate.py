"""The training speed that the finished trials of a sweep have reached."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from trialstore.json_objects import COUNT, NUMBER, BrokenRecordError, get_json
from trialstore.records import RESULT
from trialstore.storage import Storage
from trialstore.trial_state import finished_trials


def measured_rate(sweep: Storage) -> float | None:
    """Return the FLOP/s of one worker, averaged over all finished trials of a sweep.

    Counts training only, without evaluation, spectra and checkpoints. None if no result has the
    numbers; a broken result is skipped.
    """
    flops = seconds = 0.0
    for trial_id in sorted(finished_trials(sweep)):
        with contextlib.suppress(BrokenRecordError):
            result = get_json(sweep, f"trials/{trial_id}/{RESULT}") or {}
            done, took = _work_of_one_worker(result)
            flops, seconds = flops + done, seconds + took
    rate = flops / seconds if seconds else 0.0
    return rate if 0 < rate < math.inf else None


def _work_of_one_worker(result: Mapping[str, Any]) -> tuple[float, float]:
    """FLOPs and seconds of training; both 0 unless the result has both."""
    try:
        flops, seconds = result["flops"], result["seconds"]["training"]
        workers = result["layout"]["workers"]
    except (KeyError, TypeError):
        return 0.0, 0.0
    if not (NUMBER.holds(flops) and NUMBER.holds(seconds) and COUNT.holds(workers)):
        return 0.0, 0.0
    return (flops / workers, seconds) if flops and seconds and workers else (0.0, 0.0)
