"""Claims about the spectral summary: which snapshots and layers a trial's number is of."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.tables.aggregate import aggregate
from analysis.tables.aggregation import LAYER_STATISTICS, Aggregation
from trialstore.errors import InputError
from trialstore.records import SPECTRUM_COLUMNS


def spectra(ranks: dict[int, list[float]], trial: str = "a", **columns: Any) -> pd.DataFrame:
    """Rows of one trial from the ranks of each layer at steps 10, 20, ..."""
    rows = [
        {
            **dict.fromkeys((*SPECTRUM_COLUMNS, "hard_rank_debiased"), 2.0),
            "id": trial,
            "step": 10 * (i + 1),
            "site": "post",
            "layer": layer,
            "n_over_d": 20.0,
            "status": "well sampled",
            "soft_rank": rank,
            **columns,
        }
        for layer, of_layer in ranks.items()
        for i, rank in enumerate(of_layer)
    ]
    return pd.DataFrame(rows)


LAYERS = {0: [9.0, 3.0, 5.0, 4.0], 1: [90.0, 30.0, 50.0, 20.0], 2: [7.0, 8.0, 100.0, 6.0]}


@pytest.mark.parametrize(
    ("last", "layers", "expected"),
    [
        (3, "median", 8.0),  # of 4, 30, 8
        (3, "mean", 14.0),
        (3, "first", 4.0),
        (3, "deepest", 8.0),
        (1, "median", 6.0),  # of 4, 20, 6
        (99, "deepest", 7.5),  # of 7, 8, 100, 6
    ],
)
def test_each_layer_is_its_median_over_the_last_snapshots(
    last: int, layers: Any, expected: float
) -> None:
    found = aggregate(spectra(LAYERS), Aggregation(last, layers)).loc["a"]
    assert found["soft_rank"] == expected
    assert found["snapshots"] == min(last, 4)


def test_every_trial_is_summed_up_by_itself() -> None:
    both = pd.concat([spectra({0: [3.0, 5.0]}, "a"), spectra({0: [50.0]}, "b")])
    found = aggregate(both, Aggregation(2))
    assert found["soft_rank"].to_dict() == {"a": 4.0, "b": 50.0}
    assert found["snapshots"].to_dict() == {"a": 2, "b": 1}


def test_other_sites_and_untrained_weights_never_enter() -> None:
    rows = pd.concat(
        [
            spectra({0: [4.0]}),
            spectra({0: [900.0]}, site="pre"),
            spectra({0: [900.0]}).assign(step=0),
        ]
    )
    assert aggregate(rows, Aggregation()).loc["a", "soft_rank"] == 4.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -3.0, 0.5])
def test_a_rank_that_no_spectrum_has_is_left_out_and_counted(bad: float) -> None:
    found = aggregate(spectra({0: [4.0, bad, 6.0], 1: [5.0, 5.0, 5.0]}), Aggregation()).loc["a"]
    assert found["soft_rank"] == 5.0
    assert found["invalid_spectra"] == 1
    assert found["snapshots"] == 3


def test_a_hard_rank_without_a_debiased_one_is_counted_by_itself() -> None:
    rows = spectra({0: [4.0, 4.0, 4.0]})
    rows["hard_rank_debiased"] = [2.5, np.nan, 3.5]
    found = aggregate(rows, Aggregation()).loc["a"]
    assert (found["hard_rank"], found["hard_rank_debiased"]) == (2.0, 3.0)
    assert (found["not_debiased"], found["invalid_spectra"]) == (1, 0)


@pytest.mark.parametrize("layers", ["first", "deepest"])
def test_a_layer_without_a_number_is_not_replaced_by_its_neighbour(layers: Any) -> None:
    nothing = {0: [np.nan], 1: [5.0], 2: [np.nan]}
    found = aggregate(spectra(nothing), Aggregation(1, layers)).loc["a"]
    assert np.isnan(found["soft_rank"])
    assert found["invalid_spectra"] == 2


def test_layers_measured_at_different_steps_each_have_their_own_last() -> None:
    late = spectra({1: [1.0, 7.0]}).assign(step=[15, 25])
    found = aggregate(pd.concat([spectra({0: [1.0, 3.0]}), late]), Aggregation(1)).loc["a"]
    assert found["soft_rank"] == 5.0
    assert found["snapshots"] == 1


def test_no_spectra_make_an_empty_summary_with_every_column() -> None:
    full = spectra({0: [4.0]})
    empty = aggregate(full.iloc[:0], Aggregation())
    assert empty.empty
    assert list(empty.columns) == list(aggregate(full, Aggregation()).columns)


@settings(max_examples=30)
@given(
    ranks=st.lists(st.lists(st.floats(1, 1e6), min_size=4, max_size=4), min_size=1, max_size=5),
    last=st.integers(1, 6),
    layers=st.sampled_from(LAYER_STATISTICS),
    shuffle=st.randoms(use_true_random=False),
)
@pytest.mark.long
def test_a_summary_is_within_its_ranks_and_knows_no_order_of_rows(
    ranks: list[list[float]], last: int, layers: Any, shuffle: Any
) -> None:
    rows = spectra(dict(enumerate(ranks)))
    found = aggregate(rows, Aggregation(last, layers)).loc["a", "soft_rank"]
    used = [rank for layer in ranks for rank in layer[-last:]]
    assert min(used) * (1 - 1e-12) <= found <= max(used) * (1 + 1e-12)
    order = list(range(len(rows)))
    shuffle.shuffle(order)
    again = aggregate(rows.iloc[order], Aggregation(last, layers)).loc["a", "soft_rank"]
    assert again == pytest.approx(found)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"aggregate_last": 0}, "aggregate_last is 0"),
        ({"aggregate_last": "five"}, "aggregate_last is 'five'"),
        ({"aggregate_last": True}, "aggregate_last is True"),
        ({"aggregate_layers": "widest"}, "'widest'.*median, mean, first, deepest"),
    ],
)
def test_an_aggregation_that_there_is_none_of_is_refused(
    section: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Aggregation.of(section)


def test_what_is_chosen_goes_before_the_file_and_both_before_the_default() -> None:
    assert Aggregation.of({}) == Aggregation(5, "median")
    assert Aggregation.of({"aggregate_last": 3}, last=None) == Aggregation(3, "median")
    chosen = Aggregation.of({"aggregate_last": 3, "aggregate_layers": "mean"}, last=1)
    assert chosen == Aggregation(1, "mean")
    assert chosen.text == "of each layer the last snapshot, then the mean over layers"
    assert Aggregation().text == (
        "of each layer the median of the last 5 snapshots, then the median over layers"
    )
