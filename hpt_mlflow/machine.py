"""What a figure of speed was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from hpt_mlflow.cores import available_cores

ABILITIES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def processor() -> str:
    """Name of the processor, and what it can do that matters here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return f"{name} ({', '.join(ability for ability in ABILITIES if ability in flags)})"


def machine(device: torch.device) -> str:
    """The GPU, or the processor and how many of its cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {available_cores()} cores"
