"""Word that this process is about to be taken away, while there is time for a checkpoint.

Ray sends no SIGTERM to the workers of a node that is drained: it marks the node, waits for its
work to end, and kills what is left at the deadline. `ray start --block`, which is what a container
or a service runs, does the same when it gets a SIGTERM itself. So the mark is looked for. A
SIGTERM to the process itself (from Slurm, systemd or an operator) means the same.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from trialstore.heartbeat import every

logger = logging.getLogger(__name__)

#: Seconds between two looks; a node that gets a SIGTERM gives its work thirty.
LOOK_S = 2.0


class PreemptedError(RuntimeError):
    """The trial has written a checkpoint and ended, for its place is about to go."""


@contextlib.contextmanager
def preemption_notice() -> Iterator[threading.Event]:
    """An event that is set when this process is to go, for the time of the block.

    Signals reach Python in the main thread alone: elsewhere only the node is watched.
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
    """The first SIGTERM gives notice; a second one does what it did before."""
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
    """As Ray Train asks it too: Ray has no public call for it."""
    import ray
    from ray._private.state import state

    if not ray.is_initialized():
        return False
    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
