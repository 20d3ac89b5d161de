"""Where trials fit: the arithmetic of nodes and workers. Nothing here asks Ray, which places them.

A trial is placed whole or not at all, so trials never wait for each other. One of several workers
stays on one node where a node is large enough for it; what such trials leave over, on several
nodes together, takes further ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trainers.spec import Layout, TrialSpec
from trialstore.errors import InputError

#: How Ray is told whether the workers of a trial must share a node, or should where they can.
TOGETHER, APART = "STRICT_PACK", "PACK"

#: Ray counts in ten-thousandths: what is left after subtractions may be off by less than that.
SMALLEST = 1e-4


@dataclass(frozen=True)
class Node:
    """A node of a Ray cluster; `resources` are all that it has, in use or not."""

    resources: Mapping[str, float]
    name: str = "node"
    id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Need:
    """What a trial holds while it runs: so many workers of these resources."""

    workers: int
    cpus: float
    gpus: float

    @property
    def worker(self) -> dict[str, float]:
        """The resources of one worker, by Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True)
class Room:
    """Trials of one need that empty nodes hold side by side."""

    together: int  # each of them on one node
    apart: int  # more, each over what the others leave on several nodes

    @property
    def total(self) -> int:
        return self.together + self.apart


def need_of(layout: Layout) -> Need:
    """What a trial of this layout holds: a worker is one process, on a device of its own."""
    gpus = 1.0 if layout.device == "cuda" else 0.0
    return Need(layout.workers, float(layout.cpus_per_worker), gpus)


def slots(node: Mapping[str, float], worker: Mapping[str, float]) -> int:
    """How many workers of those resources fit on what a node has."""
    return min(int((node.get(name, 0.0) + SMALLEST) // amount) for name, amount in worker.items())


def room(need: Need, nodes: Iterable[Node]) -> Room:
    """How many trials of a need the nodes hold, all else away. A worker is never divided."""
    fitting = [slots(node.resources, need.worker) for node in nodes]
    together = sum(number // need.workers for number in fitting)
    return Room(together, sum(number % need.workers for number in fitting) // need.workers)


def trials_at_once(
    nodes: Sequence[Node],
    trials: Sequence[TrialSpec],
    limit: int | None,
    wait_for_nodes: bool = False,
) -> int:
    """How many of the trials run side by side on these nodes, taken in their order.

    At most `limit`. Raises InputError, with the numbers, for a trial that none of these nodes
    have room for, unless others may come.
    """
    if not wait_for_nodes:
        _refuse_what_never_fits(nodes, trials)
    free = [dict(node.resources) for node in nodes]
    number = sum(_take(free, need_of(spec.layout)) for spec in trials)
    return min(number, limit) if limit else number


def _take(free: list[dict[str, float]], need: Need) -> bool:
    """Take from the free resources what a trial needs, if they have it."""
    fitting = [slots(node, need.worker) for node in free]
    # On one node if one has room, or else first where there is most.
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
    """Resources in words: "2 CPU, 1 GPU"."""
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
