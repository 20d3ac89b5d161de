"""When trials are handed to Ray: in the sweep's order, as many as the nodes hold and one more of
each size, as nodes come and go."""

import logging
import threading
from collections.abc import Sequence

import pytest
from messages import mentions
from small_spec import small_spec

from orchestrator.grid.branches import Branch
from orchestrator.sweep.config import ResourcesSection
from orchestrator.tune.node_room import APART, TOGETHER, Node
from orchestrator.tune.trial_request import TRIAL_ID, TrialRequest, request_of
from trainers.spec import Layout, TrialSpec
from trialstore.retries import Budget

pytest.importorskip("ray")
from ray import cloudpickle
from ray.tune.experiment import Trial

from orchestrator.tune import trial_queue as queue_module
from orchestrator.tune.trial_queue import QueueStopper, TrialQueue, reserved, trial_id


class Sweep:
    """A queue, and what Tune would do with it. Trials are named by their place in the sweep."""

    def __init__(
        self,
        workers: Sequence[int],
        nodes: Sequence[float],
        *,
        limit: int | None = None,
        after: dict[str, str] | None = None,
        wait_for_nodes: bool = False,
    ) -> None:
        self.nodes = list(nodes)
        self.stop = False
        self.storage_fails = False
        specs = [
            small_spec(1, replicate=at).model_copy(update={"layout": Layout(workers=number)})
            for at, number in enumerate(workers)
        ]
        self._ids = {str(at): spec.id for at, spec in enumerate(specs)}
        self._names = {given: name for name, given in self._ids.items()}
        trunks = {
            self._ids[name]: self._ids.get(trunk, trunk) for name, trunk in (after or {}).items()
        }
        self.queue = TrialQueue(
            [request(spec, trunks.get(spec.id)) for spec in specs],
            ResourcesSection(device="cpu", concurrent=limit, wait_for_nodes=wait_for_nodes),
            lambda: [Node({"CPU": number}, id=str(at)) for at, number in enumerate(self.nodes)],
            self._shall_stop,
        )
        self.queue._waiting = [
            Trial("stub", config={TRIAL_ID: spec.id}, stub=True) for spec in specs
        ]
        self.handed: dict[str, Trial] = {}

    @property
    def left(self) -> list[str]:
        """The names of the trials that are to be handed over anew."""
        return [self._names[given] for given in self.queue.left]

    def _shall_stop(self) -> bool:
        if self.storage_fails:
            raise OSError("curl: timeout")
        return self.stop

    def hand_over(self) -> list[tuple[str, str]]:
        """What the queue hands over before it says no: ids, and how they are placed."""
        found = []
        while (trial := self.queue.next_trial()) is not None:
            name = self._names[trial_id(trial)]
            self.handed[name] = trial
            found.append((name, request_of(trial.config).strategy))
        return found

    def run(self, *names: str) -> None:
        for name in names:
            self.handed[name].set_status(Trial.RUNNING)

    def end(self, *names: str) -> None:
        for name in names:
            self.handed[name].set_status(Trial.TERMINATED)


def request(spec: TrialSpec, trunk: str | None) -> TrialRequest:
    branch = None if trunk is None else Branch(trunk, 1)
    return TrialRequest("/sweep", "driver", "probe", spec, Budget(2, 50), branch)


@pytest.fixture(autouse=True)
def always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "LOOK_S", 0.0)


def names(handed: list[tuple[str, str]]) -> list[str]:
    return [name for name, _ in handed]


def test_tune_can_pickle_it_whatever_its_calls_hold():
    lock = threading.Lock()
    queue = TrialQueue([], ResourcesSection(), list, lock.locked)
    assert cloudpickle.dumps((queue, QueueStopper(queue)))


def test_trials_come_in_their_order_as_many_as_fit_and_one_more():
    sweep = Sweep([1] * 6, nodes=[2, 1])
    assert names(sweep.hand_over()) == ["0", "1", "2", "3"]
    assert not sweep.queue.is_finished()
    sweep.end("1")
    assert names(sweep.hand_over()) == ["4"]
    sweep.end("0", "2", "3", "4")
    assert names(sweep.hand_over()) == ["5"]
    assert sweep.queue.is_finished()


def test_a_trial_stays_on_one_node_where_nodes_are_large_enough():
    assert Sweep([2] * 5, nodes=[2, 2]).hand_over() == [(str(at), TOGETHER) for at in range(3)]


def test_what_is_left_on_several_nodes_is_not_left_idle():
    handed = Sweep([4] * 6, nodes=[8, 2, 2]).hand_over()
    assert [strategy for _, strategy in handed] == [TOGETHER, TOGETHER, TOGETHER, APART]


def test_a_trial_larger_than_every_node_goes_over_several():
    assert Sweep([3] * 4, nodes=[2, 2]).hand_over() == [("0", APART), ("1", APART)]


def test_a_large_trial_that_waits_keeps_no_small_one_back():
    sweep = Sweep([2, 2, 2, 2, 1, 1, 1, 1], nodes=[3])
    assert names(sweep.hand_over()) == ["0", "1", "4", "5", "6", "7"]


def test_no_more_trials_than_the_limit_are_ever_out():
    sweep = Sweep([2, 1, 1, 1], nodes=[8], limit=2)
    assert names(sweep.hand_over()) == ["0", "1"]
    sweep.end("0")
    assert names(sweep.hand_over()) == ["2"]


def test_a_branch_comes_when_its_trunk_is_over_and_not_before():
    sweep = Sweep([1, 1, 1], nodes=[4], after={"0": "1"})
    assert names(sweep.hand_over()) == ["1", "2"]
    sweep.end("1")
    assert names(sweep.hand_over()) == ["0"]


def test_a_trunk_of_an_earlier_run_keeps_nobody_waiting():
    assert names(Sweep([1], nodes=[1], after={"0": "done long ago"}).hand_over()) == ["0"]


def test_nodes_that_join_are_used():
    sweep = Sweep([1] * 9, nodes=[1])
    assert names(sweep.hand_over()) == ["0", "1"]
    sweep.nodes.append(3)
    assert names(sweep.hand_over()) == ["2", "3", "4"]


def test_what_no_node_has_room_for_any_more_waits_and_says_so_once(caplog):
    sweep = Sweep([2, 2, 2, 2, 1], nodes=[2])
    sweep.hand_over()
    sweep.end("0", "1", "4")
    sweep.nodes[:] = [1]
    with caplog.at_level(logging.WARNING):
        assert [sweep.hand_over() for _ in range(3)] == [[], [], []]

    (record,) = caplog.records
    assert mentions(record.message, "2 workers ... 1 CPU")
    sweep.nodes.append(2)
    assert names(sweep.hand_over()) == ["2", "3"]


def test_trials_whose_nodes_have_gone_are_handed_over_anew():
    sweep = Sweep([2, 2, 2], nodes=[2])
    sweep.hand_over()
    sweep.run("0")
    sweep.nodes[:] = [1, 1]
    assert not sweep.queue.over()  # one runs, as far as is known
    sweep.end("0")
    assert sweep.queue.over()
    assert sweep.left == ["1", "2"]


def test_trials_that_still_fit_somewhere_are_left_where_they_are():
    sweep = Sweep([2, 2], nodes=[2, 2, 1])
    sweep.hand_over()
    sweep.nodes[:] = [2]
    assert not sweep.queue.over()


def test_where_nodes_join_on_demand_all_is_handed_over_so_that_they_come():
    assert Sweep([2, 1, 1], nodes=[0], wait_for_nodes=True).hand_over() == [
        ("0", APART), ("1", APART), ("2", APART),
    ]  # fmt: skip
    held_back = Sweep([2] * 9, nodes=[2], wait_for_nodes=True, limit=4)
    assert held_back.hand_over() == [(str(at), TOGETHER) for at in range(4)]
    assert not held_back.queue.over()


def test_a_stop_ends_what_waits_and_lets_what_runs_go_on():
    sweep = Sweep([1] * 4, nodes=[1])
    sweep.hand_over()
    sweep.run("0")
    sweep.stop = True
    assert sweep.hand_over() == []
    assert sweep.queue.is_finished()
    assert not sweep.queue.over()
    sweep.end("0")
    assert sweep.queue.over()
    assert sweep.left == []


def test_a_storage_that_fails_for_a_while_ends_no_sweep(caplog):
    """Asked once a second for days: what the queue raises would end Tune, and all that trains."""
    sweep = Sweep([1] * 4, nodes=[1])
    sweep.storage_fails = True
    assert names(sweep.hand_over()) == ["0", "1"]
    sweep.run("0")
    assert not sweep.queue.over()
    assert caplog.text.count("curl: timeout") == 1  # however often it has looked
    sweep.storage_fails, sweep.stop = False, True
    sweep.end("0", "1")
    assert sweep.hand_over() == []
    assert sweep.queue.is_finished()


def test_a_trial_is_reserved_as_one_group():
    sweep = Sweep([1, 2], nodes=[4])
    sweep.hand_over()
    alone, both = (reserved(sweep.handed[name].config) for name in ("0", "1"))
    assert (alone.bundles, alone.strategy) == ([{"CPU": 1.0}], TOGETHER)
    assert (both.bundles, both.strategy) == ([{"CPU": 1.0}] * 2, TOGETHER)
    # The process that waits for the workers holds nothing, and lies with the first of them.
    assert both.head_bundle_is_empty
    assert not alone.head_bundle_is_empty
