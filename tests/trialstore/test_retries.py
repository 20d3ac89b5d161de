"""Which attempts are charged, how long the next one waits, and when there is none."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialstore.claims import take
from trialstore.records import FAILURE, BrokenRecordError, encode_json, manifest_key
from trialstore.retries import (
    FIRST_DELAY_S,
    LONGEST_DELAY_S,
    RETRIES,
    Budget,
    Open,
    Retries,
    how_it_ended,
    newest_step,
    opened,
    read_retries,
    write_retries,
)
from trialstore.storage import LocalStorage

BUDGET = Budget(failures=2, preemptions=5)


@pytest.fixture
def trial(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def failed(trial: LocalStorage, attempt: int, kind: str | None = "error") -> None:
    trial.put(FAILURE, encode_json({"attempt": attempt, "kind": kind, "message": "no"}))


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        ("error", "failure"),
        (None, "failure"),  # of an earlier version, or of somebody else's making
        ("out_of_memory", "out_of_memory"),
        ("peer_lost", "preemption"),
        ("storage_away", "preemption"),
        ("input_away", "preemption"),
        ("input", "failure"),
        ("no_room", "uncharged"),
    ],
)
def test_what_an_attempt_said_itself_is_how_it_ended(trial, kind, ending) -> None:
    failed(trial, 3, kind)
    assert how_it_ended(trial, Open(3, "driver", 0), "driver") == ending


def test_one_that_said_nothing_was_preempted_unless_its_driver_went_with_it(trial) -> None:
    assert how_it_ended(trial, Open(1, "driver", 0), "driver") == "preemption"
    assert how_it_ended(trial, Open(1, "driver", 0), "the next driver") == "uncharged"


def test_a_failure_is_charged_whoever_drives(trial) -> None:
    failed(trial, 1)
    assert how_it_ended(trial, Open(1, "driver", 0), "the next driver") == "failure"


@pytest.mark.parametrize("attempt", [2, "3", None, True, 3.5])
def test_what_an_earlier_attempt_said_is_not_this_ones(trial, attempt) -> None:
    failed(trial, attempt)
    assert how_it_ended(trial, Open(3, "driver", 0), "driver") == "preemption"


def test_a_failure_that_lay_there_when_the_attempt_began_is_not_this_ones(trial) -> None:
    """Neither had its lease yet, and both have the number of the first claim."""
    said = {"attempt": 1, "kind": "error", "message": "no", "time_ms": 5}
    trial.put(FAILURE, encode_json(said))
    begun = opened(trial, Retries(), "driver").open
    assert begun.attempt == 1
    take(trial)
    assert how_it_ended(trial, begun, "driver") == "preemption"
    trial.put(FAILURE, encode_json({**said, "time_ms": 3}))  # the clock of its node is slow
    assert how_it_ended(trial, begun, "driver") == "failure"


def test_the_two_budgets_are_counted_apart() -> None:
    retries = Retries()
    for ending in ("preemption", "failure", "preemption", "out_of_memory", "uncharged", "failure"):
        retries = retries.ended(ending, step=0)
        assert retries.exhausted(BUDGET) is None
    assert (retries.failures, retries.preemptions, retries.out_of_memory) == (2, 2, 1)
    assert "failed 3 times" in str(retries.ended("failure", 0).exhausted(BUDGET))
    for _ in range(4):
        retries = retries.ended("preemption", 0)
    assert retries.exhausted(BUDGET) == "preempted 6 times, and resources.preemptions is 5"


def test_no_budget_is_no_second_attempt() -> None:
    none = Budget(0, 0)
    assert Retries().exhausted(none) is None
    assert "failed once" in str(Retries().ended("failure", 0).exhausted(none))
    assert "preempted once" in str(Retries().ended("preemption", 0).exhausted(none))


def after(endings: int, progress: bool = False) -> Retries:
    retries = Retries()
    for number in range(endings):
        step = number if progress else 0
        retries = Retries(**{**vars(retries), "open": Open(number + 1, "d", step)})
        retries = retries.ended("failure", step + progress)
    return retries


def test_delays_double_up_to_the_longest() -> None:
    assert after(0).delay_s("0a1b") == 0.0
    longest = [min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**number) for number in range(1, 12)]
    for number, most in enumerate(longest, start=1):
        assert most / 2 <= after(number).delay_s("0a1b") <= most
    assert after(10_000).delay_s("0a1b") <= LONGEST_DELAY_S


def test_whoever_gets_on_between_two_preemptions_hardly_waits() -> None:
    assert after(40, progress=True).delay_s("0a1b") <= FIRST_DELAY_S


def test_trials_of_one_storm_do_not_come_back_together() -> None:
    assert len({after(3).delay_s(f"{number:012x}") for number in range(100)}) == 100


@given(
    counts=st.tuples(*[st.integers(0, 2**40)] * 4),
    attempt=st.none()
    | st.builds(
        Open,
        st.integers(1, 99),
        st.none() | st.text(),
        st.just(4),
        st.none() | st.integers(0, 2**41),
    ),
)
def test_the_count_survives_the_driver(tmp_path_factory, counts, attempt) -> None:
    trial = LocalStorage(tmp_path_factory.mktemp("trial"))
    retries = Retries(*counts, open=attempt)
    write_retries(trial, retries)
    assert read_retries(trial) == retries


def test_an_attempt_is_noted_with_its_number_and_the_checkpoint_it_has(trial) -> None:
    take(trial)
    trial.put(manifest_key(40), b"{}")
    assert newest_step(trial) == 40
    assert opened(trial, Retries(), "driver").open == Open(2, "driver", 40)


@pytest.mark.parametrize(
    "change",
    [{"failures": -3}, {"preemptions": "0"}, {"open": {}}, {"in_a_row": None}, {"open": [1]},
     {"open": {"attempt": 1, "driver": 7, "step": 0}},
     {"open": {"attempt": 1, "driver": "d", "step": 0, "failure_ms": "now"}}],
)  # fmt: skip
def test_a_count_that_somebody_else_has_written_is_not_believed(trial, change) -> None:
    counts = {"failures": 0, "preemptions": 0, "out_of_memory": 0, "in_a_row": 0, "open": None}
    trial.put(RETRIES, encode_json({**counts, **change}))
    with pytest.raises(BrokenRecordError, match=r"retries\.json has"):
        read_retries(trial)
