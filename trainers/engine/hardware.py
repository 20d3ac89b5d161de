"""The name and peak speed of the device that a trial runs on."""

import platform

import torch

from trainers.spec import Precision

#: Dense peak FLOP/s from NVIDIA's data sheets, by a part of the device's name: (bf16 with float32
#: accumulation, float32). The float32 rate is without TF32, which torch disables by default.
PEAK_FLOPS = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "RTX 4090": (165e12, 82.6e12),
}


def peak_flops(device: torch.device, precision: Precision) -> float | None:
    """Return the device's dense peak in FLOP/s.

    Returns None for CPUs and for devices that are not in PEAK_FLOPS: their utilisation is unknown.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, (bf16, fp32) in PEAK_FLOPS.items():
        if part in name:
            return bf16 if precision == "bf16" else fp32
    return None


def device_name() -> str:
    """Return the current CUDA device's name, or "cpu" with the processor architecture."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()})"
