"""The precision of float32 matrix products while spectra are measured."""

import contextlib
import threading
from collections.abc import Iterator

import torch

# torch's TF32 switch is process-wide. Scatter matrices of bf16 activations need it on, while the
# background thread needs it off for eigenvalues: the lock lets one of them run at a time.
_turn = threading.RLock()


@contextlib.contextmanager
def products(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Context in which float32 matrix products stay float32, even inside an autocast region.

    Args:
        device: The device of the matrices.
        tf32: On CUDA, round the factors to TF32 (11 significant bits). Sums stay float32.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(_turn)
            matmul = torch.backends.cuda.matmul
            stack.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
            matmul.allow_tf32 = tf32
        yield
