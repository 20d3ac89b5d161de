"""The control of false recommendations over looks and groups."""

from math import log
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.verdict.false_recommendations import (
    Look,
    evidence_of_looks,
    log_e_value,
    looks_in,
    required_e_values,
    with_look,
)

RATE = 0.02


def curve(e_value: float) -> Any:
    return SimpleNamespace(log_evidence=log(e_value))


def look(*ids: str, complete: bool = True, established: bool = True) -> Look:
    return Look(frozenset(ids), complete, established)


def test_the_rule_alone_decides_on_one_group_at_its_first_look() -> None:
    passed = evidence_of_looks({0: curve(1e-6)}, {0: [look("a")]}, RATE)[0]
    assert passed.sufficient
    assert passed.required == pytest.approx(50)
    missed = evidence_of_looks({0: curve(20)}, {0: [look("a", established=False)]}, RATE)[0]
    assert not missed.sufficient


@pytest.mark.parametrize(("e_value", "enough"), [(99, False), (101, True)])
def test_a_later_look_needs_evidence_of_twice_one_over_the_rate(
    e_value: float, enough: bool
) -> None:
    looks = [look("a", established=False), look("a", "b")]
    assert evidence_of_looks({0: curve(e_value)}, {0: looks}, RATE)[0].sufficient is enough


def test_a_look_before_all_cells_have_ended_is_not_the_first_one() -> None:
    early = [look("a", complete=False)]
    assert not evidence_of_looks({0: curve(1)}, {0: early}, RATE)[0].sufficient
    then = [*early, look("a", "b")]
    assert evidence_of_looks({0: curve(1)}, {0: then}, RATE)[0].sufficient


def test_many_groups_share_the_rate() -> None:
    """Of 100 groups one that only passes the rule is not enough; all of them are."""
    none = {i: log(1e-3) for i in range(99)}
    assert required_e_values({**none, 99: log(50)}, RATE)[99] == pytest.approx(5000)
    assert required_e_values({**none, 99: log(6000)}, RATE)[99] == pytest.approx(5000)
    every = required_e_values(dict.fromkeys(range(100), log(50)), RATE)
    assert list(every.values()) == pytest.approx([50] * 100)


def test_the_same_runs_are_no_new_look_and_another_groups_looks_do_not_count() -> None:
    first, other = look("a", "b"), look("x")
    assert with_look([first, other], look("a", "b")) == (first,)
    later = look("a", "b", "c")
    assert with_look([first, other], later) == (first, later)


def test_looks_are_read_back_from_a_recommendation() -> None:
    looks = (look("a", established=False), look("a", "b"))
    written = {"groups": [{"looks": [one.to_dict() for one in looks]}, {"looks": None}, 3]}
    assert looks_in(written) == looks
    assert looks_in({}) == looks_in(None) == ()


def test_the_e_value_is_the_mean_of_both_halves() -> None:
    looks = [look("a")]
    assert log_e_value(curve(30), looks, RATE) == pytest.approx(log(50 + 15))
