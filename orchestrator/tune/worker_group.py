"""The workers of one trial: one actor each, in the placement group reserved for the trial.

They find each other as under torchrun: by RANK, WORLD_SIZE and a TCP store. The process that waits
for them hosts the store.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.tune.ray_cluster import last_line
from trialstore.errors import FinalError, InputError

Task = TypeVar("Task")

#: Seconds within which the other workers fail once one has failed.
GRACE_S = 5.0

#: Seconds within which every worker starts if its node is still there: its room is reserved.
START_S = 300.0


class WorkerLostError(RuntimeError):
    """A worker's process died, because its node left or it was killed."""


@dataclass(frozen=True)
class WorkerLocation:
    """The node that a worker runs on, and the devices that Ray gave it."""

    node: str
    gpus: tuple[str, ...]


class Worker:
    """One process of a trial."""

    def location(self) -> WorkerLocation:
        """Return the worker's node and devices."""
        context = ray.get_runtime_context()
        return WorkerLocation(
            context.get_node_id(), tuple(context.get_accelerator_ids().get("GPU", ()))
        )

    def run(
        self, environment: dict[str, str], function: Callable[[Task], None], task: Task
    ) -> None:
        """Call `function(task)` as the rank that the environment describes."""
        os.environ.update(environment)
        function(task)


def run_on_workers(
    name: str, function: Callable[[Task], None], task: Task, worker: dict[str, float]
) -> None:
    """Call `function(task)` on one worker per bundle of this process's placement group.

    Args:
        name: What Ray's dashboard, and `ps` on the node, call the workers, with their rank.
        function: Importable on the workers, or picklable by value.
        task: Its argument, picklable.
        worker: The resources of one worker, by Ray's names.

    Returns when all workers have returned. If one fails, the others are killed.

    Raises:
        WorkerLostError: A worker's process died, or did not start.
        Exception: The error of a worker, if one raised: a FinalError or an InputError first,
            else the first seen.
    """
    group = ray.util.get_current_placement_group()
    assert group is not None, "Tune starts every trial in a placement group"
    actors = [
        ray.remote(Worker)
        .options(
            num_cpus=worker["CPU"],
            num_gpus=worker.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=index
            ),
        )
        .remote()
        for index in range(group.bundle_count)
    ]
    try:
        # torch loads while the workers start. Port 0: the system picks a free one.
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        address = ray.util.get_node_ip_address()
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        locations = _results([actor.location.remote() for actor in actors], timeout=START_S)
        shared = {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": str(True),
        }
        _results(
            [
                actors[index]
                .run.options(name=f"{name} rank {environment['RANK']}")
                .remote({**shared, **environment}, function, task)
                for index, environment in ranks(locations)
            ]
        )
    finally:
        for actor in actors:
            ray.kill(actor)


def ranks(locations: Sequence[WorkerLocation]) -> list[tuple[int, dict[str, str]]]:
    """Assign ranks to workers, node by node.

    The workers of a node see all of the trial's devices there, each its own at LOCAL_RANK, so that
    NCCL copies between them directly.

    Returns:
        For every rank, in order, the index of its worker in `locations` and its environment.
    """
    nodes = list(dict.fromkeys(place.node for place in locations))
    order = sorted(range(len(locations)), key=lambda index: nodes.index(locations[index].node))
    sizes = Counter(place.node for place in locations)
    seen: Counter[str] = Counter()
    found = []
    for rank, index in enumerate(order):
        node = locations[index].node
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(locations)),
            "LOCAL_RANK": str(seen[node]),
            "LOCAL_WORLD_SIZE": str(sizes[node]),
            "GROUP_RANK": str(nodes.index(node)),
        }
        beside = [locations[other] for other in order if locations[other].node == node]
        devices = [gpu for place in beside for gpu in place.gpus]
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        seen[node] += 1
        found.append((index, environment))
    return found


def _results(calls: Sequence[Any], timeout: float | None = None) -> list[Any]:
    """The results of all calls, in their order. Raises as soon as one of them fails."""
    waiting = list(calls)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=timeout)
        if not done:
            raise WorkerLostError(f"a worker of the trial did not start within {timeout:.0f} s")
        error = _error(done[0])
        if error is not None:
            raise cause_of([error, *_errors_of(waiting)])
    return list(ray.get(list(calls)))


def _errors_of(others: Sequence[Any]) -> list[RayError]:
    """The errors of the other workers once one has failed."""
    failed: list[Any] = []
    if others:
        failed, _ = ray.wait(list(others), num_returns=len(others), timeout=GRACE_S)
    return [error for error in map(_error, failed) if error is not None]


def cause_of(errors: Sequence[RayError]) -> BaseException:
    """Return the error to raise for a trial, of its workers' `errors` in the order seen.

    A FinalError or an InputError goes first. The other workers only lose their connection to the
    one that raised it, and that may be seen earlier. A lost worker is next; otherwise the first
    error counts.
    """
    causes = [error.cause if isinstance(error, RayTaskError) else error for error in errors]
    for cause in causes:
        if isinstance(cause, FinalError | InputError):
            return cause
    for error in errors:
        if isinstance(error, RayActorError):
            lost = WorkerLostError(f"a worker of the trial was lost: {last_line(error)}")
            lost.__cause__ = error
            return lost
    first: BaseException = causes[0]
    return first


def _error(call: Any) -> RayError | None:
    try:
        ray.get(call)
    except RayError as error:
        return error
    return None
