"""Devices on which bfloat16 is worth trying."""

from __future__ import annotations

import torch


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16. Emulated, a step takes up to a hundred times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # PyTorch has no public function for this.
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False
