"""What the devices are and how fast they could be."""

import platform

import torch

from trainers.spec import Precision

#: Dense peak FLOP/s by a part of the device's name: (bf16 with float32 accumulation, float32),
#: from NVIDIA's data sheets. float32 is the rate without TF32, which torch leaves off.
PEAK_FLOPS = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "RTX 4090": (165e12, 82.6e12),
}


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """The device's dense peak, FLOP/s; None where it is not known, so no utilisation is made up."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, (bf16, fp32) in PEAK_FLOPS.items():
        if part in name:
            return bf16 if precision == "bf16" else fp32
    return None


def device_name() -> str:
    """The CUDA device's name, or the machine's processor architecture."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()})"
