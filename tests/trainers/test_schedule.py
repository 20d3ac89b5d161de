"""The learning rate of every update."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.engine.schedule import learning_rate
from trainers.spec import TrainingSpec

PEAK = 0.5


def rates(steps: int, **changes) -> list[float]:
    training = TrainingSpec(steps=steps, batch_tokens=2, learning_rate=PEAK, **changes)
    return [learning_rate(training, update) for update in range(steps)]


def test_warm_up_is_linear_and_ends_at_the_peak_then_a_cosine_ends_at_the_floor() -> None:
    found = rates(10, warmup_fraction=0.4, final_fraction=0.2)
    assert found[:4] == [0.125, 0.25, 0.375, 0.5]
    cosine = [PEAK * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * k / 6))) for k in range(1, 7)]
    assert found[4:] == pytest.approx(cosine)
    assert found[-1] == pytest.approx(0.2 * PEAK)


def test_without_warm_up_it_decays_from_the_first_update() -> None:
    found = rates(4, warmup_fraction=0.0, final_fraction=0.0)
    assert found == pytest.approx(
        [PEAK * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]
    )
    assert found[-1] == 0.0


def test_warm_up_may_last_to_the_end() -> None:
    assert rates(4, warmup_fraction=1.0) == [0.125, 0.25, 0.375, 0.5]


def test_warm_up_may_be_given_in_steps() -> None:
    assert rates(100, warmup_steps=2)[:2] == [0.25, 0.5]
    assert rates(10, warmup_steps=4) == rates(10, warmup_fraction=0.4)


def test_linear_decays_in_equal_steps() -> None:
    found = rates(6, schedule="linear", warmup_steps=2, final_fraction=0.2)
    assert found == pytest.approx([0.25, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_wsd_is_stable_at_the_peak_until_it_decays() -> None:
    found = rates(10, schedule="wsd", warmup_steps=2, decay_fraction=0.4, final_fraction=0.0)
    assert found == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125, 0.0])


@given(
    st.lists(st.integers(10, 500), min_size=2, max_size=2, unique=True),
    st.floats(0.01, 0.9),
    st.integers(0, 1),
)
def test_wsd_of_several_lengths_is_one_run_until_the_shorter_decays(
    lengths: list[int], decay: float, warmup: int
) -> None:
    """That is what makes a branch of one run as good as a run of its own."""
    shorter, longer = sorted(lengths)
    same = {"schedule": "wsd", "warmup_steps": warmup, "decay_fraction": decay}
    end, later = (
        TrainingSpec(steps=steps, batch_tokens=2, learning_rate=PEAK, **same).stable_end
        for steps in (shorter, longer)
    )
    assert rates(shorter, **same)[:end] == rates(longer, **same)[:end]
    assert rates(shorter, **same)[end] < PEAK
    # 53 and 54 updates, half of them decay: both begin to after 27.
    assert later == end or rates(longer, **same)[end] == PEAK


@given(
    st.sampled_from(["cosine", "linear", "wsd"]),
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_schedule_rises_to_the_peak_and_falls_to_its_fraction(
    schedule: str, steps: int, warmup: float, floor: float
) -> None:
    if schedule == "wsd":
        warmup *= 0.5  # the default decay is a fifth
    if schedule == "wsd" and round(warmup * steps) > steps - max(1, round(0.2 * steps)):
        return
    found = rates(steps, schedule=schedule, warmup_fraction=warmup, final_fraction=floor)
    updates = round(warmup * steps)
    assert all(0 <= rate <= PEAK for rate in found)
    assert found[:updates] == sorted(found[:updates])
    assert found[updates:] == sorted(found[updates:], reverse=True)
    assert found[-1] == pytest.approx(PEAK if updates == steps else PEAK * floor)
