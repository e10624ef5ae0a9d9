"""How far the processor may be ahead of a GPU."""

from __future__ import annotations

from collections import deque

import torch

# Steps. What has been sent for a step stays in pinned memory until the GPU has read it.
MOST_AHEAD = 2


class Pace:
    """Lets the processor wait, at the end of a step, for what a GPU was asked to do some steps before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked: deque[torch.cuda.Event] = deque()

    def end_step(self) -> None:
        """All of a step has been asked for."""
        if self._device.type != "cuda":
            return
        # A processor that waits leaves its core to those that decode images.
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        self._asked.append(event)
        if len(self._asked) > MOST_AHEAD:
            self._asked.popleft().synchronize()

    def catch_up(self) -> None:
        """Wait until all steps are done."""
        while self._asked:
            self._asked.popleft().synchronize()
