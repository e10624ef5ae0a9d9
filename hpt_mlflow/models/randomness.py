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
        # torch.manual_seed would seed kinds of devices that are not here, too, and looks at the stack for each.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield
