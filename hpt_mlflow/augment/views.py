"""Views: the random augmentations of an image that MoCo compares.

The crop works on images of any size, one by one, where they are decoded (`crop_views`). The rest works on whole
batches of equal size on the training device (`finish_views`), with random parameters drawn for each image. Together
they are the paper's chain RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur, RandomHorizontalFlip, and
normalise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hpt_mlflow.augment import color
from hpt_mlflow.augment.crop import centre_crop, random_crop
from hpt_mlflow.augment.subset import Strengths

ADJUSTMENTS = (color.adjust_brightness, color.adjust_contrast, color.adjust_saturation, color.adjust_hue)


def crop_views(
    images: Sequence[np.ndarray], size: int, subset: Sequence[str], strengths: Strengths, rng: np.random.Generator
) -> Tensor:
    """Cut two squares out of each image: random crops, or the same centre crop twice where the subset has no `crop`.

    Args:
        images: N decoded images, uint8 (height, width, 3), of any sizes.

    Returns:
        uint8 (2, N, 3, size, size).
    """
    views = np.empty((2, len(images), size, size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        if "crop" in subset:
            views[0, i] = random_crop(image, size, rng, strengths.crop_scale)
            views[1, i] = random_crop(image, size, rng, strengths.crop_scale)
        else:
            views[:, i] = centre_crop(image, size)
    return torch.from_numpy(views).permute(0, 1, 4, 2, 3)


def finish_views(crops: Tensor, subset: Sequence[str], strengths: Strengths, mean: Tensor, std: Tensor) -> Tensor:
    """Colour, grey, blur, flip and normalise a batch of crops on the device that they are on.

    Args:
        crops: uint8 (N, 3, size, size).
        mean, std: channel statistics of the dataset, float32 (3,), in [0, 1].

    Returns:
        float32 (N, 3, size, size), normalised. Draws from torch's global CPU generator, so that the views do not depend
        on the device.
    """
    images = crops.contiguous().float().div_(255)
    if "color" in subset:
        _jitter_color(images, strengths)
    if "gray" in subset:
        chosen = _choose(images, strengths.gray_p)
        images[chosen] = color.rgb_to_grayscale(images[chosen]).expand(-1, 3, -1, -1)
    if "blur" in subset:
        chosen = _choose(images, strengths.blur_p)
        sigma = torch.empty(len(chosen)).uniform_(*strengths.blur_sigma).to(images.device)
        radius = math.ceil(4 * strengths.blur_sigma[1])
        images[chosen] = color.gaussian_blur(images[chosen], sigma, radius)
    if "flip" in subset:
        chosen = _choose(images, strengths.flip_p)
        images[chosen] = images[chosen].flip(-1)
    return normalise(images, mean, std)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the channel mean and divide by the standard deviation; float32 (N, 3, height, width), in place."""
    return images.sub_(mean.view(1, 3, 1, 1)).div_(std.view(1, 3, 1, 1))


def _jitter_color(images: Tensor, strengths: Strengths) -> None:
    """Brightness, contrast, saturation and hue in an order drawn for each image, as ColorJitter; in place."""
    chosen = _choose(images, strengths.color_p)
    n = len(chosen)
    spread = (strengths.brightness, strengths.contrast, strengths.saturation, strengths.hue)
    centre = (1.0, 1.0, 1.0, 0.0)
    factors = torch.stack([torch.empty(n).uniform_(c - s, c + s) for c, s in zip(centre, spread, strict=True)])
    factors = factors.to(images.device)
    order = torch.rand(n, 4).argsort(dim=1).to(images.device)
    for turn in range(4):
        for i, adjust in enumerate(ADJUSTMENTS):
            if spread[i] == 0:
                continue
            here = order[:, turn] == i
            where = chosen[here]
            images[where] = adjust(images[where], factors[i, here])


def _choose(images: Tensor, probability: float) -> Tensor:
    """Indices of the images that an augmentation of this probability changes, (at most N,), on the images' device."""
    return (torch.rand(len(images)) < probability).nonzero().squeeze(1).to(images.device)
