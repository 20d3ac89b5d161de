"""Joining a cluster: what is told of addresses that lead to none, and of where a driver is."""

import logging
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tune.node_room import Node
from orchestrator.tune.ray_cluster import LOOKED_UP, _warn_of_spot_node, cluster, knock
from trialstore.errors import InputError


def test_an_address_where_nobody_listens_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(InputError, match=str(port)), cluster(f"127.0.0.1:{port}"):
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
    with pytest.raises(InputError, match=re.escape(address)):
        knock(address)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_a_driver_outside_of_the_cluster_is_sent_inside(address: str):
    with pytest.raises(InputError, match=re.escape(address)), cluster(address):
        pass


@pytest.mark.parametrize("address", ["", "head", "head:", ":6379", "6379", "a b", "head:six"])
def test_what_is_no_address_is_refused_before_anything_is_tried(address: str):
    with pytest.raises(InputError, match=re.escape(repr(address))):
        knock(address)


@given(st.text())
def test_no_text_ends_in_anything_but_a_message(address: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", nowhere)
        if address not in LOOKED_UP:
            with pytest.raises(InputError):
                knock(address)


def nowhere(host: str, *_: object) -> list:
    """No name is looked up, but as far as Python goes before it would be."""
    host.encode("idna")
    raise socket.gaierror("unknown")


@pytest.mark.parametrize("address", LOOKED_UP)
def test_ray_finds_its_own_for_itself(address: str):
    assert knock(address) is None


def test_a_name_that_no_resolver_takes_is_told(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"aaa\.\.b:6379"):
        knock(f"{'a' * 70}..b:6379")


@pytest.mark.parametrize(("market", "told"), [("spot", 1), ("on-demand", 0), (None, 0)])
def test_a_driver_on_a_node_that_may_be_taken_back_is_warned(market, told, caplog):
    labels = {} if market is None else {"ray.io/market-type": market}
    nodes = [Node({}, "head", "1", labels), Node({}, "other", "2", {"ray.io/market-type": "spot"})]
    with caplog.at_level(logging.WARNING):
        _warn_of_spot_node(nodes, "1")
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "this driver runs on head"
    ] * told
