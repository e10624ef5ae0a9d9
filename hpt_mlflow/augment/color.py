"""Colour and blur on whole batches, with parameters of their own for each image.

All functions take and give float32 images (N, 3, height, width) in [0, 1] and a float32 parameter of shape (N,), and do
per image what the function of the same name in `torchvision.transforms.v2.functional` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

# ITU-R 601-2, as torchvision and Pillow turn RGB into grey.
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def rgb_to_grayscale(images: Tensor) -> Tensor:
    """Brightness as one channel: (N, 1, height, width)."""
    red, green, blue = images.split(1, dim=1)
    return GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """0 is black, 1 the image itself."""
    return (images * _per_image(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """0 is the image's mean grey everywhere, 1 the image itself."""
    mean = rgb_to_grayscale(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _per_image(factor)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """0 is grey, 1 the image itself."""
    return torch.lerp(rgb_to_grayscale(images), images, _per_image(factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by `factor` of the full circle, -0.5 to 0.5."""
    red, green, blue = images.unbind(dim=1)  # N x H x W each
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Hue in sixths of the circle, from the largest channel (https://en.wikipedia.org/wiki/HSL_and_HSV).
    red_largest, green_largest = value == red, value == green
    difference = torch.where(red_largest, green - blue, torch.where(green_largest, blue - red, red - green))
    start = torch.where(red_largest, 0.0, torch.where(green_largest, 2.0, 4.0))
    hue = difference / chroma.clamp_min(1e-12) + start + 6 * factor.view(-1, 1, 1)
    # Back to RGB with one formula for the three channels (same page, "HSV to RGB alternative").
    offset = torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1)
    k = hue[:, None] + offset
    k -= 6 * torch.floor(k / 6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of standard deviation `sigma` pixels, cut off at `radius` pixels, borders reflected.

    Rows and columns are multiplied by one band matrix an image: exact, and fast on every device.
    """
    n, _, height, width = images.shape
    rows = _blur_matrix(height, sigma, radius)
    columns = _blur_matrix(width, sigma, radius)
    blurred = images.reshape(n, 3 * height, width) @ columns.transpose(1, 2)
    return rows[:, None] @ blurred.view(n, 3, height, width)


def _blur_matrix(length: int, sigma: Tensor, radius: int) -> Tensor:
    """(N, length, length) matrices that blur a line: entry [i, j] is the weight of pixel j in the new pixel i."""
    last = length - 1
    distance = torch.arange(2 * length, device=sigma.device)
    density = torch.exp(-(distance**2) / (2 * sigma[:, None] ** 2)) * (distance <= min(radius, last))
    density = density / (2 * density.sum(dim=1, keepdim=True) - density[:, :1])
    i, j = distance[:length, None], distance[None, :length]
    direct = density[:, (i - j).abs()]
    reflected_start = density[:, i + j] * (j > 0)
    reflected_end = density[:, 2 * last - i - j] * (j < last)
    return direct + reflected_start + reflected_end


def _per_image(parameter: Tensor) -> Tensor:
    return parameter.view(-1, 1, 1, 1)
