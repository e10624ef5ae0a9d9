"""Seeded random numbers for layers that draw from torch's global generators, as initial weights and dropout do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")
# All threads share torch's generators: two that draw at once would mix up their numbers.
_drawing = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed torch's generators in the block, which no other block shares, and restore them afterwards.

    Args:
        device: whose generator is seeded, in addition to the CPU's.
    """
    with _drawing, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
