"""Devices on which bfloat16 is worth using."""

from __future__ import annotations

import torch

from hpt_mlflow.machine import processor


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16. Emulated, a step takes up to a hundred times as long."""
    if device.type == "cuda":
        # torch asks for the current one.
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and "_bf16" in processor()
