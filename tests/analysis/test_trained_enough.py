"""Claims about verdicts on trials whose training was unstable, unfinished or without progress."""

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.pipeline import analyse
from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.recommend import recommend
from analysis.verdict.trained_enough import UnstableRefusal, judge_training
from trialstore import records
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]
FIRST = "learning rate needs attention first"
WIDTHS, SEEDS = 7, 3


def judged(sweep: LocalStorage) -> GroupVerdict:
    (verdict,) = recommend(load_sweep(sweep)).groups
    return verdict


def told(verdict: GroupVerdict, words: str) -> list[str]:
    return [caveat for caveat in verdict.caveats if words in caveat]


def spike(sweep: LocalStorage, trial_id: str, rise: float = 1.0, until: int = 160) -> None:
    """Raise the training losses of a trial from update 120 on, up to `until`."""
    trial = sweep.child(f"trials/{trial_id}")
    result = records.get_result(trial)
    assert result is not None
    rows = records.read_part(trial, result["records"]["metrics"]).to_pylist()
    for row in rows:
        if row["kind"] == "train" and 120 <= row["step"] < until:
            row["train_loss"] += rise
    records.put_part(trial, "metrics", 1, rows)


def matched_ids(sweep: LocalStorage) -> list[str]:
    trials = load_sweep(sweep).trials
    return [row["id"] for _, row in trials.iterrows() if "params" in row["holds"]]


@pytest.fixture(scope="module")
def sweeps(
    build_sweep_in: Build, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, LocalStorage]:
    """The same sweep of 7 widths and 3 seeds with spikes in 0, 4 and 8 of its 21 trials."""
    found = {}
    for count in (0, 4, 8):
        folder: Path = tmp_path_factory.mktemp(f"spiked-{count}")
        found[count] = build_sweep_in(folder, seeds=range(SEEDS), holds=("params",))
        for trial_id in matched_ids(found[count])[:count]:
            spike(found[count], trial_id)
    return found


@pytest.fixture(scope="module")
def verdicts(sweeps: dict[int, LocalStorage]) -> dict[int, GroupVerdict]:
    return {count: judged(sweep) for count, sweep in sweeps.items()}


def test_stable_trials_have_their_verdict_and_no_caveat(verdicts: dict[int, GroupVerdict]) -> None:
    assert verdicts[0].verdict == "recommended"
    assert not told(verdicts[0], FIRST)
    training = verdicts[0].to_dict()["evidence"]["training"]
    assert (training["entered"], training["judged"], training["unstable"]) == (21, 21, [])
    assert training["peak_learning_rates"] == [6e-3]


def test_the_table_of_trials_says_which_are_unstable(sweeps: dict[int, LocalStorage]) -> None:
    trials = load_sweep(sweeps[4]).trials
    unstable = trials["unstable"].to_numpy(bool)
    assert unstable.sum() == 4
    assert trials.loc[unstable, "spike_rise"].to_numpy() == pytest.approx(1.0, abs=0.15)
    assert trials.loc[unstable, "spike_share"].to_numpy() == pytest.approx(40 / 250, abs=0.02)
    assert set(trials.loc[~unstable, "spikes"]) == {0}
    assert np.isnan(trials["grad_norm_spikes"]).all()  # no norm is recorded
    assert np.isnan(trials["unigram_loss"]).all()


def test_a_few_unstable_trials_are_the_first_caveat(verdicts: dict[int, GroupVerdict]) -> None:
    verdict = verdicts[4]
    assert FIRST in verdict.caveats[0]
    assert "4 of 21 trials" in verdict.caveats[0]
    assert verdict.to_dict()["evidence"]["loss"]["params"]["fitted"]
    assert len(verdict.to_dict()["evidence"]["training"]["unstable"]) == 4


def test_more_than_a_third_of_unstable_trials_are_refused(
    verdicts: dict[int, GroupVerdict],
) -> None:
    verdict = verdicts[8]
    assert verdict.verdict == "refused"
    assert "8 of 21 trials that enter are unstable" in verdict.sentence
    loss = verdict.to_dict()["evidence"]["loss"]["params"]
    assert (loss["fitted"], loss["obstacle"]) == (False, "unstable")
    optima = [found.to_dict()["optimum"] for found in verdict.at_budgets]
    assert optima == [None] * len(optima)
    assert FIRST in verdict.caveats[0]


@pytest.mark.parametrize("count", [4, 8])
def test_lower_rates_are_run_next_in_place_of_replicates(
    verdicts: dict[int, GroupVerdict], count: int
) -> None:
    (cells,) = verdicts[count].run_next
    assert cells.grid["learning_rate"] == [3e-3, 1.5e-3]
    assert cells.grid["seed"] == [0]
    assert len(cells.grid["width_multiplier"]) == WIDTHS
    assert cells.trials == 2 * WIDTHS
    assert "learning_rate: [0.003, 0.0015]" in cells.to_yaml()
    assert "replicate" not in cells.why


def test_the_report_names_the_unstable_trials(
    sweeps: dict[int, LocalStorage], undrawn: None
) -> None:
    for count in (0, 4):
        analyse(sweeps[count])
    page = unescape(sweeps[4].get("report/report.html").decode())
    section = page[page.index("Stability of training") : page.index("<h2>Data")]
    assert all(trial_id in section for trial_id in matched_ids(sweeps[4])[:4])
    assert "4 are unstable" in section
    healthy = unescape(sweeps[0].get("report/report.html").decode())
    assert "0 are unstable, 0 spiked briefly and recovered, and 21 had no spike" in healthy
    head = sweeps[4].get("report/tables/trials.csv").decode().partition("\n")[0].split(",")
    assert {"spikes", "spike_share", "unstable", "fall_last_tenth", "unigram_loss"} <= set(head)


@pytest.mark.long
def test_a_fixed_rate_beside_a_lower_one_asks_for_no_further_rate(build_sweep: Build) -> None:
    sweep = build_sweep(rates=[1e-3, 6e-3], holds=("params",), seeds=range(2))
    trials = load_sweep(sweep).trials
    for trial_id in trials.loc[trials["learning_rate"] == 6e-3, "id"]:
        spike(sweep, trial_id)
    low, high = recommend(load_sweep(sweep)).groups
    assert (low.group["learning_rate"], high.group["learning_rate"]) == (1e-3, 6e-3)
    assert not told(low, FIRST)
    assert high.verdict == "refused"
    assert high.run_next == ()


# --- from a table of trials -----------------------------------------------------------------


def entered(losses: list[float], **columns: Any) -> pd.DataFrame:
    """Trials that enter, one per width."""
    count = len(losses)
    return pd.DataFrame(
        {
            "id": [f"trial{i}" for i in range(count)],
            "width_multiplier": np.geomspace(1, 8, count),
            "val_loss": losses,
            "spikes": [0.0] * count,
            "unstable": [False] * count,
            **columns,
        }
    )


ALTERNATING = [5.02, 4.41, 4.98, 5.01, 4.43, 4.38]


def test_bunches_where_the_unstable_trials_are_refuse() -> None:
    upper = [loss > 4.7 for loss in ALTERNATING]
    one = [flag and i > 0 for i, flag in enumerate(upper)]  # two of three, a third of six
    found = judge_training(entered(ALTERNATING, unstable=one))
    assert isinstance(found.refusal, UnstableRefusal)
    assert "two bunches" in found.refusal.reason
    assert "66.7 %" in found.refusal.reason


def test_bunches_without_known_spikes_are_a_caveat() -> None:
    found = judge_training(entered(ALTERNATING))
    assert found.refusal is None
    assert found.needs_lower_rate
    assert judge_training(entered(sorted(ALTERNATING)[:3] * 2)).needs_lower_rate is False


@pytest.mark.parametrize(("unstable", "refused"), [(2, False), (3, True)])
def test_a_third_of_unstable_trials_is_not_more_than_a_third(unstable: int, refused: bool) -> None:
    flags = [i < unstable for i in range(6)]
    found = judge_training(entered([3.4] * 6, unstable=flags))
    assert (found.refusal is not None) is refused


def test_trials_without_records_are_unknown_not_stable() -> None:
    found = judge_training(entered([3.4] * 6, unstable=[None] * 6, spikes=[np.nan] * 6))
    assert (found.entered, found.judged, found.unstable) == (6, 0, ())


def with_data(sweep: LocalStorage, **data: Any) -> None:
    for key in sweep.list("trials"):
        if key.endswith(records.RESULT):
            result = json.loads(sweep.get(key))
            result["data"] |= data
            sweep.put(key, records.encode_json(result))


def test_losses_near_the_unigram_loss_are_a_caveat(build_sweep: Build) -> None:
    sweep = build_sweep(holds=("params",))
    with_data(sweep, unigram_loss=6.2)
    assert not told(judged(sweep), "unigram")
    with_data(sweep, unigram_loss=3.7)
    (caveat,) = told(judged(sweep), "unigram")
    assert "7 of 7 trials" in caveat


def test_a_loss_that_falls_by_more_than_the_widths_differ_is_a_caveat() -> None:
    flat = entered([3.40, 3.402, 3.401, 3.403, 3.404, 3.402], fall_last_tenth=[0.03] * 6)
    steep = entered([3.6, 3.5, 3.4, 3.4, 3.5, 3.6], fall_last_tenth=[0.03] * 6)
    assert judge_training(flat).fall > judge_training(flat).differences
    assert judge_training(steep).fall < judge_training(steep).differences
    assert judge_training(flat).differences == pytest.approx(0.002)
