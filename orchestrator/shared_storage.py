"""Whether the nodes of a cluster read what the driver writes: a trial's directory is the truth only
if they all see the same one."""

import contextlib
import socket
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.errors import InputError
from analysis.storage import Storage, open_storage
from orchestrator.placement import Node, need_of, slots
from orchestrator.ray_cluster import alive_nodes, last_line
from trainers.spec import TrialSpec

#: The folder of what the driver leaves for the nodes to read. Every run uses a name of its own:
#: a file system that remembers for a while that a name was missing has never been asked for it.
PROBES = "storage-probe"

#: Seconds within which a node answers: it starts a process first, and may be busy.
PATIENCE_S = 60.0


CANNOT_READ = (
    "cannot read what the driver wrote there; use a path on a shared file system or an object store"
)


class NotSharedError(RuntimeError):
    """A node that joined later does not see the sweep's storage: another node may."""


@contextlib.contextmanager
def shared_probe(sweep: Storage) -> Iterator[str]:
    """An object for the nodes to read back, for the time of the block; its key."""
    for left in sweep.list(PROBES):  # by a driver that was killed: only one drives a sweep
        sweep.delete(left)
    key = f"{PROBES}/{uuid.uuid4().hex}"
    sweep.put(key, key.encode())
    try:
        yield key
    finally:
        sweep.delete(key)


def require_shared(url: str, key: str) -> None:
    """For the node that this process is on. Raises NotSharedError if it does not see the probe."""
    if not _reads_back(url, key):
        raise NotSharedError(_message(url, [socket.gethostname()], CANNOT_READ))


def check_shared(sweep: Storage, nodes: Sequence[Node], trials: Sequence[TrialSpec]) -> None:
    """Every node on which a worker of a trial may run reads what the driver writes.

    A node that dies meanwhile does not count. Raises InputError naming those that cannot read it
    and why. The driver's own node needs no check.
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
        failed: dict[str, list[str]] = {}
        for answer, node in answers.items():
            why = _what_is_wrong(answer)
            if why is not None and node.id in {alive.id for alive in alive_nodes()}:
                failed.setdefault(why, []).append(node.name)
    for why, names in failed.items():
        raise InputError(_message(sweep.url, names, why))


def _what_is_wrong(answer: Any) -> str | None:
    import ray

    try:
        return None if ray.get(answer, timeout=0) else CANNOT_READ
    except ray.exceptions.GetTimeoutError:
        return (
            f"did not say within {PATIENCE_S:.0f} s whether it can read what the driver wrote "
            "there; see to its storage, or take the node away"
        )
    except ray.exceptions.RayError as error:
        return f"cannot even look there: {last_line(error)}; every node needs widthlab"


def _message(url: str, names: Sequence[str], why: str) -> str:
    named = ", ".join(dict.fromkeys(names))
    return f"storage {url} is not shared: node(s) {named} {why}"


def _reads_back(url: str, key: str) -> bool:
    try:
        return open_storage(url).get(key) == key.encode()
    except OSError:
        return False
