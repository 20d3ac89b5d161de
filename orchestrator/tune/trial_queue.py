"""When a trial is handed to Ray: Tune asks for the next one, and the queue answers.

Ray places a trial's workers as one group, whole or not at all, so nothing that is handed over can
deadlock. The queue keeps the sweep's order, looks at the nodes as they come and go, and hands over
as many trials as they hold and one more of each size, which starts as soon as Ray finds room.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ray.tune import PlacementGroupFactory, Stopper
from ray.tune.experiment import Trial
from ray.tune.search.basic_variant import BasicVariantGenerator

from orchestrator.tune.node_room import APART, TOGETHER, Need, Node, amounts, room

logger = logging.getLogger(__name__)

#: Seconds between two looks at the nodes and at whether the sweep shall stop. Tune asks ten times
#: a second.
LOOK_S = 1.0


class TrialQueue(BasicVariantGenerator):  # type: ignore[misc]
    """Tune's grid search, but for when the next trial comes.

    `needs` is what each trial holds, by its id; `after` names the trial that another one has to
    wait for; `limit` bounds the trials side by side. Where `wait_for_nodes`, all trials within the
    limit are handed over, so that an autoscaler sees what is wanted. `shall_stop` reads the
    sweep's storage, and may raise OSError.
    """

    def __init__(
        self,
        needs: Mapping[str, Need],
        after: Mapping[str, str],
        limit: int | None,
        wait_for_nodes: bool,
        nodes: Callable[[], list[Node]],
        shall_stop: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._needs, self._after, self._limit = needs, after, limit
        self._wait_for_nodes = wait_for_nodes
        self._look_at_nodes, self._shall_stop = nodes, shall_stop
        self._waiting: list[Trial] = []
        self._given: list[Trial] = []
        self._nodes: list[Node] = []
        self._stopping = False
        self._unread = False  # whether it shall stop
        self._looked = float("-inf")
        self._told: set[Need] = set()
        self.left: list[str] = []  # trials to be handed over anew, once this queue is `over`

    def add_configurations(self, experiments: Any) -> None:
        """Take all trials of the grid at once: Tune's order is the sweep's."""
        super().add_configurations(experiments)
        self._waiting = list(iter(super().next_trial, None))
        self._finished = not self._waiting

    def next_trial(self) -> Trial | None:
        """The first trial in the sweep's order that may be handed over; None while none may."""
        self._look()
        if self._stopping:
            self._waiting.clear()
        found = self._first_admitted()
        if found is not None:
            trial, strategy = found
            self._waiting.remove(trial)
            self._given.append(trial)
            need = self._needs[trial_id(trial)]
            trial.config["trial"]["placement"] = {"need": asdict(need), "strategy": strategy}
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
            if self._after.get(trial_id(trial)) in unfinished:
                continue
            if need not in answers:
                answers[need] = self._strategy_for(need, held)
            if answers[need] is not None:
                return trial, str(answers[need])
        self._tell_what_waits([need for need in answers if answers[need] is None], bool(live))
        return None

    def _strategy_for(self, need: Need, held: Mapping[tuple[Need, str], int]) -> str | None:
        """How the next trial of a need is to be placed; None while enough have been handed over."""
        there = room(need, self._nodes)
        if there.together and held[need, TOGETHER] <= there.together:
            return TOGETHER
        one_more = 0 if there.together else 1
        if there.apart and held[need, APART] < there.apart + one_more:
            return APART
        if self._wait_for_nodes:
            # On one node if there is such a node; of those that may come nothing is known.
            return TOGETHER if there.together else APART
        return None

    def over(self) -> bool:
        """Whether nothing more can come of what was handed over: nothing of it runs, and it shall
        stop, or the nodes that it was meant for have gone."""
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
            except OSError as error:  # what is raised here would end the whole sweep
                if not self._unread:
                    logger.warning("whether the sweep shall stop cannot be read now: %s", error)
                self._unread = True

    def _tell_what_waits(self, needs: Iterable[Need], running: bool) -> None:
        """Once for every need, when nodes have left and nothing is left to do but to wait."""
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
        return self._needs[trial_id(trial)]

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Tune would keep this for a restore; the ledger is what a sweep goes on from."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for the same reason: Tune pickles what it is given before it begins."""
        return {}


class QueueStopper(Stopper):  # type: ignore[misc]
    """Ends a round of Tune when its queue says so."""

    def __init__(self, queue: TrialQueue) -> None:
        self._queue = queue

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._queue.over()


def trial_id(trial: Trial) -> str:
    """The trial's own id; Tune's is of this run alone."""
    return str(trial.config["trial"]["id"])


def reserved(config: dict[str, Any]) -> PlacementGroupFactory:
    """What Tune asks Ray to reserve: one group of the trial's workers.

    A trial of several has a process beside them that only waits. It holds nothing, and lies with
    the first worker: it can be lost with no node but one whose loss ends the attempt anyway.
    """
    placement = config["trial"]["placement"]
    need = Need(**placement["need"])
    workers = [need.worker] * need.workers
    return PlacementGroupFactory(
        workers if need.workers == 1 else [{}, *workers], strategy=placement["strategy"]
    )


def _strategy(trial: Trial) -> str:
    return str(trial.config["trial"]["placement"]["strategy"])
