"""What errors of a GPU mean: torch has a type of its own for few of them."""

from __future__ import annotations

import torch

# Of the libraries of CUDA, and of CUDA where it begins.
NO_MEMORY = ("CUDA error: out of memory", "ALLOC_FAILED", "NOT_INITIALIZED when calling `cublasCreate")
# After these, every call to the GPU fails in the process.
LOST = (
    "device-side assert",
    "hardware stack error",
    "illegal instruction",
    "illegal memory access",
    "launch timed out",
    "misaligned address",
    "uncorrectable ECC error",
    "unspecified launch failure",
)


def lacks_memory(error: Exception) -> bool:
    """Whether a device has too little free memory."""
    return isinstance(error, torch.OutOfMemoryError) or _says(error, NO_MEMORY)


def is_gpu_lost(error: Exception) -> bool:
    """Whether this process can use its GPU no more."""
    return _says(error, LOST)


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(part in str(error) for part in words)
