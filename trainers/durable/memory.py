"""Smaller micro-batches for a trial that ran out of memory. The global batch stays the same.

Gradients are summed over micro-batches before the update, so the loss is the same up to the order
of summation. Checkpoints do not depend on the micro-batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from trainers.durable.failure import MicroBatchMemoryError, is_out_of_memory
from trainers.spec import TrialSpec


def micro_batch(spec: TrialSpec) -> int:
    """Return how many sequences a worker processes at once."""
    return spec.layout.micro_batch or spec.sequences // spec.layout.workers


def halved(spec: TrialSpec) -> TrialSpec | None:
    """Return the trial with at most half the micro-batch; None if that is 1 sequence already.

    The layout of the returned trial is marked as `retried_smaller`.
    """
    share, held = spec.sequences // spec.layout.workers, micro_batch(spec)
    smaller = next((size for size in range(held // 2, 0, -1) if share % size == 0), None)
    if smaller is None:
        return None
    layout = spec.layout.model_copy(update={"micro_batch": smaller, "retried_smaller": True})
    return spec.model_copy(update={"layout": layout})


@contextmanager
def for_a_micro_batch(spec: TrialSpec) -> Iterator[None]:
    """Raise MicroBatchMemoryError for an out-of-memory error in the block.

    Wrap work that processes one micro-batch at a time: elsewhere a smaller one would not help.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        held = micro_batch(spec)
        way_out = (
            "widthlab run tries half of it" if halved(spec) else "take a smaller model or context"
        )
        raise MicroBatchMemoryError(
            f"no memory for a micro-batch of {held} sequences of {spec.model.context} tokens; "
            f"{way_out} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        ) from error
