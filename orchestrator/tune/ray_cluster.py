"""Join a Ray cluster, or start one on this machine."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from orchestrator.tune.node_room import Node
from orchestrator.tune.path_variables import check_sockets, make_absolute
from trialstore.errors import InputError

logger = logging.getLogger(__name__)

#: Set before Ray is imported. Without them, Tune writes logs of every trial and prints tables.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

#: Addresses that Ray resolves itself.
LOOKED_UP = ("auto", "local")
#: Addresses for which Ray is started here.
STARTED = (None, "local")

#: Ray's label for a node's market type, and its value for a node that a cloud may take back.
MARKET, SPOT = "ray.io/market-type", "spot"


@contextlib.contextmanager
def cluster(address: str | None, cpus: int | None = None) -> Iterator[list[Node]]:
    """Join the Ray cluster at `address` for the time of the block, or start one here.

    Only a cluster that was started here is shut down.

    Args:
        address: HOST:PORT of a Ray head; None starts Ray on this machine.
        cpus: CPUs of a Ray that is started here; None for all.

    Yields:
        The nodes of the cluster.

    Raises:
        InputError: No cluster answers at the address.
    """
    if address is not None:
        knock(address)
    make_absolute(os.environ)
    check_temporary(address)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # A trial's failure is in its failure.json, and shown once, at the end.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if address is None:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        nodes = alive_nodes()
        _warn_of_spot_node(nodes, ray.get_runtime_context().get_node_id())
        yield nodes
    finally:
        ray.shutdown()


def alive_nodes() -> list[Node]:
    """Return the nodes that the cluster has now."""
    import ray

    return [
        Node(node["Resources"], node["NodeManagerHostname"], node["NodeID"], node["Labels"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def knock(address: str) -> None:
    """Raise InputError if no Ray head can be at `address`, or none listens there.

    This takes seconds; Ray itself would try for minutes.
    """
    if address in LOOKED_UP:
        return
    if "://" in address:
        raise InputError(
            f"{address} is an address for clients outside the cluster, and a driver runs inside: "
            "run this there with --address HOST:PORT of the head, or `widthlab submit` it as a job"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise InputError(
            f"--address {address!r} is not the address of a Ray head; give its HOST:PORT, or leave "
            "--address out to start one here"
        )
    try:
        # An IPv6 address stands in brackets before its port.
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError, ValueError) as error:  # ValueError: an invalid host name
        raise InputError(
            f"no Ray cluster answers at {address}: {error}; give the HOST:PORT of a Ray head, "
            "or leave --address out to start one here"
        ) from error


def check_temporary(address: str | None) -> None:
    """Raise InputError if Ray would start here below a temporary folder with too long a name."""
    if address in STARTED:
        check_sockets(os.environ, os.getpid())


def _warn_of_spot_node(nodes: list[Node], own: str) -> None:
    """Warn if the driver runs on a spot node: no other process restarts a driver."""
    for node in nodes:
        if node.id == own and node.labels.get(MARKET) == SPOT:
            logger.warning(
                "this driver runs on %s, which is labelled %s=%s: when the node is taken back the "
                "sweep stops until somebody runs the same command; run it on the head instead",
                node.name, MARKET, SPOT,
            )  # fmt: skip


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message: in Ray's, the error below a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
