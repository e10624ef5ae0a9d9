"""Views: the random augmentations of an image that a method compares.

The crop takes images of any size, in the process that decodes them (`crop_views`), or on a GPU that holds them
(`data.gpu_images`). The rest takes whole batches of equal size on the training device (`finish_views`): compiled loops
on a CPU (`kernels`), elsewhere torch (`in_batches`), or on a GPU a few kernels of Triton (`gpu_kernels`). Together
they are the paper's chain RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur, RandomHorizontalFlip, and
normalise. All random numbers come from `draws`, so that both do the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.augment import crop_kernels, kernels
from hpt_mlflow.augment.color import white
from hpt_mlflow.augment.crop import centre_crop
from hpt_mlflow.augment.draws import CropDraws, FinishDraws, blur_radius
from hpt_mlflow.augment.on_gpu import finish_in_batches
from hpt_mlflow.augment.subset import Strengths

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
                crop_kernels.crop(image, draws.shapes[view, i], draws.places[view, i], low, high, crops[view, i])

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
