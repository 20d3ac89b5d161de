"""Claims: of any number that take a trial at once, one may write, and knows it."""

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from owners import name_owners
from storages import ScriptedStorage, meeting

from trialstore import claims as fence_module
from trialstore.claims import Claim, Fence, LeaseLostError, claims, newest_attempt, take
from trialstore.records import LEASE, encode_json
from trialstore.storage import LocalStorage


def test_every_claim_is_one_higher_and_only_the_newest_holds(trial) -> None:
    fences = [Fence(trial, take(trial)) for _ in range(3)]
    assert [fence.claim.attempt for fence in fences] == [1, 2, 3]
    assert [fence.holds() for fence in fences] == [False, False, True]
    with pytest.raises(LeaseLostError, match="attempt 2 "):
        fences[1].check()


def test_a_trial_of_an_earlier_version_is_counted_on_from_its_lease(trial) -> None:
    trial.put(LEASE, encode_json({"attempt": 4}))
    assert newest_attempt(trial) == 4
    assert take(trial).attempt == 5


@pytest.mark.parametrize("lease", [b"{", b"[]", b'{"attempt": "9"}', b'{"attempt": -3}', b"{}"])
def test_a_lease_that_says_no_attempt_counts_as_none(trial, lease) -> None:
    trial.put(LEASE, lease)
    assert take(trial).attempt == 1


@pytest.mark.parametrize(
    "key",
    ["attempts/1-a.json", "attempts/000001-../x.json", "attempts/x", "lease.json",
     "attempts/000001-" + "g" * 32 + ".json", "attempts/0000000001-" + "a" * 32 + ".json"],
)  # fmt: skip
def test_other_objects_are_no_claims(trial, key) -> None:
    assert Claim.parse(key) is None


@pytest.mark.parametrize("takers", [2, 8])
def test_of_many_that_take_a_trial_at_once_one_holds_it(tmp_path, takers) -> None:
    trial = ScriptedStorage(tmp_path)
    trial.before("put", meeting(takers))  # none sees another before all have claimed

    def attempt(_: int) -> Fence | None:
        try:
            return Fence(trial, take(trial))
        except LeaseLostError:
            return None

    with ThreadPoolExecutor(takers) as pool:
        taken = [fence for fence in pool.map(attempt, range(takers)) if fence]
    assert sum(fence.holds() for fence in taken) == 1
    numbers = [fence.claim.attempt for fence in taken]
    assert len(set(numbers)) == len(numbers)  # or their parts would have the same names


@pytest.mark.parametrize("moment", [1, 2, 3])
@pytest.mark.parametrize("names", list(permutations("ab")))
def test_wherever_two_takers_meet_no_two_hold_and_no_number_is_used_twice(
    tmp_path, monkeypatch, moment, names
) -> None:
    name_owners(monkeypatch, fence_module, names)
    trial, taken = ScriptedStorage(tmp_path), []

    def attempt() -> None:
        try:
            taken.append(Fence(trial, take(trial)))
        except LeaseLostError:
            return

    # Another taker runs to its end right after a call of this one.
    trial.after("put list", lambda _: attempt(), skip=moment - 1, times=1)
    attempt()
    holding = [fence for fence in taken if fence.holds()]
    assert len(holding) == 1
    assert len({fence.claim.attempt for fence in taken}) == len(taken)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["take", "late put"]), max_size=12))
@pytest.mark.long
def test_nothing_that_an_older_attempt_still_does_brings_it_back(tmp_path_factory, story) -> None:
    trial = LocalStorage(tmp_path_factory.mktemp("trial"))
    fences = [Fence(trial, take(trial))]
    for event in story:
        if event == "take":
            fences.append(Fence(trial, take(trial)))
        else:
            for fence in fences:
                trial.put(LEASE, encode_json({"attempt": fence.claim.attempt}))
                trial.put(fence.claim.key, b"{}")
        assert [fence.holds() for fence in fences] == [False] * (len(fences) - 1) + [True]
        assert claims(trial) == [fence.claim for fence in fences]
