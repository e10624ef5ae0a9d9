"""Pictures that are quick to make: some as irregular as photographs, and digits as files."""

from functools import cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

_digits = cache(load_digits)


def scene(seed, size=96):
    """Coloured rectangles on a gradient, uint8 (size, size, 3)."""
    rng = np.random.default_rng(seed)
    image = np.linspace(rng.integers(0, 100, 3), rng.integers(100, 255, 3), size)[:, None].repeat(size, axis=1)
    for _ in range(12):
        top, left = rng.integers(0, size * 3 // 4, 2)
        height, width = rng.integers(size // 10, size // 2, 2)
        image[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return image.round().astype(np.uint8)


def digits(count):
    """Pictures of 8 x 8 pixels and what they show."""
    images, labels = _digits().images[:count], _digits().target[:count]
    return [
        (Image.fromarray(np.uint8(image * 255 / 16)), str(label)) for image, label in zip(images, labels, strict=True)
    ]


def write_digits(folder, count=300):
    """A labelled folder of digits: opened and searched for neighbours in a tenth of the time of builtin:digits."""
    for i, (image, label) in enumerate(digits(count)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        image.save(folder / label / f"{i:03}.png")
    return folder
