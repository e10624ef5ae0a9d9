"""Progress of long work: a bar on a terminal or in a notebook, else one line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

from tqdm import auto, std
from typing_extensions import Self

LINE_SECONDS = 15.0


class ProgressDisplay:
    """Loss, images per second and time left of a training."""

    def __init__(self, title: str, steps: int, done: int = 0) -> None:
        self._title = title
        self._steps = steps
        self._loss = ""
        self._started = self._shown = time.monotonic()
        self._first = done
        self._rate = 0.0
        self._bar = auto.tqdm(total=steps, initial=done, desc=title, unit="step") if _has_bars() else None

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` steps are done, with the newest metrics, if any."""
        if "train/loss" in metrics:
            self._loss = f"loss {metrics['train/loss']:.3f}, "
        self._rate = metrics.get("train/images_per_second", self._rate)
        if self._bar is not None:
            self._bar.update(1)
            if self._rate:
                self._bar.set_postfix_str(f"{self._loss}{self._rate:.0f} images/s")
        elif step == self._steps or time.monotonic() - self._shown > LINE_SECONDS:
            self._shown = time.monotonic()
            left = (self._steps - step) * (self._shown - self._started) / max(1, step - self._first)
            rate = f"{self._rate:.0f} images/s, " if self._rate else ""
            text = f"{self._title}: step {step}/{self._steps}, {self._loss}{rate}{left:.0f} s left"
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()


def _has_bars() -> bool:
    """Whether standard error is a terminal, or tqdm has found a notebook."""
    return sys.stderr.isatty() or auto.notebook_tqdm is not std.tqdm


def show_steps(title: str) -> Callable[[int, int], None]:
    """A function to call after each step with its number, from 1, and the total; it shows them."""
    display: ProgressDisplay | None = None

    def on_step(step: int, steps: int) -> None:
        nonlocal display
        display = display or ProgressDisplay(title, steps)
        display.advance(step, {})
        if step == steps:
            display.close()

    return on_step
