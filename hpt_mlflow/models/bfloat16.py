"""Where bfloat16 is worth a try."""

from __future__ import annotations

import torch


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is done in hardware. Emulated, a step takes up to a hundred times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False
