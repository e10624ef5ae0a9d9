"""Colour and blur on whole batches, with separate parameters per image.

All functions take and give float32 images (N, 3, height, width) in [0, 1] and float32 parameters of shape (N,), and do
per image what `torchvision.transforms.v2.functional` does. On a GPU, images of 64 pixels take less time than the calls
that start the work: the fewer operations, the better.
"""

from __future__ import annotations

import torch
from torch import Tensor

# ITU-R 601-2, as torchvision and Pillow turn RGB into grey.
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def rgb_to_grayscale(images: Tensor) -> Tensor:
    """Brightness as one channel: (N, 1, height, width)."""
    red, green, blue = images.split(1, dim=1)
    return (red * GRAY_WEIGHTS[0]).add_(green, alpha=GRAY_WEIGHTS[1]).add_(blue, alpha=GRAY_WEIGHTS[2])


def blend(images: Tensor, factor: Tensor, grayness: Tensor, mean_grayness: Tensor) -> Tensor:
    """A factor of 1 is the image itself, 0 its own grey, its mean grey everywhere, or black.

    Args:
        grayness: 1 where the image is blended with its grey, as by `adjust_saturation`; else 0.
        mean_grayness: 1 for its mean grey, as by `adjust_contrast`; else 0. With neither, black: `adjust_brightness`.
    """
    gray = rgb_to_grayscale(images)
    mean = gray.mean(dim=(1, 2, 3), keepdim=True).mul_(_per_image(mean_grayness))
    return torch.lerp(torch.addcmul(mean, gray, _per_image(grayness)), images, _per_image(factor)).clamp_(0, 1)


def blend_bands(images: Tensor, factor: Tensor, mean_grayness: Tensor) -> Tensor:
    """`blend` of any number of bands, each with its own mean or with black; (N, C, height, width)."""
    mean = images.mean(dim=(2, 3), keepdim=True).mul_(_per_image(mean_grayness))
    return torch.lerp(mean, images, _per_image(factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by `factor` of the full circle, -0.5 to 0.5."""
    # The largest channel decides in which third of the circle the hue lies
    # (https://en.wikipedia.org/wiki/HSL_and_HSV, "From RGB").
    value, largest = images.max(dim=1, keepdim=True)  # N x 1 x H x W each
    chroma = value - images.amin(dim=1, keepdim=True)
    difference = (images.roll(-1, dims=1) - images.roll(-2, dims=1)).gather(1, largest)
    hue = difference.div_(chroma.clamp_min(1e-12)).add_(largest, alpha=2)  # in sixths
    # Back to RGB with one formula for the three channels (same page, "HSV to RGB alternative"). 5, 3 and 1 are not made
    # from a list: sending it would wait for the device.
    turn = torch.arange(5, 0, -2, device=images.device) + 6 * factor[:, None]  # N x 3
    share = (hue + turn[:, :, None, None]).remainder_(6).sub_(2).abs_().sub_(2).neg_().clamp_(0, 1)
    return torch.addcmul(value, chroma, share, value=-1)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of standard deviation `sigma` pixels, cut off at `radius` pixels, borders reflected.

    Rows and columns are multiplied by one band matrix per image: exact, and fast on every device.
    """
    height, width = images.shape[-2:]
    along_rows = _blur_matrix(width, sigma, radius)
    along_columns = along_rows if height == width else _blur_matrix(height, sigma, radius)
    return _blur_rows(_blur_rows(images, along_rows).transpose(2, 3), along_columns).transpose(2, 3)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the channel mean and divide by the standard deviation; float32 (N, C, height, width), in place."""
    return images.sub_(mean.view(1, -1, 1, 1)).div_(std.view(1, -1, 1, 1))


def white(pixels: Tensor) -> int:
    """The number that is white: 255 or 65,535."""
    return torch.iinfo(pixels.dtype).max


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
