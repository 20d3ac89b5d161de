"""The stability of a trial's training in MLflow: a tag while it runs, metrics when it is over."""

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.mlflow.tracking import Point
from trialstore.json_objects import COUNT, NUMBER
from trialstore.sweep_file import section

PREFIX = "stability"


def spikes_text(spikes: int | None, since: int | None) -> str | None:
    """Return the tag of a trial whose training loss spiked, such as `2, not over since step 310`.

    None for a trial without a spike.
    """
    if not spikes:
        return None
    return str(spikes) if since is None else f"{spikes}, not over since step {since}"


def stability_points(result: Mapping[str, Any], time_ms: int) -> list[Point]:
    """Return the metrics of a finished trial, at its last step.

    `stability/spikes`, `/spike_share`, `/spike_rise` [nats], `/unstable` [0 or 1],
    `/grad_norm_spikes`, `/fall_last_tenth` and `/fall_per_doubling` [nats]; `data/unigram_loss`
    [nats per token]. None for results that are older than the watch. The same result gives the
    same points, so a point that is sent twice is stored once.
    """
    step = result.get("step")
    at = int(step) if COUNT.holds(step) and isinstance(step, int) else 0
    return [
        Point(name, float(value), time_ms, at)
        for name, value in _values(result)
        if isinstance(value, int | float) and (isinstance(value, bool) or NUMBER.holds(value))
    ]


def _values(result: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    found = section(result, "stability")
    loss, norm = section(found, "train_loss"), section(found, "grad_norm")
    yield f"{PREFIX}/spikes", loss.get("count")
    yield f"{PREFIX}/spike_share", loss.get("share")
    yield f"{PREFIX}/spike_rise", loss.get("largest")
    yield f"{PREFIX}/unstable", loss.get("unstable")
    yield f"{PREFIX}/grad_norm_spikes", norm.get("count")
    for name in ("fall_last_tenth", "fall_per_doubling"):
        yield f"{PREFIX}/{name}", found.get(name)
    yield "data/unigram_loss", section(result, "data").get("unigram_loss")
