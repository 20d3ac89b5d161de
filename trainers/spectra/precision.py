"""What matrix products are rounded to, on the threads that measure.

torch keeps one switch for TF32 for the whole process. Scatter matrices want it on for activations
that are coarser anyway, the eigenwork beside training wants it off: they take turns.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch

_turn = threading.RLock()


@contextlib.contextmanager
def products(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Within it products of float32 are summed in float32, whatever autocast is on around it.

    Their factors are float32 too, or on CUDA with `tf32` rounded to 11 significant bits.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(_turn)
            matmul = torch.backends.cuda.matmul
            stack.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
            matmul.allow_tf32 = tf32
        yield
