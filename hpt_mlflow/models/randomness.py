"""Random numbers that torch's layers draw by themselves, as weights and dropout do: from a seed, whatever else runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")
# All threads share torch's generators: two that draw at once would each get a part of the other's numbers.
_drawing = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Let torch draw from a seed in the block, while no other block draws; its generators are left as they were.

    Args:
        device: on which numbers are drawn beside the processor.
    """
    with _drawing, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
