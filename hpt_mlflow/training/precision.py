"""Which arithmetic is fastest here: found by trying, since it depends on the network as much as on the processor."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn

from hpt_mlflow.errors import HptError

TRIAL_SECONDS = 1.0
CPU_TRIAL_IMAGES = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_precision(
    precision: str, backbone: nn.Module, image_size: int, batch_size: int, device: torch.device
) -> str:
    """`precision` itself, checked against the device; for `auto`, the fastest of those that are safe to choose.

    Raises:
        HptError: the device cannot do it.
    """
    if precision == "float16" and device.type != "cuda":
        raise HptError(f"precision: float16 needs a GPU, the device is {device}; use auto, float32 or bfloat16")
    if precision != "auto":
        return precision
    candidates = ["float32"]
    if _has_native_bfloat16(device):
        candidates.append("bfloat16")
    if len(candidates) == 1:
        return candidates[0]
    images = batch_size if device.type == "cuda" else min(batch_size, CPU_TRIAL_IMAGES)
    return min(candidates, key=lambda candidate: _step_seconds(candidate, backbone, image_size, images, device))


def _has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is done in hardware. Emulated, a step takes up to a hundred times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def _step_seconds(precision: str, backbone: nn.Module, image_size: int, images: int, device: torch.device) -> float:
    """Shortest time of a forward and backward pass, in seconds."""
    trial = copy.deepcopy(backbone).to(device).to(memory_format=torch.channels_last).train()
    batch = torch.rand(images, 3, image_size, image_size, device=device).to(memory_format=torch.channels_last)
    times: list[float] = []
    end = time.perf_counter() + TRIAL_SECONDS
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 20):
        start = time.perf_counter()
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32"):
            features = trial(batch)
        features.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
