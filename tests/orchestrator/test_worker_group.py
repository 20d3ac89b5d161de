"""Which worker takes which rank, and what it is told."""

import pytest

pytest.importorskip("ray")
from orchestrator.worker_group import Place, ranks


def test_ranks_are_numbered_node_by_node():
    """Checkpoints are staged once a node: its ranks must follow each other."""
    found = ranks([Place("a", ()), Place("b", ()), Place("a", ())])
    assert [index for index, _ in found] == [0, 2, 1]
    named = [
        [environment[name] for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")]
        for _, environment in found
    ]
    assert named == [["0", "0", "2", "0"], ["1", "1", "2", "0"], ["2", "0", "1", "1"]]
    assert {environment["WORLD_SIZE"] for _, environment in found} == {"3"}


def test_workers_of_a_node_see_each_others_devices_and_no_others():
    found = ranks([Place("a", ("6",)), Place("b", ("0",)), Place("a", ("3",))])
    devices = [environment["CUDA_VISIBLE_DEVICES"] for _, environment in found]
    assert devices == ["6,3", "6,3", "0"]


def test_without_devices_nothing_is_said_of_them():
    ((_, environment),) = ranks([Place("a", ())])
    assert "CUDA_VISIBLE_DEVICES" not in environment
