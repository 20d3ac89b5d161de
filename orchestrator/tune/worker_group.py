"""The workers of one trial: an actor each, in the group that Ray has reserved for the trial.

They find each other as they would under torchrun: by RANK, WORLD_SIZE and a store that somebody
else hosts, here the process that waits for them.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.tune.ray_cluster import last_line
from trialstore.claims import LeaseLostError
from trialstore.errors import InputError
from trialstore.storage import StorageFullError

#: When one worker has failed the others fail of it, within this time.
GRACE_S = 5.0

#: Within this time every worker has started, where its node is still there: they hold their room,
#: but for what Ray may look for anew when a node goes.
START_S = 300.0


class WorkerLostError(RuntimeError):
    """A worker's process has died: its node has gone, or it was killed."""


@dataclass(frozen=True)
class WorkerLocation:
    """Where a worker found itself."""

    node: str
    gpus: tuple[str, ...]


class Worker:
    """One process of a trial."""

    def location(self) -> WorkerLocation:
        """Its node and the devices that Ray gave it."""
        context = ray.get_runtime_context()
        return WorkerLocation(
            context.get_node_id(), tuple(context.get_accelerator_ids().get("GPU", ()))
        )

    def run(
        self,
        environment: dict[str, str],
        function: Callable[[dict[str, Any]], None],
        config: dict[str, Any],
    ) -> None:
        """Call the function as the rank that the environment describes."""
        os.environ.update(environment)
        function(config)


def run_on_workers(
    name: str,
    function: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    worker: dict[str, float],
) -> None:
    """Call `function(config)` on one worker for every bundle of this process's placement group.

    `name` and rank are what the worker is called in Ray's dashboard, and by `ps` on its node.
    Returns when all have returned. Raises, as `cause_of` says, WorkerLostError or what one of them
    has raised; the others are then killed.
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
        # Loaded while the workers start, and on a port that nobody else can have taken.
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
                .remote({**shared, **environment}, function, config)
                for index, environment in ranks(locations)
            ]
        )
    finally:
        for actor in actors:
            ray.kill(actor)


def ranks(locations: Sequence[WorkerLocation]) -> list[tuple[int, dict[str, str]]]:
    """For every rank, which worker takes it and with which environment: node by node.

    The workers of a node see all of its devices that are the trial's, each its own at LOCAL_RANK:
    so NCCL copies between them directly.
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
    """What all calls return, in their order. Raises as soon as one of them has failed."""
    waiting = list(calls)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=timeout)
        if not done:
            raise WorkerLostError(f"a worker of the trial has not started within {timeout:.0f} s")
        error = _error(done[0])
        if error is not None:
            raise cause_of([error, *_errors_of(waiting)])
    return list(ray.get(list(calls)))


def _errors_of(others: Sequence[Any]) -> list[RayError]:
    """What becomes of the other workers when one has failed."""
    failed: list[Any] = []
    if others:
        failed, _ = ray.wait(list(others), num_returns=len(others), timeout=GRACE_S)
    return [error for error in map(_error, failed) if error is not None]


def cause_of(errors: Sequence[RayError]) -> BaseException:
    """Why a trial has failed, of what its workers say, in the order in which it was seen.

    What forbids another attempt goes first: the others only lose their connection to whoever is
    refused its input or has been replaced, or die of that, and may be seen to before.
    """
    causes = [error.cause if isinstance(error, RayTaskError) else error for error in errors]
    for cause in causes:
        if isinstance(cause, InputError | LeaseLostError | StorageFullError):
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
