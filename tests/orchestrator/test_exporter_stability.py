"""Spikes of a trial's loss are a tag of its run while it trains, metrics when it is over."""

import json
import time

import pytest
from exporter_bench import START_MS, Bench, finish_trial, put_rows

from orchestrator.mlflow.stability import spikes_text, stability_points
from trialstore.records import LEASE, RESULT, encode_json
from trialstore.storage import LocalStorage

STABILITY = {
    "train_loss": {"count": 2, "share": 0.25, "largest": 0.8, "unstable": True, "since": None},
    "grad_norm": None,
    "fall_last_tenth": 0.02,
    "fall_per_doubling": None,
}


def tell(trial: LocalStorage, spikes: int, since: int | None) -> None:
    lease = {"attempt": 1, "step": 20, "steps": 40, "loss": 3.5, "tokens_per_s": 1.0}
    beat = {"heartbeat_ms": time.time_ns() // 1_000_000}
    trial.put(LEASE, encode_json({**lease, **beat, "spikes": spikes, "spiking_since": since}))


def tag(bench: Bench) -> str | None:
    return bench.child().data.tags.get("loss_spikes")


def test_the_tag_follows_the_lease(bench: Bench) -> None:
    trial, exporter = bench.begin(), bench.exporter()
    put_rows(trial, 1, 0, 20)
    tell(trial, 0, None)
    exporter.sync_once()
    assert tag(bench) is None
    tell(trial, 1, 18)
    exporter.sync_once()
    assert tag(bench) == "1, not over since step 18"
    tell(trial, 1, None)
    exporter.sync_once()
    assert tag(bench) == "1"
    tell(trial, 0, None)  # continued from a checkpoint before the spike
    exporter.sync_once()
    assert tag(bench) is None


def test_a_finished_trial_has_metrics_and_an_old_one_has_none(bench: Bench) -> None:
    trial = bench.begin()
    put_rows(trial, 1, 0, 40)
    finish_trial(trial)
    result = json.loads(trial.get(RESULT))
    assert stability_points(result, START_MS) == []
    result |= {"stability": STABILITY, "data": {"unigram_loss": 6.1}}
    trial.put(RESULT, encode_json(result))
    bench.exporter().finish()
    metrics = bench.child().data.metrics
    assert {name: metrics[name] for name in metrics if name.startswith(("stability", "data"))} == {
        "stability/spikes": 2,
        "stability/spike_share": 0.25,
        "stability/spike_rise": 0.8,
        "stability/unstable": 1,
        "stability/fall_last_tenth": 0.02,
        "data/unigram_loss": 6.1,
    }
    assert tag(bench) == "2"


@pytest.mark.parametrize("broken", [None, [], {"train_loss": []}, {"train_loss": {"count": "2"}}])
def test_a_broken_section_gives_no_point(broken: object) -> None:
    assert stability_points({"step": 40, "stability": broken}, START_MS) == []


def test_the_text_of_the_tag() -> None:
    assert spikes_text(None, None) is spikes_text(0, None) is None
    assert spikes_text(3, None) == "3"
