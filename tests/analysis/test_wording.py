"""Claims about how numbers are written."""

import pytest

from analysis.figures.style import spread_apart
from analysis.wording import duration, flops, group_label, large, percent, plural


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (999, "999"), (98_304, "98.3k"), (999_900, "1M"), (1.339e9, "1.339B")],
)
def test_large_counts_have_a_suffix(number: float, text: str) -> None:
    assert large(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.4, "3 s"),
        (119, "119 s"),
        (600, "10 min"),
        (7199, "120 min"),
        (8000, "2.2 h"),
        (48 * 3600, "2.0 days"),
        (1e12, "1.16e+07 days"),
    ],
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_shares_flops_and_counts() -> None:
    assert (percent(0.975), percent(1.0), percent(0.322)) == ("97.5 %", "100 %", "32.2 %")
    assert flops(1.98e13) == "2.0e13 FLOPs"
    assert (plural(1, "trial"), plural(3, "trial")) == ("1 trial", "3 trials")


def test_a_group_is_named_by_its_values_and_what_they_are() -> None:
    group = {"architecture": "gpt2", "norm": "pre", "depth": 2, "learning_rate": 0.006}
    assert group_label(group) == "gpt2, pre, depth 2, learning rate 0.006"
    assert group_label({}) == "all trials"
    assert group_label({"architecture": "ngpt", "norm": "ngpt", "mix_alpha": None}) == "ngpt"


def test_labels_are_moved_apart_as_little_as_needed_and_keep_their_order() -> None:
    assert spread_apart([0.1, 0.9], 0.1) == [0.1, 0.9]
    assert spread_apart([0.50, 0.50], 0.1) == pytest.approx([0.45, 0.55])
    assert spread_apart([0.9, 0.52, 0.50, 0.1], 0.1) == pytest.approx([0.9, 0.56, 0.46, 0.1])
