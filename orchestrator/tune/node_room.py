"""How many trials nodes have room for: arithmetic only. Ray does the placing.

Ray places all workers of a trial or none, so trials never wait for each other. The workers of a
trial share a node if one is large enough. Room that is left on several nodes together takes
further trials.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trainers.spec import Layout, TrialSpec
from trialstore.errors import InputError

#: Ray's placement strategies: workers must share a node, or should if they can.
TOGETHER, APART = "STRICT_PACK", "PACK"

#: Ray counts resources in ten-thousandths, so a rounding error is smaller than that.
SMALLEST = 1e-4


@dataclass(frozen=True)
class Node:
    """A node of a Ray cluster. `resources` are all that it has, in use or not, by Ray's names."""

    resources: Mapping[str, float]
    name: str = "node"
    id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Need:
    """What a trial holds while it runs: a number of workers, and the resources of each."""

    workers: int
    cpus: float
    gpus: float

    @property
    def worker(self) -> dict[str, float]:
        """The resources of one worker, by Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True)
class Room:
    """How many trials of one need fit side by side on empty nodes."""

    together: int  # trials that have all workers on one node
    apart: int  # further trials, spread over what those leave on several nodes

    @property
    def total(self) -> int:
        """Trials of both kinds."""
        return self.together + self.apart


def need_of(layout: Layout) -> Need:
    """Return what a trial of this layout holds. A worker is one process with its own device."""
    gpus = 1.0 if layout.device == "cuda" else 0.0
    return Need(layout.workers, float(layout.cpus_per_worker), gpus)


def slots(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """Return how many workers with the resources `worker` fit on a node with those of `node`."""
    return min(int((node.get(name, 0.0) + SMALLEST) // amount) for name, amount in worker.items())


def room(need: Need, nodes: Iterable[Node]) -> Room:
    """Count the trials of one need that fit side by side on empty nodes.

    A worker cannot span nodes; a trial can, where its workers do not all fit on one.

    Args:
        need: The workers of a trial and the resources of each.
        nodes: The nodes with their whole resources.

    Returns:
        The trials that fit on one node each, and those that would be spread over several.
    """
    fitting = [slots(node.resources, need.worker) for node in nodes]
    together = sum(number // need.workers for number in fitting)
    return Room(together, sum(number % need.workers for number in fitting) // need.workers)


def trials_at_once(
    nodes: Sequence[Node],
    trials: Sequence[TrialSpec],
    limit: int | None,
    wait_for_nodes: bool = False,
) -> int:
    """Return how many of the trials run side by side on these nodes, taken in their order.

    Args:
        nodes: The nodes, all of their resources being free.
        trials: The trials, in the sweep's order.
        limit: The largest number to return; None for no limit.
        wait_for_nodes: Whether a trial may have no room now, because more nodes will join.

    Raises:
        InputError: These nodes have no room for some trial.
    """
    if not wait_for_nodes:
        _refuse_what_never_fits(nodes, trials)
    free = [dict(node.resources) for node in nodes]
    number = sum(_take(free, need_of(spec.layout)) for spec in trials)
    return min(number, limit) if limit else number


def _take(free: list[dict[str, float]], need: Need) -> bool:
    """Take what a trial needs from the free resources. Return whether they had it."""
    fitting = [slots(node, need.worker) for node in free]
    # On one node if one has room; otherwise first on the node with the most room.
    order = sorted(range(len(free)), key=lambda at: -fitting[at])
    if sum(fitting) < need.workers:
        return False
    left = need.workers
    for at in order:
        here = min(left, fitting[at])
        for name, amount in need.worker.items():
            free[at][name] = free[at].get(name, 0.0) - here * amount
        left -= here
    return True


def _refuse_what_never_fits(nodes: Sequence[Node], trials: Sequence[TrialSpec]) -> None:
    for spec in trials:
        need = need_of(spec.layout)
        if room(need, nodes).total:
            continue
        fitting = sum(slots(node.resources, need.worker) for node in nodes)
        have = {name: sum(node.resources.get(name, 0) for node in nodes) for name in need.worker}
        raise InputError(
            f"trial {spec.id} needs {need.workers} workers of {amounts(need.worker)} "
            f"each, and the cluster of {len(nodes)} nodes, with {amounts(have)} in all, "
            f"has room for {fitting}; lower resources.workers or resources.cpus_per_worker, "
            "join a larger cluster with --address, or, where nodes join on demand, set "
            "resources.wait_for_nodes: true"
        )


def amounts(resources: Mapping[str, float]) -> str:
    """Return resources in words, such as "2 CPU, 1 GPU"."""
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
