"""Check that the nodes of a cluster see the sweep's storage.

A sweep's state is in its trial directories, so the driver and every node must see the same ones.
"""

import contextlib
import logging
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.tune.node_room import Node, need_of, slots
from orchestrator.tune.ray_cluster import alive_nodes, last_line
from trainers.spec import TrialSpec
from trialstore.errors import InputError
from trialstore.storage import Storage, is_away, open_storage

logger = logging.getLogger(__name__)

#: Folder of the objects that the driver writes for the nodes to read. Every run uses a new name:
#: NFS caches negative lookups, so a name that was once missing may seem missing for a while.
PROBES = "storage-probe"

#: Seconds within which a node must answer. It starts a process first, and may be busy.
PATIENCE_S = 60.0

CANNOT_READ = (
    "cannot read what the driver wrote there; use a path on a shared file system or an object store"
)


class NotSharedError(RuntimeError):
    """A node that joined later does not see the sweep's storage. Another node may see it."""


@contextlib.contextmanager
def shared_probe(sweep: Storage) -> Iterator[str]:
    """Write an object for the nodes to read, for the time of the block. Yield its key."""
    for left in sweep.list(PROBES):  # of a killed driver: only one drives a sweep at a time
        sweep.delete(left)
    key = f"{PROBES}/{uuid.uuid4().hex}"
    sweep.put(key, key.encode())
    try:
        yield key
    finally:
        try:
            sweep.delete(key)
        except OSError as error:  # the next run removes it; the trials must not fail of this
            logger.warning("%s: %s was not removed: %s", sweep.url, key, error)


def require_shared(url: str, key: str) -> None:
    """Check that this node sees a sweep's storage.

    Args:
        url: The sweep's directory.
        key: The object that `shared_probe` wrote.

    Raises:
        NotSharedError: The node does not see the object.
        OSError: The storage does not answer.
    """
    if not _reads_back(url, key, raising=True):
        raise NotSharedError(_message(url, {CANNOT_READ: [socket.gethostname()]}))


def check_shared(sweep: Storage, nodes: Sequence[Node], trials: Sequence[TrialSpec]) -> None:
    """Check that every node on which a trial may run sees the sweep's storage.

    Args:
        sweep: The sweep's directory.
        nodes: The cluster's nodes. The driver's own is not checked, nor one that dies meanwhile.
        trials: The trials to run; nodes that are too small for their workers are not checked.

    Raises:
        InputError: Some nodes cannot read the storage. The message names them, and why.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    workers = [need.worker for need in {need_of(spec.layout) for spec in trials}]
    asked = [
        node
        for node in nodes
        if node.id != own and any(slots(node.resources, worker) for worker in workers)
    ]
    if not asked:
        return
    read = ray.remote(_reads_back)
    with shared_probe(sweep) as key:
        answers = {
            read.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            ).remote(sweep.url, key): node
            for node in asked
        }
        ray.wait(list(answers), num_returns=len(answers), timeout=PATIENCE_S)
        wrong = [(node, _what_is_wrong(answer)) for answer, node in answers.items()]
    left = {node.id for node in alive_nodes()}
    failed: dict[str, list[str]] = {}
    for node, why in wrong:
        if why is not None and node.id in left:
            failed.setdefault(why, []).append(node.name)
    if failed:
        raise InputError(_message(sweep.url, failed))


def _what_is_wrong(answer: Any) -> str | None:
    import ray

    try:
        return None if ray.get(answer, timeout=0) else CANNOT_READ
    except ray.exceptions.GetTimeoutError:
        return (
            f"did not say within {PATIENCE_S:.0f} s whether it can read what the driver wrote "
            "there; check its storage, or remove the node"
        )
    except ray.exceptions.RayError as error:
        return f"cannot even look there: {last_line(error)}; every node needs widthlab"


def _message(url: str, failed: Mapping[str, Sequence[str]]) -> str:
    """The message for nodes that failed, by reason."""
    told = (f"node(s) {', '.join(dict.fromkeys(names))} {why}" for why, names in failed.items())
    return f"storage {url} is not shared: {'; '.join(told)}"


def _reads_back(url: str, key: str, raising: bool = False) -> bool:
    try:
        return open_storage(url).get(key) == key.encode()
    except OSError as error:
        if raising and is_away(error):
            raise
        return False
