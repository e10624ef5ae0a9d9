"""Views on a GPU: by the kernels of `gpu_kernels` where there is Triton and they do what torch does, else plainly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.augment import color
from hpt_mlflow.augment.crop_kernels import resize_box
from hpt_mlflow.augment.draws import FinishDraws, blur_radius, draw_finish
from hpt_mlflow.augment.in_batches import Applied, finish_plainly, send, table_of
from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths
from hpt_mlflow.errors import one_line

# Images of a trial, their side, that of crops, and how far its results may be apart, in shares of white. Crops are
# compiled for sides that are a multiple of 16, as most are, and have more pixels than one program makes.
TRIED_IMAGES, TRIED_SIDE, TRIED_CROP, LARGEST_ERROR = 16, 60, 48, 1e-3
STRENGTHS = Strengths(color_p=1, gray_p=0.5, blur_p=0.5, flip_p=0.5)

log = logging.getLogger("hpt_mlflow")


def finish_in_batches(crops: Tensor, draws: FinishDraws, radius: int, mean: Tensor, std: Tensor) -> Tensor:
    """`views.finish_views` on other devices than a CPU."""
    table = send(table_of(draws, crops.shape[1]), crops.device)
    return finish_by_table(crops, table, Applied.by(draws), radius, mean, std)


def finish_by_table(crops: Tensor, table: Tensor, applied: Applied, radius: int, mean: Tensor, std: Tensor) -> Tensor:
    """`finish_in_batches` by a table that is on the device.

    Args:
        table: see `table_of`, float32 (17, N).
        applied: what may be left out for all images.
    """
    by_kernels = crops.shape[1] == 3 and finishes(crops.device, crops.dtype)
    return (finish if by_kernels else finish_plainly)(crops, table, applied, radius, mean, std)


def finish(crops: Tensor, table: Tensor, applied: Applied, radius: int, mean: Tensor, std: Tensor) -> Tensor:
    """`finish_plainly` of three channels by four kernels at most."""
    from hpt_mlflow.augment import gpu_kernels

    n, _, side, _ = crops.shape
    table = table.contiguous()
    planes = torch.empty((n, 3, side, side), device=crops.device)
    views = torch.empty((n, side, side, 3), device=crops.device)
    if not n:
        return views.permute(0, 3, 1, 2)
    parts = -(-side * side // gpu_kernels.PIXELS.value)
    sums = torch.empty((n, parts) if applied.color else 0, device=crops.device)
    given = n, side, *crops.stride(), color.white(crops)
    with _on(crops.device):
        if applied.color:
            gpu_kernels.add_gray[n, parts](crops, table, sums, *given)
        gpu_kernels.color[n, parts](crops, table, sums, planes, *given, parts, jitters=applied.color)
        rows = torch.empty_like(planes) if applied.blur else planes
        if applied.blur:
            gpu_kernels.blur_rows[n, parts, 3](planes, table, rows, n, side, radius)
        gpu_kernels.finish[n, parts, 3](
            planes, rows, table, mean.contiguous(), std.contiguous(), views, n, side, radius, blurs=applied.blur
        )
    return views.permute(0, 3, 1, 2)


def cut(pixels: Tensor, boxes: Tensor, side: int, channels: int) -> Tensor:
    """Crops of boxes of images that are on the GPU.

    Args:
        pixels, boxes: see `gpu_kernels.cut`.

    Returns:
        As `pixels`, (M, channels, side, side).
    """
    from hpt_mlflow.augment import gpu_kernels

    crops = torch.empty((len(boxes), channels, side, side), dtype=pixels.dtype, device=pixels.device)
    if len(boxes):
        with _on(pixels.device):
            parts = -(-side * side // gpu_kernels.PIXELS.value)
            gpu_kernels.cut[len(boxes), parts, channels](pixels, boxes, crops, side, channels)
    return crops


@lru_cache
def finishes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether views are made by kernels: on a GPU with Triton, if a trial gives what torch gives."""
    return device.type == "cuda" and _agrees("views", partial(finish_error, device, dtype))


@lru_cache
def cuts(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether crops can be cut by a kernel: on a GPU with Triton, if a trial gives what loops give."""
    return device.type == "cuda" and _agrees("crops", partial(cut_error, device, dtype))


def finish_error(device: torch.device, dtype: torch.dtype, side: int = TRIED_CROP) -> float:
    """The largest difference between kernels and torch over some views of noise, where white is 1.

    Of torch on the processor, as a GPU may be allowed to round to ten bits (TF32).
    """
    rng, white = np.random.default_rng(0), torch.iinfo(dtype).max
    noise = rng.integers(0, white, (TRIED_IMAGES, 3, side, side), np.uint16, endpoint=True)
    crops = torch.from_numpy(noise).to(dtype)
    table = torch.from_numpy(table_of(draw_finish(rng, TRIED_IMAGES, AUGMENTATIONS, STRENGTHS), 3))
    given = Applied(True, True, True, True), blur_radius(STRENGTHS)
    black_and_white = torch.zeros(3), torch.ones(3)
    expected = finish_plainly(crops, table, *given, *black_and_white)
    # As they come from the GPU itself, and from the loops.
    layouts = crops, crops.transpose(2, 3).contiguous().transpose(2, 3)
    there = [value.to(device) for value in (table, *black_and_white)]
    return max(
        float((finish(layout.to(device), there[0], *given, *there[1:]).cpu() - expected).abs().max())
        for layout in layouts
    )


def cut_error(device: torch.device, dtype: torch.dtype, side: int = TRIED_CROP) -> float:
    """The largest difference between the kernel and loops on the processor over some crops of noise, white being 1."""
    rng, white = np.random.default_rng(0), torch.iinfo(dtype).max
    shape = (TRIED_IMAGES, TRIED_SIDE, TRIED_SIDE, 3)
    images = rng.integers(0, white, shape, np.uint16, endpoint=True).astype(str(dtype).rpartition(".")[2])
    boxes, expected = [], np.empty((TRIED_IMAGES, 3, side, side), images.dtype)
    for number, image in enumerate(images):
        left, top = rng.integers(0, TRIED_SIDE - 1, 2)
        box = left, top, *(int(rng.integers(1, TRIED_SIDE - start, endpoint=True)) for start in (left, top))
        resize_box(image, *box, expected[number])
        boxes.append((number * image.size, TRIED_SIDE, *box))
    pixels = torch.from_numpy(images).to(device).view(-1)
    crops = cut(pixels, torch.tensor(boxes, device=device), side, 3)
    # The loops have x before y.
    difference = crops.cpu().numpy().astype(int) - expected.transpose(0, 1, 3, 2)
    # One level of 8 bits may be rounded the other way.
    return float((np.abs(difference).max() - 1) / white)


def _agrees(what: str, error: Callable[[], float]) -> bool:
    """Whether a trial succeeds; if not, the user is told why not."""
    try:
        why_not = "" if (found := error()) <= LARGEST_ERROR else f"their results are {found:.2g} apart"
    # There is no Triton, as on Windows.
    except ModuleNotFoundError:
        return False
    # It may work the next time.
    except torch.OutOfMemoryError:
        raise
    # Whatever its compiler may raise.
    except Exception as problem:
        why_not = f"{one_line(problem)}; Triton needs a C compiler and the header files of Python"
    if why_not:
        log.warning("%s are made without Triton's kernels, which is slower (%s)", what, why_not)
    return not why_not


def _on(device: torch.device) -> torch.cuda.device:
    """Makes a GPU the current one, on which Triton starts kernels; nothing for a processor."""
    return torch.cuda.device(device.index if device.type == "cuda" else -1)
