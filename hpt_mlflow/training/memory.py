"""What to say when a GPU is out of memory: how large a batch it has room for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from hpt_mlflow.data.batches import Batch
from hpt_mlflow.errors import HptError
from hpt_mlflow.training.views import StepViews

if TYPE_CHECKING:
    from hpt_mlflow.training.loop import Trainer

GIB = 2**30
# What is not measured: the optimiser's state, and memory that is free but in pieces.
SHARE = 0.8
# Images that are tried, as a share of those that did not fit.
TRIED = 8


def out_of_memory(trainer: Trainer, batch: Batch, images_bytes: int = 0) -> HptError:
    """The error for a step that did not fit; of a single process on a GPU, with a batch that would.

    What the step has left behind must be gone, with the exception that it raised.

    Args:
        images_bytes: of its memory that the images of the training take.
    """
    device, images = trainer.device, trainer.plan.batch_size
    problem, remedy = f"{device} has no memory for steps of {images} images", "use a smaller one"
    if trainer.group.size == 1 and device.type == "cuda":
        trainer.method.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        holding = f", of which {images_bytes / GIB:.1f} hold images" if images_bytes else ""
        problem += f" ({free / GIB:.1f} GiB are there for this process{holding})"
        measured = _measured(device, max(2, images // TRIED), free, partial(try_step, trainer, batch))
        fitting = min(measured, images - 1)
        remedy = f"use {fitting} or less" if fitting >= 2 else "use a smaller one, a smaller network or smaller images"
    return HptError(problem, remedy, setting="batch_size")


def try_step(trainer: Trainer, batch: Batch, images: int) -> None:
    """A step with some images of a batch, up to its gradients."""
    rng = np.random.default_rng(0)
    crops = [crop[:images] for crop in trainer.crops_of(batch)]
    views = StepViews(crops, [trainer.draw_view(rng) for _ in crops], rng, trainer.finish, trainer.group)
    trainer.method.zero_grad()
    with trainer.autocast():
        trainer.method(views, 0).loss.backward()
    trainer.method.zero_grad()


def _measured(device: torch.device, images: int, free: int, try_step: Callable[[int], None]) -> int:
    """How many images fit, from the memory that a step of some takes; 0 if not even they do, or cannot be tried."""
    torch.cuda.reset_peak_memory_stats(device)
    idle = torch.cuda.memory_allocated(device)
    try:
        try_step(images)
    # Besides memory, a layer may lack images, as BatchNorm does if parts of a batch have one each.
    except (RuntimeError, ValueError):
        return 0
    return images_that_fit(images, torch.cuda.max_memory_allocated(device) - idle, int(SHARE * free) - idle)


def images_that_fit(images: int, taken: int, free: int) -> int:
    """As many images as fit into free memory if some take what was measured; a multiple of 8 where that is more than 8.

    Args:
        taken, free: bytes.
    """
    fitting = max(0, images * free // max(taken, 1))
    return fitting if fitting < 8 else fitting // 8 * 8
