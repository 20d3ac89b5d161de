"""Verdicts on sweeps over learning rates."""

from typing import Any

import pytest
from verdicts import Build, verdicts

from trialstore.storage import LocalStorage


def tunable(build_sweep: Build, rates: list[float], **options: Any) -> LocalStorage:
    """A sweep with learning rates whose losses are made up to be alike."""
    return build_sweep(seeds=[0, 1], rates=rates, **options)


@pytest.mark.long
def test_three_learning_rates_give_a_verdict_with_each_width_at_its_own(
    build_sweep: Build,
) -> None:
    tuned, *each = verdicts(tunable(build_sweep, [2e-3, 4e-3, 8e-3]))
    assert tuned.group["learning_rate"] == "tuned per width"
    assert tuned.interval is not None
    assert tuned.interval[0] < 2.8 < tuned.interval[1]
    assert [verdict.group["learning_rate"] for verdict in each] == [2e-3, 4e-3, 8e-3]
    assert any("its own learning rate" in caveat for caveat in tuned.caveats)
    assert all("tuned per width" in " ".join(verdict.caveats) for verdict in each)
    assert set(tuned.spectral.used["learning_rate"]) == {tuned.tuned.common_rate}
    assert len(tuned.to_dict()["learning_rates"]) == 7
    edges = tuned.tuned.edges
    asked = [cells for cells in tuned.run_next if "learning rate" in cells.why]
    assert bool(edges) == bool(asked)
    for cells in asked:
        assert cells.grid["learning_rate"][0] in (1e-3, 16e-3)


@pytest.mark.long
def test_two_learning_rates_are_not_tuned(build_sweep: Build) -> None:
    found = verdicts(tunable(build_sweep, [2e-3, 4e-3]))
    assert [verdict.group["learning_rate"] for verdict in found] == [2e-3, 4e-3]
    assert all(verdict.tuned is None for verdict in found)
