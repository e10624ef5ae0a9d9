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
    value = images.amax(dim=1)
    chroma = value - images.amin(dim=1)
    # The hue lies in that sixth of the circle that the largest channel says
    # (https://en.wikipedia.org/wiki/HSL_and_HSV, "From RGB").
    red_largest, green_largest = value == red, value == green
    difference = torch.where(red_largest, green - blue, torch.where(green_largest, blue - red, red - green))
    start = torch.where(red_largest, 0.0, torch.where(green_largest, 2.0, 4.0))
    # In circles, and positive. From here on in place: on a CPU, fresh memory costs more than the arithmetic.
    hue = difference.div_(chroma.clamp_min(1e-12)).add_(start).div_(6).add_(factor.view(-1, 1, 1) + 2)
    # Back to RGB with one formula for the three channels (same page, "HSV to RGB alternative").
    # 5/6, 3/6 and 1/6; a list would be sent to the device, which waits for what it is doing.
    k = hue[:, None] + torch.arange(5, 0, -2, device=images.device).div(6).view(1, 3, 1, 1)
    share = k.frac_().mul_(6).sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
    return torch.addcmul(value[:, None], chroma[:, None], share, value=-1)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of standard deviation `sigma` pixels, cut off at `radius` pixels, borders reflected.

    Rows and columns are multiplied by one band matrix an image: exact, and fast on every device.
    """
    height, width = images.shape[-2:]
    along_rows = _blur_matrix(width, sigma, radius)
    along_columns = along_rows if height == width else _blur_matrix(height, sigma, radius)
    return _blur_rows(_blur_rows(images, along_rows).transpose(2, 3), along_columns).transpose(2, 3)


def _blur_rows(images: Tensor, matrices: Tensor) -> Tensor:
    n, channels, height, width = images.shape
    rows = images.reshape(n, channels * height, width)
    return torch.bmm(rows, matrices.transpose(1, 2)).view(n, channels, height, width)


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
