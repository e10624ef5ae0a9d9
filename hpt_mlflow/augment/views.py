"""Views: the random augmentations of an image that a method compares.

The crop takes images of any size, in the process that decodes them (`crop_views`). The rest takes whole batches of
equal size on the training device (`finish_views`): compiled loops on a CPU (`kernels`), torch elsewhere (`color`).
Together they are the paper's chain RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur,
RandomHorizontalFlip, and normalise. All random numbers come from `draws`, so that both do the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.augment import color, kernels
from hpt_mlflow.augment.crop import centre_crop
from hpt_mlflow.augment.draws import CropDraws, FinishDraws, blur_radius
from hpt_mlflow.augment.subset import Strengths

# As `draws.FinishDraws` counts the operations; 0, brightness, blends with black.
CONTRAST, SATURATION, HUE = 1, 2, 3
# Images per thread; fewer are not worth a thread.
SMALLEST_PART = 8


def crop_views(
    images: Sequence[np.ndarray], size: int, subset: Sequence[str], strengths: Strengths, draws: CropDraws
) -> Tensor:
    """Cut V squares out of each image: random crops, or the same centre crop V times if the subset has no `crop`.

    Args:
        images: N decoded images, uint8 or uint16 (height, width, channels), of any sizes.

    Returns:
        The same of (V, N, channels, size, size); in memory x comes before y, as `finish_views` likes it.
    """
    low, high = strengths.crop_scale
    views = len(draws.shapes)
    like = images[0] if len(images) else np.empty((0, 0, 3), np.uint8)
    crops = np.empty((views, len(images), like.shape[2], size, size), dtype=like.dtype)

    def cut(part: slice) -> None:
        for i in range(part.start, part.stop):
            if "crop" not in subset:
                crops[:, i] = centre_crop(images[i], size).transpose(2, 1, 0)
                continue
            image = _read_only(images[i])
            for view in range(views):
                kernels.crop(image, draws.shapes[view, i], draws.places[view, i], low, high, crops[view, i])

    _in_parts(len(images), cut)
    return torch.from_numpy(crops).transpose(3, 4)


def finish_views(crops: Tensor, draws: FinishDraws, strengths: Strengths, mean: Tensor, std: Tensor) -> Tensor:
    """Colour, grey, blur, flip and normalise a batch of crops on the device that they are on.

    Args:
        crops: uint8 or uint16 (N, channels, size, size). Three are red, green and blue; others have no colour, and only
            the brightness and contrast of each are changed.
        mean, std: channel statistics of the dataset, float32 (channels,), where white is 1.

    Returns:
        float32 (N, channels, size, size), normalised, channels_last.
    """
    finish = finish_image_by_image if crops.device.type == "cpu" else finish_in_batches
    return finish(crops, draws, blur_radius(strengths), mean, std)


def finish_image_by_image(crops: Tensor, draws: FinishDraws, radius: int, mean: Tensor, std: Tensor) -> Tensor:
    """`finish_views` on a CPU."""
    planes = crops.transpose(2, 3).contiguous().numpy()
    n, channels, width, height = planes.shape
    views = np.empty((n, height, width, channels), dtype=np.float32)
    scale = np.float32(1 / white(crops))

    def finish(part: slice) -> None:
        d = draws.part(part)
        statistics = mean.contiguous().numpy(), std.contiguous().numpy()
        kernels.finish(planes[part], *d[:5], radius, d.flip, scale, *statistics, views[part])

    _in_parts(n, finish)
    return torch.from_numpy(views).permute(0, 3, 1, 2)


def finish_in_batches(crops: Tensor, draws: FinishDraws, radius: int, mean: Tensor, std: Tensor) -> Tensor:
    """`finish_views` on other devices: one operation at a time, on all images that it applies to."""
    images = crops.float().div_(white(crops))
    has_colour = images.shape[1] == 3
    # Operation and factor of each image in each of four turns; hue is not a blend, and is done separately.
    turns = np.where(draws.color, draws.order.T, -1)  # 4 x N
    if not has_colour:
        turns[turns > CONTRAST] = -1
    factors = np.take_along_axis(draws.factors.T, draws.order.T, axis=0)
    blends = np.stack([np.where((turns < 0) | (turns == HUE), 1, factors), turns == SATURATION, turns == CONTRAST])
    *hues, gray, blurred, flipped = _indices([*(turns == HUE), draws.gray, draws.sigma > 0, draws.flip], crops.device)
    *blended, hue, sigma = _send(
        np.vstack([*blends, draws.factors.T[HUE], draws.sigma]).astype(np.float32), crops.device
    )
    for turn, turned in enumerate(hues if draws.color.any() else []):
        factor, grayness, mean_grayness = blended[turn :: len(turns)]
        if not has_colour:
            images = color.blend_bands(images, factor, mean_grayness)
            continue
        images = color.blend(images, factor, grayness, mean_grayness)
        if len(turned):
            images.index_copy_(0, turned, color.adjust_hue(images[turned], hue[turned]))
    if has_colour:
        images.index_copy_(0, gray, color.rgb_to_grayscale(images[gray]).expand(-1, 3, -1, -1))
    if len(blurred):
        images.index_copy_(0, blurred, color.gaussian_blur(images[blurred], sigma[blurred], radius))
    images.index_copy_(0, flipped, images[flipped].flip(-1))
    return normalise(images, mean, std).contiguous(memory_format=torch.channels_last)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the channel mean and divide by the standard deviation; float32 (N, C, height, width), in place."""
    return images.sub_(mean.view(1, -1, 1, 1)).div_(std.view(1, -1, 1, 1))


def white(pixels: Tensor) -> int:
    """The number that is white: 255 or 65,535."""
    return torch.iinfo(pixels.dtype).max


def _read_only(image: np.ndarray) -> np.ndarray:
    """The image as a read-only array, as mapped files are, so that the kernels are compiled only once."""
    view = np.ascontiguousarray(image).view()
    view.flags.writeable = False
    return view


def _in_parts(count: int, work: Callable[[slice], None]) -> None:
    """Do the work on parts of a batch, one per thread of torch."""
    threads = max(1, min(torch.get_num_threads(), count // SMALLEST_PART))
    if threads == 1:
        work(slice(0, count))
        return
    edges = np.linspace(0, count, threads + 1).astype(int).tolist()
    first, *others = map(slice, edges[:-1], edges[1:])
    waiting = [_pool(threads - 1, os.getpid()).submit(work, part) for part in others]
    work(first)
    for future in waiting:
        future.result()


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that are kept from step to step. A forked process does not have those of its parent."""
    return ThreadPoolExecutor(threads, "hpt-views")


def _indices(masks: Sequence[np.ndarray], device: torch.device) -> Sequence[Tensor]:
    """Where each mask is true, int64, sent to the device together."""
    indices = [np.flatnonzero(mask) for mask in masks]
    return _send(np.concatenate(indices), device).split(list(map(len, indices)))


def _send(values: np.ndarray, device: torch.device) -> Tensor:
    """To the device without waiting for what it is doing."""
    tensor = torch.from_numpy(values)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
