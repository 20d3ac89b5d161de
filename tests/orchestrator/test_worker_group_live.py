"""What becomes of a group of workers when one of them fails: real processes, no training."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator.tune.ray_cluster import cluster
from trialstore.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    with cluster(None, cpus=2):
        import ray

        yield ray


def run(ray: Any, function: Callable[[dict[str, Any]], None]) -> None:
    """`run_on_workers` with two workers, from within their placement group, as Tune calls it."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def waiting() -> str | None:
        from orchestrator.tune.worker_group import run_on_workers

        try:
            run_on_workers("test", function, {}, {"CPU": 1.0})
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    group = placement_group([{"CPU": 1.0}] * 2, strategy="STRICT_PACK")
    try:
        placed = PlacementGroupSchedulingStrategy(group, 0, True)
        failed = ray.get(
            ray.remote(waiting).options(num_cpus=0, scheduling_strategy=placed).remote()
        )
    finally:
        remove_placement_group(group)
    if failed is not None:
        raise AssertionError(failed)


def test_every_rank_finds_the_others(ray_here: Any):
    def meet(config: dict[str, Any]) -> None:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        mine = torch.tensor([float(dist.get_rank() + 1)])
        dist.all_reduce(mine)
        assert (mine.item(), dist.get_world_size()) == (3.0, 2)

    run(ray_here, meet)


def test_what_one_worker_raises_is_what_the_trial_fails_of(ray_here: Any):
    def refuse(config: dict[str, Any]) -> None:
        if os.environ["RANK"] == "1":
            raise InputError("the corpus has gone")
        time.sleep(3600)  # waits for the others in vain, as a collective would

    with pytest.raises(AssertionError, match=r"^InputError: the corpus has gone$"):
        run(ray_here, refuse)


def test_a_worker_that_dies_is_the_cause_whoever_notices_first(ray_here: Any):
    def die(config: dict[str, Any]) -> None:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("connection closed by peer")

    with pytest.raises(AssertionError, match=r"^WorkerLostError: "):
        run(ray_here, die)
