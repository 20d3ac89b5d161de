"""Claims about what a reader is told before acting on a verdict."""

from collections.abc import Callable

import pytest
import yaml

from analysis.tables.sweep_tables import load_sweep
from analysis.verdict.group_verdict import GroupVerdict
from analysis.verdict.recommend import recommend
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]


def judged(sweep: LocalStorage) -> GroupVerdict:
    (verdict,) = recommend(load_sweep(sweep)).groups
    return verdict


def told(verdict: GroupVerdict, words: str) -> list[str]:
    return [caveat for caveat in verdict.caveats if words in caveat]


@pytest.mark.parametrize(("seeds", "silent"), [([0], False), ([0, 1], False), ([0, 1, 2], True)])
@pytest.mark.long
def test_fewer_than_three_replicates_cannot_show_slopes_that_differ(
    build_sweep: Build, seeds: list[int], silent: bool
) -> None:
    verdict = judged(build_sweep(seeds=seeds, multipliers=[1.0, 2.0, 4.0]))
    assert (told(verdict, "slopes of the rank laws") == []) is silent


def test_a_cell_that_another_trial_is_already_is_counted_and_told(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0, 4.0])
    content = yaml.safe_load(sweep.get("sweep.yaml"))
    twice = dict(content["resolved"]["trials"][0])
    content["resolved"]["trials"].append({**twice, "id": "twice"})
    sweep.put("sweep.yaml", yaml.safe_dump(content).encode())
    for part in sweep.list(f"trials/{twice['id']}"):
        sweep.put(part.replace(twice["id"], "twice"), sweep.get(part))
    verdict = judged(sweep)
    assert verdict.to_dict()["evidence"]["cells"]["duplicate"] == 1
    (caveat,) = told(verdict, "duplicate")
    assert "1 of 6" in caveat


@pytest.mark.long
def test_a_plateau_of_undersampled_spectra_is_doubted(build_sweep: Build) -> None:
    seeds, multipliers = [0, 1, 2], [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    levels_off = {("gpt2", "pre"): {"decay": 0.3, "directions": 150}}
    few = judged(build_sweep(levels_off, seeds=seeds, multipliers=multipliers, samples=600))
    enough = judged(
        build_sweep(levels_off, seeds=seeds, multipliers=multipliers, name="enough", samples=20_000)
    )
    assert told(few, "plateau of")
    assert not told(enough, "plateau of")
    assert told(few, "undersampled")
