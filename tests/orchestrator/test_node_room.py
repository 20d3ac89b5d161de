"""Where trials fit on the nodes of a cluster, and which can never run at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_spec import trial_laid_out as trial

from orchestrator.tune.node_room import Need, Node, Room, need_of, room, trials_at_once
from trainers.spec import Layout
from trialstore.errors import InputError


def cpus(*numbers: float) -> list[Node]:
    return [Node({"CPU": float(number), "memory": 1e9}) for number in numbers]


def workers(number: int, each: float = 1.0) -> Need:
    return Need(number, cpus=each, gpus=0.0)


def test_a_worker_never_spans_two_nodes():
    assert room(workers(1, each=2.0), cpus(3, 3)) == Room(together=2, apart=0)


def test_a_worker_with_a_gpu_needs_both():
    nodes = [Node({"CPU": 8.0, "GPU": 1.0}), Node({"CPU": 8.0})]
    assert room(need_of(Layout(device="cuda")), nodes) == Room(together=1, apart=0)


def test_a_trial_stays_on_one_node_and_the_rest_of_several_takes_another():
    assert room(workers(4), cpus(8, 2, 2)) == Room(together=2, apart=1)


def test_a_trial_larger_than_every_node_goes_over_several():
    assert room(workers(3), cpus(2, 2)) == Room(together=0, apart=1)


def test_a_head_without_cpus_holds_nothing():
    assert room(workers(1), cpus(0, 2)).total == 2
    assert room(workers(1), [Node({"memory": 1e9})]).total == 0


def test_single_workers_fill_the_cluster_up_to_the_limit():
    many = [trial()] * 9
    assert trials_at_once(cpus(4), many, None) == 4
    assert trials_at_once(cpus(4), many, 3) == 3
    assert trials_at_once(cpus(4), many[:2], None) == 2


def test_trials_of_several_workers_count_whole():
    assert trials_at_once(cpus(5), [trial(workers=2)] * 4, None) == 2


def test_a_mixture_is_counted_as_it_fits_and_not_by_its_smallest_trial():
    mixture = [trial(workers=2), trial(), trial(workers=2), trial()]
    assert trials_at_once(cpus(2, 2), mixture, None) == 3


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"workers": 4}, "4 workers.* 1 CPU.* 2 CPU.* 2"),
        ({"cpus_per_worker": 3}, "1 worker.* 3 CPU.* 0"),
        ({"workers": 2, "device": "cuda"}, "2 workers.* 1 CPU.* 1 GPU.* 1"),
    ],
)
def test_a_trial_that_can_never_fit_is_refused_with_the_numbers(layout: dict, message: str):
    nodes = [Node({"CPU": 2.0, "GPU": 1.0})]
    with pytest.raises(InputError, match=message):
        trials_at_once(nodes, [trial(), trial(**layout)], None)


def test_where_nodes_join_on_demand_nothing_is_refused():
    assert trials_at_once(cpus(2), [trial(workers=4), trial()], None, wait_for_nodes=True) == 1


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(SIZES, st.integers(1, 4), st.integers(1, 3))
def test_no_room_is_made_up_and_none_is_overlooked(sizes: list[int], number: int, each: int):
    """Against placing trials one after the other: on one node while one can, then wherever."""
    free = [size // each for size in sizes]
    together = apart = 0
    while any(number <= slot for slot in free):
        at = next(at for at, slot in enumerate(free) if number <= slot)
        free[at] -= number
        together += 1
    while sum(free) >= number:
        for _ in range(number):
            free[next(at for at, slot in enumerate(free) if slot)] -= 1
        apart += 1
    assert room(workers(number, float(each)), cpus(*sizes)) == Room(together, apart)


@given(SIZES, st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=8))
def test_what_runs_side_by_side_never_holds_more_than_there_is(sizes: list[int], wanted: list[int]):
    specs = [trial(workers=number) for number in wanted]
    found = trials_at_once(cpus(*sizes), specs, None, wait_for_nodes=True)
    assert sum(sorted(wanted)[:found]) <= sum(sizes)
    assert found or min(wanted) > sum(sizes)
