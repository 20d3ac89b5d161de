"""Joining a cluster: what is told of addresses that lead to none, and of where a driver is."""

import logging
import socket

import pytest

from analysis.errors import InputError
from orchestrator.placement import Node
from orchestrator.ray_cluster import _warn_of_spot_node, cluster, knock


def test_an_address_where_nobody_listens_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(InputError, match="no Ray cluster answers"), cluster(f"127.0.0.1:{port}"):
        pass


@pytest.mark.parametrize(
    ("family", "host", "written"),
    [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")],
)
def test_an_address_where_somebody_listens_is_knocked_at(family: int, host: str, written: str):
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    with listener:
        address = f"{written}:{listener.getsockname()[1]}"
        knock(address)
    with pytest.raises(InputError, match="no Ray cluster answers"):
        knock(address)


def test_a_driver_outside_of_the_cluster_is_sent_inside():
    with pytest.raises(InputError, match="a driver belongs inside"), cluster("ray://head:10001"):
        pass


@pytest.mark.parametrize(("market", "told"), [("spot", 1), ("on-demand", 0), (None, 0)])
def test_a_driver_on_a_node_that_may_be_taken_back_is_warned(market, told, caplog):
    labels = {} if market is None else {"ray.io/market-type": market}
    nodes = [Node({}, "head", "1", labels), Node({}, "other", "2", {"ray.io/market-type": "spot"})]
    with caplog.at_level(logging.WARNING):
        _warn_of_spot_node(nodes, "1")
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "this driver runs on head"
    ] * told
