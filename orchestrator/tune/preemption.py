"""Notice that this process is about to be preempted, while there is time for a checkpoint.

Ray sends no SIGTERM to the workers of a node that is drained. It marks the node, waits for its work
to end, and kills what is left at the deadline. `ray start --block`, which containers and services
run, does the same when it gets a SIGTERM itself. So this module polls for the mark. A SIGTERM to
the process itself (from Slurm, systemd or an operator) means the same.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from trialstore.heartbeat import every

logger = logging.getLogger(__name__)

#: Seconds between two looks. A node that gets a SIGTERM gives its work thirty.
LOOK_S = 2.0


class PreemptedError(RuntimeError):
    """The trial wrote a checkpoint and ended, because its process or node is about to go."""


@contextlib.contextmanager
def preemption_notice() -> Iterator[threading.Event]:
    """Yield an event that is set once this process is about to be preempted.

    Python handles signals in the main thread only. In another thread, only the node is watched.
    """
    notice = threading.Event()

    def look() -> None:
        if not notice.is_set() and _node_is_drained():
            logger.warning("this node is being drained: writing a checkpoint and ending")
            notice.set()

    with _on_sigterm(notice), every(LOOK_S, look):
        yield notice


@contextlib.contextmanager
def _on_sigterm(notice: threading.Event) -> Iterator[None]:
    """Give notice at the first SIGTERM, and restore the previous handler for the second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGTERM)

    def give_notice(kind: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, previous)
        notice.set()

    signal.signal(signal.SIGTERM, give_notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _node_is_drained() -> bool:
    """Whether Ray drains this node. There is no public call; Ray Train uses this one too."""
    import ray
    from ray._private.state import state

    if not ray.is_initialized():
        return False
    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
