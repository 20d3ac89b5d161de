"""The queue of trials: Tune asks for the next one, and the queue decides whether it may start.

Ray places a trial's workers as one group or not at all, so trials that are handed over cannot
deadlock. The queue keeps the sweep's order, looks at the nodes as they join and leave, and hands
over as many trials as they have room for, plus one of each size, which starts as soon as there is
room.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.tune import PlacementGroupFactory, Stopper
from ray.tune.experiment import Trial
from ray.tune.search.basic_variant import BasicVariantGenerator

from orchestrator.sweep.config import ResourcesSection
from orchestrator.tune.node_room import APART, TOGETHER, Need, Node, amounts, room
from orchestrator.tune.trial_request import REQUEST, TRIAL_ID, TrialRequest, request_of

logger = logging.getLogger(__name__)

#: Seconds between two looks at the nodes and at `shall_stop`. Tune asks ten times a second.
LOOK_S = 1.0


class TrialQueue(BasicVariantGenerator):  # type: ignore[misc]
    """Tune's grid search over trial ids, with its own answer to when the next trial comes.

    Args:
        requests: The trials in the sweep's order. A branch waits for its trunk, if that is here.
        resources: The sweep's limit of trials side by side, and whether nodes join on demand. If
            they do, all trials within the limit are handed over, so that an autoscaler sees them.
        nodes: Returns the cluster's nodes as they are now.
        shall_stop: Returns whether to hand over nothing more. It may raise OSError.

    Attributes:
        left: Ids of trials to hand over again in another round, once `over` has returned True.
    """

    def __init__(
        self,
        requests: Sequence[TrialRequest],
        resources: ResourcesSection,
        nodes: Callable[[], list[Node]],
        shall_stop: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._requests = {request.spec.id: request for request in requests}
        self._limit, self._wait_for_nodes = resources.concurrent, resources.wait_for_nodes
        self._look_at_nodes, self._shall_stop = nodes, shall_stop
        self._waiting: list[Trial] = []
        self._given: list[Trial] = []
        self._nodes: list[Node] = []
        self._stopping = False
        self._unread = False  # whether the last look at `shall_stop` failed
        self._looked = float("-inf")
        self._told: set[Need] = set()
        self.left: list[str] = []

    @property
    def ids(self) -> list[str]:
        """The trials' ids: the values of Tune's grid."""
        return list(self._requests)

    def add_configurations(self, experiments: Any) -> None:
        """Take all trials of the grid at once. Tune keeps the order of the sweep."""
        super().add_configurations(experiments)
        self._waiting = list(iter(super().next_trial, None))
        self._finished = not self._waiting

    def next_trial(self) -> Trial | None:
        """Return the first trial in the sweep's order that may start; None while none may."""
        self._look()
        if self._stopping:
            self._waiting.clear()
        found = self._first_admitted()
        if found is not None:
            trial, strategy = found
            self._waiting.remove(trial)
            self._given.append(trial)
            request = self._requests[trial_id(trial)]
            trial.config[REQUEST] = replace(request, strategy=strategy)
        if not self._waiting:
            self.set_finished()
        return None if found is None else found[0]

    def _first_admitted(self) -> tuple[Trial, str] | None:
        live = [trial for trial in self._given if not trial.is_finished()]
        if self._limit is not None and len(live) >= self._limit:
            return None
        held = Counter((self._need(trial), _strategy(trial)) for trial in live)
        unfinished = {trial_id(trial) for trial in [*live, *self._waiting]}
        answers: dict[Need, str | None] = {}
        for trial in self._waiting:
            need = self._need(trial)
            branch = self._requests[trial_id(trial)].branch
            if branch is not None and branch.trunk in unfinished:
                continue
            if need not in answers:
                answers[need] = self._strategy_for(need, held)
            if answers[need] is not None:
                return trial, str(answers[need])
        self._warn_of_waiting([need for need in answers if answers[need] is None], bool(live))
        return None

    def _strategy_for(self, need: Need, held: Mapping[tuple[Need, str], int]) -> str | None:
        """The placement strategy for one more trial of a need; None if enough are handed over."""
        there = room(need, self._nodes)
        if there.together and held[need, TOGETHER] <= there.together:
            return TOGETHER
        one_more = 0 if there.together else 1
        if there.apart and held[need, APART] < there.apart + one_more:
            return APART
        if self._wait_for_nodes:
            # On one node if one is large enough now; nodes to come are unknown.
            return TOGETHER if there.together else APART
        return None

    def over(self) -> bool:
        """Return whether this round has nothing left to wait for.

        That is so when no trial that was handed over runs, and the sweep shall stop or the nodes
        that those trials were meant for have left.
        """
        self._look()
        live = [trial for trial in self._given if not trial.is_finished()]
        if not live or any(trial.status != Trial.PENDING for trial in live):
            return False
        if self._stopping:
            return True
        if any(self._still_fits(trial) for trial in live):
            return False
        self.left = [trial_id(trial) for trial in [*live, *self._waiting]]
        return True

    def _still_fits(self, trial: Trial) -> bool:
        there = room(self._need(trial), self._nodes)
        if self._wait_for_nodes:
            return True
        return bool(there.together if _strategy(trial) == TOGETHER else there.total)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._nodes = self._look_at_nodes()
            try:
                self._stopping = self._stopping or self._shall_stop()
                self._unread = False
            except OSError as error:  # raised here, it would end the whole sweep
                if not self._unread:
                    logger.warning("cannot read now whether the sweep shall stop: %s", error)
                self._unread = True

    def _warn_of_waiting(self, needs: Iterable[Need], running: bool) -> None:
        """Warn once per need if no node has room for it and nothing else runs."""
        lacking = {need for need in needs if not room(need, self._nodes).total}
        if not running:
            for need in lacking - self._told:
                logger.warning(
                    "no node has room for %d workers of %s: trials wait for nodes to join",
                    need.workers, amounts(need.worker),
                )  # fmt: skip
            self._told |= lacking
        self._told &= lacking

    def _need(self, trial: Trial) -> Need:
        return self._requests[trial_id(trial)].need

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Save nothing: a sweep resumes from its ledger, not from Tune's state."""

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing, for the same reason: Tune pickles its search algorithm at the start."""
        return {}


class QueueStopper(Stopper):  # type: ignore[misc]
    """Ends a round of Tune when its queue is over."""

    def __init__(self, queue: TrialQueue) -> None:
        self._queue = queue

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._queue.over()


def trial_id(trial: Trial) -> str:
    """Return widthlab's id of a trial. Tune's own `trial.trial_id` is only of one round."""
    return str(trial.config[TRIAL_ID])


def reserved(config: dict[str, Any]) -> PlacementGroupFactory:
    """Return the placement group that Tune reserves: one group of all the trial's workers.

    The actor of a trial with several workers only waits for them. Its bundle is empty and lies
    with the first worker, so no node is needed for the actor alone.
    """
    request = request_of(config)
    workers = [request.need.worker] * request.need.workers
    return PlacementGroupFactory(
        workers if len(workers) == 1 else [{}, *workers], strategy=request.strategy
    )


def _strategy(trial: Trial) -> str:
    return str(request_of(trial.config).strategy)
