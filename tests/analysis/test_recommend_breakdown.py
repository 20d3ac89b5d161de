"""Verdicts on widths that broke down."""

from collections.abc import Callable
from typing import Any

import pytest
from verdicts import Build, verdicts


def breaking_down(*multipliers: float) -> Callable[[Any], str]:
    """The first replicate of these widths diverges."""
    return lambda cell: (
        "diverged" if cell.multiplier in multipliers and cell.seed == 0 else "completed"
    )


@pytest.mark.long
def test_widths_that_broke_down_in_the_middle_part_those_that_are_equivalent(
    build_sweep: Build,
) -> None:
    (verdict,) = verdicts(build_sweep(seeds=[0, 1, 2], outcomes=breaking_down(2.67)))
    assert verdict.width_multiplier == pytest.approx(2.0)
    assert "2x and 4x are equivalent" in verdict.sentence


@pytest.mark.long
def test_a_headline_beyond_the_tolerance_says_why_no_other_is_within_it(
    build_sweep: Build,
) -> None:
    (verdict,) = verdicts(build_sweep(seeds=[0, 1, 2], outcomes=breaking_down(2, 2.67, 4)))
    assert verdict.width_multiplier is not None
    (caveat,) = (text for text in verdict.caveats if text.startswith("No width"))
    assert "collapsed or diverged" in caveat
    assert "noise" not in caveat
    assert "without a collapsed or diverged replicate" in verdict.rule


@pytest.mark.long
def test_where_every_width_broke_down_narrower_ones_are_asked_for(build_sweep: Build) -> None:
    (verdict,) = verdicts(build_sweep(seeds=[0, 1, 2], outcomes=lambda cell: "diverged"))
    (cells,) = verdict.run_next
    assert "narrower" in cells.why
    assert cells.grid["width_multiplier"] == [0.5, 0.75]
