"""Claims about the spikes of a loss curve, and about how far a trial had come at its end."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.stability import NORM_RULE, Spikes, SpikeWatch, judge_stability, spikes_of

STEPS = 300


def healthy(seed: int = 0, noise: float = 0.05) -> np.ndarray:
    """[STEPS] training losses that fall from 6.4 to 3.4, with the noise of batches."""
    fall = 3.0 * (1 + np.arange(STEPS) / 10) ** -0.6
    return 3.4 + fall + noise * np.random.default_rng(seed).standard_normal(STEPS)


def with_spike(loss: np.ndarray, at: int, rise: float, decay: float) -> np.ndarray:
    """The losses with a spike at the update `at`, counted from 1."""
    since = np.arange(1, len(loss) + 1) - at
    return loss + rise * (since >= 0) * np.exp(-np.maximum(since, 0) / decay)


def found(loss: np.ndarray) -> Spikes:
    spikes = spikes_of(range(1, len(loss) + 1), loss.tolist())
    assert spikes is not None
    return spikes


def test_healthy_curves_have_no_spike() -> None:
    """The early fall is none, nor is the noise, small or large."""
    for seed in range(40):
        for noise in (0.0, 0.01, 0.05, 0.3):
            assert found(healthy(seed, noise)).count == 0


def test_a_spike_is_found_where_it_begins_with_its_rise_and_its_length() -> None:
    spikes = found(with_spike(healthy(), at=150, rise=1.0, decay=10))
    assert (spikes.count, spikes.last, spikes.recovered) == (1, 150, True)
    assert spikes.largest == pytest.approx(1.0, abs=0.2)
    assert 10 <= spikes.above <= 30
    assert spikes.unstable  # above for more than 2 % of the updates


def test_a_brief_spike_in_a_long_run_is_no_instability() -> None:
    loss = np.concatenate([healthy(), healthy()[-1] + 0.05 * np.cos(np.arange(3000))])
    spikes = found(with_spike(loss, at=1000, rise=1.0, decay=10))
    assert (spikes.count, spikes.unstable) == (1, False)
    thrice = with_spike(with_spike(loss, 1500, 1.0, 10), 2000, 1.0, 10)
    assert found(with_spike(thrice, 1000, 1.0, 10)).unstable


def test_a_loss_that_does_not_come_back_is_an_open_spike() -> None:
    spikes = found(with_spike(healthy(), at=200, rise=0.6, decay=math.inf))
    assert (spikes.recovered, spikes.since, spikes.unstable) == (False, 200, True)
    assert spikes.share == pytest.approx(101 / 300, abs=0.01)


def test_a_slow_rise_is_found_too() -> None:
    rising = healthy() + np.clip((np.arange(STEPS) - 150) / 100, 0, 1)
    assert not found(rising).recovered


@pytest.mark.parametrize("rise", [0.5, 3.0, 100.0])
def test_a_single_odd_batch_is_no_spike(rise: float) -> None:
    loss = healthy()
    loss[[60, 130, 131 + 40]] += rise
    assert found(loss).count == 0


def test_spikes_within_a_recovery_are_told_apart_after_it() -> None:
    twice = with_spike(with_spike(healthy(), 120, 1.0, 8), 220, 1.0, 8)
    assert found(twice).count == 2


def test_losses_that_are_not_finite_are_left_out() -> None:
    loss = healthy()
    loss[[5, 80, 299]] = np.nan
    spikes = found(loss)
    assert (spikes.count, spikes.updates) == (0, STEPS - 3)
    assert spikes_of([1, 2], [math.nan, math.inf]) is None


@pytest.mark.parametrize(("count", "spikes"), [(0, None), (1, None), (20, None), (21, 0), (30, 1)])
def test_the_first_losses_are_not_judged(count: int, spikes: int | None) -> None:
    """A rise at the 12th loss is none, because only 11 say what is usual; one at the 25th is."""
    for at, seen in ((12, 0 if spikes is not None else None), (25, spikes)):
        loss = [3.0 + 2.0 * (at <= step < at + 3) for step in range(1, count + 1)]
        found = spikes_of(range(1, count + 1), loss)
        assert (None if found is None else found.count) == seen


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=120), st.data())
def test_a_loss_is_judged_by_those_before_it(losses: list[float], data: st.DataObject) -> None:
    """The spikes of the first losses are the same, whatever follows."""
    cut = data.draw(st.integers(0, len(losses)))
    watch = SpikeWatch()
    for step, loss in enumerate(losses[:cut], start=1):
        watch.add(step, loss)
    early = watch.found
    for step, loss in enumerate(losses[cut:], start=cut + 1):
        watch.add(step, loss)
    whole = spikes_of(range(1, len(losses) + 1), losses)
    assert whole is None or watch.found == whole
    assert early.count <= watch.found.count
    assert early.above <= watch.found.above <= len(losses)


def test_a_gradient_norm_spikes_where_it_triples_and_may_drift_upwards() -> None:
    rng = np.random.default_rng(1)
    drift = np.log(0.5) + np.arange(STEPS) / 100 + 0.15 * rng.standard_normal(STEPS)
    assert spikes_of(range(STEPS), drift.tolist(), NORM_RULE).count == 0  # type: ignore[union-attr]
    drift[200:210] += math.log(8)
    assert spikes_of(range(STEPS), drift.tolist(), NORM_RULE).count == 1  # type: ignore[union-attr]


def test_the_end_of_a_logarithmic_curve_in_closed_form() -> None:
    """4 - 0.2 log2(s): 0.2 nats a doubling, 0.2 log2(10 / 9) over the last tenth."""
    at = np.arange(0, 1001, 25)
    losses = 4 - 0.2 * np.log2(np.maximum(at, 1))
    stability = judge_stability([], [], [], at, losses)
    assert stability.loss is None
    assert stability.norm is None
    assert stability.fall_per_doubling == pytest.approx(0.2)
    assert stability.fall_last_tenth == pytest.approx(0.2 * math.log2(10 / 9), rel=1e-6)


@pytest.mark.parametrize("at", [[], [10], [10, 20]])
def test_the_end_is_unknown_where_evaluations_are_far_apart(at: list[int]) -> None:
    stability = judge_stability([], [], [], at, [3.0] * len(at))
    assert math.isnan(stability.fall_last_tenth)
    assert math.isnan(stability.fall_per_doubling)


def test_a_norm_that_is_unknown_or_zero_is_left_out() -> None:
    norms = [math.nan, 0.0] * 10 + [1.0] * 30
    stability = judge_stability(range(50), [3.0] * 50, norms, [], [])
    assert stability.norm is not None
    assert stability.norm.updates == 30
    told = stability.to_dict()
    assert told["train_loss"]["count"] == told["grad_norm"]["count"] == 0
    assert told["train_loss"]["unstable"] is False
