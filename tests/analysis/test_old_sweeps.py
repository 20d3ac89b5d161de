"""Claims about sweeps of earlier versions, kept as they were written: read, judged, never mixed."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from messages import mentions
from repository import DATA

from analysis.pipeline import analyse
from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.recommend import recommend
from analysis.verdict.summary import headline
from trialstore.errors import InputError
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]
OLD = DATA / "old-sweeps"
#: What the version that trained this sweep found in it: exponents, and share of resamples.
FIRST = {"soft_rank": (0.17, 0.03, 0.31), "hard_rank": (0.11, 0.01, 0.21)}
FIRST_SUPPORT = 0.779


@pytest.fixture
def first(tmp_path: Path) -> LocalStorage:
    """A copy of the sweep of semantics version 1."""
    shutil.copytree(OLD / "semantics-1", tmp_path / "semantics-1")
    return LocalStorage(tmp_path / "semantics-1")


def set_version(sweep: LocalStorage, trial_ids: Iterable[str], version: object) -> None:
    for trial_id in trial_ids:
        key = f"trials/{trial_id}/result.json"
        result = {**json.loads(sweep.get(key)), "semantics_version": version}
        sweep.put(key, json.dumps(result).encode())


def test_the_first_version_is_read_whole(first: LocalStorage) -> None:
    trials = load_sweep(first).trials
    assert list(trials["state"]) == ["completed"] * 11
    assert set(trials["semantics_version"]) == {1}
    assert trials["val_loss"].between(2.5, 4).all()
    assert trials[["passes", "val_loss_se", "heldout_tokens"]].isna().all(axis=None)


def test_it_is_judged_as_it_was_by_the_version_that_trained_it(first: LocalStorage) -> None:
    (verdict,) = recommend(load_sweep(first)).groups
    assert verdict.verdict == "refused"
    for rank, (slope, low, high) in FIRST.items():
        law = verdict.spectral.laws[rank]
        assert law.beta == pytest.approx(slope, abs=0.005)
        assert law.beta_interval == pytest.approx((low, high), abs=0.005)
    assert verdict.losses[0].optimum.support == pytest.approx(
        FIRST_SUPPORT, abs=0.01
    )  # moved to one budget


@pytest.mark.long
def test_its_report_says_of_which_version_it_is_and_what_is_not_known(first: LocalStorage) -> None:
    done = analyse(first)
    page = first.get("report/report.html").decode()
    (group,) = done.recommendation["groups"]
    (caveat,) = (text for text in group["caveats"] if "semantics version 1" in text)
    assert "first windows of the held-out split" in caveat
    assert "trains all of these anew" in caveat
    assert caveat in page
    assert "contents of the corpus were not recorded" in page
    assert "The run trains all cells again" in page
    assert "Finished trials are not trained again" not in page
    assert "<dt>semantics version</dt><dd>1</dd>" in page


def test_trials_of_two_versions_are_refused_with_counts_and_the_way_out(
    first: LocalStorage,
) -> None:
    ids = sorted(path.name for path in first.path("trials").iterdir())
    set_version(first, ids[:4], 2)
    wanted = (
        "7 finished trials of semantics version 1 and 4 finished trials of semantics version 2: "
    )
    with pytest.raises(InputError, match=re.escape(wanted)) as refused:
        analyse(first)
    assert "`widthlab run`" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not first.list("report")


def test_trials_without_a_result_mix_nothing(build_sweep: Build) -> None:
    waits = build_sweep(
        multipliers=[1.0, 2.0, 4.0],
        outcomes=lambda cell: "stale" if cell.multiplier == 2.0 else "completed",
    )
    assert set(load_sweep(waits).trials["semantics_version"]) == {2}


def test_a_trial_whose_version_is_no_number_has_failed_and_says_so(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0, 4.0])
    set_version(sweep, ["gpt2-pre-64-64-0"], "two")
    trial = load_sweep(sweep).trials.set_index("id").loc["gpt2-pre-64-64-0"]
    assert trial["state"] == "failed"
    assert "semantics_version 'two'" in trial["reason"]


@pytest.mark.long
def test_old_trials_beside_new_ones_are_left_out_by_name(
    first: LocalStorage, build_sweep: Build
) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0, 4.0])
    alone = recommend(load_sweep(sweep)).to_dict()["groups"]
    shutil.copytree(first.path("trials"), sweep.path("trials"), dirs_exist_ok=True)
    tables = load_sweep(sweep)
    assert headline(tables).endswith("; 11 finished trials of semantics version 1 left out")
    assert json.dumps(recommend(tables).to_dict()["groups"]) == json.dumps(alone)
    done = analyse(sweep)
    (left_out,) = done.recommendation["left_out"]
    assert mentions(left_out, "11 finished trials ... version 1")
    page = sweep.get("report/report.html").decode()
    assert "Not listed: 11 finished trials of semantics version 1 left out." in page


def test_nothing_of_the_machine_that_made_it_is_kept() -> None:
    """Paths and host names are nobody's business, and no test may come to rest on them."""
    for path in OLD.rglob("*"):
        if path.is_file():
            assert not re.search(rb"/(home|root|tmp|work|Users)/|hostname", path.read_bytes()), path
