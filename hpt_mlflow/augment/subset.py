"""Which augmentations make a view, and how strong each one is."""

from __future__ import annotations

from dataclasses import dataclass

from hpt_mlflow.errors import HptError

# In the order in which they are applied (paper, section 4.1 and its reference code).
AUGMENTATIONS = ("crop", "color", "gray", "blur", "flip")


@dataclass(frozen=True)
class Strengths:
    """How strong each augmentation is; the defaults are the paper's (reference code, MoCo-v2 configurations).

    Attributes:
        crop_scale: smallest and largest share of the image's area that a crop takes.
        brightness, contrast, saturation: factors are drawn from [1 - x, 1 + x].
        hue: the hue is turned by up to this share of the full circle, at most 0.5, either way.
        color_p, gray_p, blur_p, flip_p: probability that a view is changed at all.
        blur_sigma: smallest and largest standard deviation of the Gaussian, in pixels of the view.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    color_p: float = 0.8
    gray_p: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_p: float = 0.5
    flip_p: float = 0.5


def parse_subset(text: str) -> tuple[str, ...]:
    """Read an augmentation subset such as `crop,flip`, or `none`, into the order of application.

    Raises:
        HptError: a name is not one of `AUGMENTATIONS`.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if unknown or not names:
        given = unknown[0] if unknown else text
        raise HptError(f"augment: unknown augmentation {given!r}; choose from {', '.join(AUGMENTATIONS)}, or none")
    return tuple(name for name in AUGMENTATIONS if name in names)
