"""Which worker takes which rank, what it is told, and which of them says why a trial failed."""

import itertools

import pytest

pytest.importorskip("ray")
from ray.exceptions import RayActorError, RayTaskError

from orchestrator.tune.worker_group import WorkerLocation, WorkerLostError, cause_of, ranks
from trialstore.claims import LeaseLostError
from trialstore.errors import InputError
from trialstore.storage import StorageFullError


def test_ranks_are_numbered_node_by_node():
    """Checkpoints are staged once a node: its ranks must follow each other."""
    found = ranks([WorkerLocation("a", ()), WorkerLocation("b", ()), WorkerLocation("a", ())])
    assert [index for index, _ in found] == [0, 2, 1]
    named = [
        [environment[name] for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")]
        for _, environment in found
    ]
    assert named == [["0", "0", "2", "0"], ["1", "1", "2", "0"], ["2", "0", "1", "1"]]
    assert {environment["WORLD_SIZE"] for _, environment in found} == {"3"}


def test_workers_of_a_node_see_each_others_devices_and_no_others():
    found = ranks(
        [WorkerLocation("a", ("6",)), WorkerLocation("b", ("0",)), WorkerLocation("a", ("3",))]
    )
    devices = [environment["CUDA_VISIBLE_DEVICES"] for _, environment in found]
    assert devices == ["6,3", "6,3", "0"]


def test_without_devices_nothing_is_said_of_them():
    ((_, environment),) = ranks([WorkerLocation("a", ())])
    assert "CUDA_VISIBLE_DEVICES" not in environment


# --- why a trial has failed ----------------------------------------------------------------

LOST_PEER = RuntimeError("Connection closed by peer")
DIED = RayActorError()


def said(error: Exception) -> RayTaskError:
    return RayTaskError("run", "Traceback", error)


@pytest.mark.parametrize(
    "decisive",
    [LeaseLostError("replaced"), InputError("no such corpus"), StorageFullError(28, "no room")],
)
def test_what_forbids_another_attempt_is_the_cause_whoever_is_heard_first(decisive: Exception):
    """Another attempt would take the trial back from whoever has it, or be refused as well."""
    for errors in itertools.permutations([said(LOST_PEER), DIED, said(decisive)]):
        assert cause_of(errors) is decisive


def test_a_worker_that_has_died_is_the_cause_whoever_noticed_first():
    for errors in itertools.permutations([said(LOST_PEER), DIED]):
        cause = cause_of(errors)
        assert isinstance(cause, WorkerLostError)
        assert cause.__cause__ is DIED


def test_otherwise_it_is_the_first_that_failed():
    own = ValueError("a block that cannot be built")
    assert cause_of([said(own), said(LOST_PEER)]) is own
