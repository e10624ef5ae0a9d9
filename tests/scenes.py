"""Pictures that are as irregular as photographs, and quick to make."""

import numpy as np


def scene(seed, size=96):
    """Coloured rectangles on a gradient, uint8 (size, size, 3)."""
    rng = np.random.default_rng(seed)
    image = np.linspace(rng.integers(0, 100, 3), rng.integers(100, 255, 3), size)[:, None].repeat(size, axis=1)
    for _ in range(12):
        top, left = rng.integers(0, size * 3 // 4, 2)
        height, width = rng.integers(size // 10, size // 2, 2)
        image[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return image.round().astype(np.uint8)
