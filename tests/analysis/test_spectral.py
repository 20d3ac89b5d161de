"""Claims about the spectral evidence of a group: what enters a law, what does not, and why."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.laws.power_law import LocalElasticity, PowerLaw
from analysis.laws.saturation import Saturation
from analysis.laws.spectral import SpectralStop, judge_spectra
from analysis.refusal import Refusal

MULTIPLIERS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def trials(
    replicates: int = 3,
    multipliers: tuple[float, ...] = MULTIPLIERS,
    onset: float = np.inf,
    noise: float = 0.01,
) -> pd.DataFrame:
    """Rows of `SweepTables.trials`: soft rank ~ D^0.9, hard rank ~ D^0.5, loss ~ D^-0.05."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for replicate in range(replicates):
        for m in multipliers:
            width = 64 * m
            end = min(width, onset)
            error = noise * rng.standard_normal(4)
            rows.append(
                {
                    "id": f"{replicate}-{m}",
                    "state": "completed",
                    "holds": ("none",),
                    "replicate": replicate,
                    "D": width,
                    "d_model": 64.0,
                    "uniform_width": True,
                    "snapshots": 5,
                    "soft_rank": end**0.9 * np.exp(error[0]),
                    "hard_rank": end**0.5 * np.exp(error[1]),
                    "hard_rank_debiased": 1.01 * end**0.52 * np.exp(error[1]),
                    "edim": end**0.7 * np.exp(error[2]),
                    "val_loss": 4 * width**-0.05 * np.exp(0.1 * error[3]),
                }
            )
    return pd.DataFrame(rows)


def change(frame: pd.DataFrame, index: int, **values: Any) -> pd.DataFrame:
    changed = frame.copy()
    for name, value in values.items():
        changed.loc[index, name] = value
    return changed


def law(found: PowerLaw | Refusal) -> PowerLaw:
    assert isinstance(found, PowerLaw)
    return found


def test_planted_exponents_are_found_and_the_asymmetry_is_their_difference() -> None:
    found = judge_spectra(trials())
    planted = {"soft_rank": 0.9, "hard_rank": 0.5, "hard_rank_debiased": 0.52, "edim": 0.7}
    for name, beta in {**planted, "asymmetry": 0.4}.items():
        low, high = law(found.laws[name]).beta_interval
        assert low < beta < high
        assert high - low < 0.05
    assert law(found.width_law).beta == pytest.approx(-0.05, abs=0.005)


def test_utilisation_exponents_are_those_of_the_ranks_less_one() -> None:
    found = judge_spectra(trials())
    for rank in ("soft", "hard"):
        of_rank = law(found.laws[f"{rank}_rank"])
        of_share = law(found.utilisation[f"{rank}_utilisation"])
        assert of_share.beta == of_rank.beta - 1
        assert of_share.beta_interval == tuple(b - 1 for b in of_rank.beta_interval)


def test_a_plateau_of_the_ranks_is_found_and_the_loss_has_none() -> None:
    found = judge_spectra(trials(onset=192.0))
    for name in ("soft_rank", "hard_rank", "edim"):
        test = found.saturation[name]
        assert isinstance(test, Saturation)
        assert test.saturates
        assert test.onset_interval[0] <= 192 <= test.onset_interval[1]
    of_loss = found.saturation["val_loss"]
    assert isinstance(of_loss, Saturation)
    assert not of_loss.saturates
    assert isinstance(found.stop, SpectralStop)
    assert found.stop.multiplier == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"state": "collapsed"}, "collapsed"),
        ({"state": "diverged"}, "diverged"),
        ({"state": "waiting"}, "waiting"),
        ({"snapshots": 0, "soft_rank": np.nan, "hard_rank": np.nan}, "no spectra"),
        ({"uniform_width": False}, "different width"),
        ({"d_model": 96.0}, "d_model"),
    ],
)
def test_a_cell_that_cannot_enter_is_counted_with_its_reason(
    values: dict[str, Any], why: str
) -> None:
    found = judge_spectra(change(trials(), 3, **values))
    ((reason, count),) = found.excluded.items()
    assert why in reason
    assert count == 1
    assert len(found.used) == 20
    assert law(found.laws["soft_rank"]).beta == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(
    ("rank", "why"), [(np.nan, "not finite"), (0.0, "not positive"), (-2.0, "not positive")]
)
def test_a_rank_without_a_logarithm_is_counted_by_the_laws_it_would_enter(
    rank: float, why: str
) -> None:
    found = judge_spectra(change(trials(), 3, hard_rank=rank))
    assert law(found.laws["hard_rank"]).excluded == {why: 1}
    assert sum(law(found.laws["asymmetry"]).excluded.values()) == 1
    assert law(found.laws["soft_rank"]).excluded == {}
    assert law(found.laws["hard_rank"]).beta == pytest.approx(0.5, abs=0.03)


def test_a_width_without_a_debiased_rank_leaves_no_spectral_stop() -> None:
    frame = trials()
    frame.loc[frame["D"] == 512, "hard_rank_debiased"] = np.nan
    found = judge_spectra(frame)
    assert isinstance(found.stop, Refusal)
    assert "debiased" in found.stop.reason
    assert found.stop.next_step == "raise `spectra.tokens`"
    assert law(found.laws["hard_rank"]).excluded == {}
    assert law(found.laws["hard_rank_debiased"]).excluded == {"not finite": 3}


def test_a_missing_loss_is_counted_by_the_width_law() -> None:
    found = judge_spectra(change(trials(), 3, val_loss=np.nan))
    assert law(found.width_law).excluded == {"not finite": 1}
    assert law(found.width_law).points == 20


def test_a_missing_replicate_does_not_shift_a_law() -> None:
    whole, part = trials(noise=0.0), trials(noise=0.0).drop(index=[0, 8])
    part.loc[part["replicate"] == 1, "soft_rank"] *= 1.3  # its luck, at every width
    whole.loc[whole["replicate"] == 1, "soft_rank"] *= 1.3
    of_part, of_whole = (law(judge_spectra(frame).laws["soft_rank"]) for frame in (part, whole))
    assert of_part.beta == pytest.approx(of_whole.beta, abs=1e-9)


def test_the_same_cell_twice_counts_once() -> None:
    once, twice = trials(), pd.concat([trials(), trials()], ignore_index=True)
    one, two = (law(judge_spectra(frame).laws["soft_rank"]) for frame in (once, twice))
    assert two.beta_interval == pytest.approx(one.beta_interval)
    assert two.excluded == {"repeats of a cell, averaged": 21}


@pytest.mark.parametrize(
    ("frame", "says", "next_step"),
    [
        (trials(multipliers=(4.0,)), "there is 1", None),
        (trials().iloc[:0], "no cells at fixed d_model", "add `none` to `match`"),
        (trials().assign(state="diverged"), "21 diverged", None),
    ],
    ids=["one width", "no cells", "no completed cells"],
)
def test_one_width_and_no_cells_are_refused_with_what_to_run(
    frame: pd.DataFrame, says: str, next_step: str | None
) -> None:
    found = judge_spectra(frame)
    for refusal in (*found.laws.values(), found.width_law):
        assert isinstance(refusal, Refusal)
        assert says in refusal.reason
        assert refusal.next_step == next_step
    assert all(isinstance(test, Refusal) for test in found.saturation.values())
    assert isinstance(found.stop, Refusal)


def test_five_widths_have_laws_but_no_saturation_test() -> None:
    found = judge_spectra(trials(multipliers=MULTIPLIERS[:5]))
    assert isinstance(found.elasticity["edim"], LocalElasticity)
    law(found.laws["edim"])
    test = found.saturation["edim"]
    assert isinstance(test, Refusal)
    assert "there are 5" in test.reason
