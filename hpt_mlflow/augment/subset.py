"""Which augmentations make a view, and how strong they are."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

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


# The names of all strengths, those that are ranges, and a limit of the colour circle.
NAMES = tuple(field.name for field in fields(Strengths))
RANGES = tuple(name for name, hint in get_type_hints(Strengths).items() if hint is not float)
LARGEST_HUE = 0.5


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
        problem = f"unknown augmentation {unknown[0] if unknown else text!r}"
        raise HptError(problem, f"choose from {', '.join(AUGMENTATIONS)}, or none", setting="augment")
    return tuple(name for name in AUGMENTATIONS if name in names)


def parse_strengths(text: str, defaults: Strengths | None = None) -> Strengths:
    """Read strengths such as `crop_scale=0.3:1,hue=0.1,blur_p=0.2`; the others are those of `defaults`, or the paper's.

    A range is written `LOW:HIGH`, or as a range's free end alone: `crop_scale=0.3` is `0.3:1`, `blur_sigma=1.5` is
    `0.1:1.5`. `jitter=X` sets brightness, contrast, saturation and hue together, hue at most 0.5.

    Raises:
        HptError: a name is unknown, or a value is not a number in its range.
    """
    strengths = defaults or Strengths()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (word.strip() for word in part.partition("="))
        numbers = _numbers(part, value)
        if name == "jitter" and len(numbers) == 1:
            strengths = with_jitter(strengths, numbers[0])
        elif name in RANGES:
            free_end = {"crop_scale": (*numbers, 1.0), "blur_sigma": (Strengths.blur_sigma[0], *numbers)}[name]
            strengths = _replace(strengths, name, free_end if len(numbers) == 1 else numbers)
        elif name in NAMES and len(numbers) == 1:
            strengths = _replace(strengths, name, numbers[0])
        else:
            remedy = f"write NAME=NUMBER with one of {', '.join(NAMES)}, jitter"
            raise HptError(f"cannot read {part!r}", remedy, setting="strengths")
    _check(strengths)
    return strengths


def format_strengths(strengths: Strengths, defaults: Strengths | None = None) -> str:
    """The strengths that differ from `defaults`, or from the paper's, as `parse_strengths` reads them."""
    parts = []
    defaults = defaults or Strengths()
    for name in NAMES:
        value = getattr(strengths, name)
        if value != getattr(defaults, name):
            parts.append(f"{name}=" + (":".join(map(repr, value)) if name in RANGES else repr(value)))
    return ",".join(parts)


def with_jitter(strengths: Strengths, jitter: float) -> Strengths:
    """Strengths with one number for brightness, contrast, saturation and hue (at most `LARGEST_HUE`)."""
    return replace(strengths, brightness=jitter, contrast=jitter, saturation=jitter, hue=min(jitter, LARGEST_HUE))


def _replace(strengths: Strengths, name: str, value: Any) -> Strengths:
    return replace(strengths, **{name: value})


def _numbers(part: str, value: str) -> tuple[float, ...]:
    """One number, or the two of a range."""
    try:
        numbers = tuple(float(word) for word in value.split(":"))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2):
        remedy = "write for example crop_scale=0.3 or blur_sigma=0.1:1.5"
        raise HptError(f"{part!r} has no number", remedy, setting="strengths")
    return numbers


def _check(strengths: Strengths) -> None:
    """Raise HptError unless every value lies in its range."""
    for name in NAMES:
        value = getattr(strengths, name)
        low, high = value if name in RANGES else (value, value)
        most = {"hue": LARGEST_HUE, "blur_sigma": 100.0}.get(name, 1.0)
        least = {"crop_scale": 0.001, "blur_sigma": 0.001}.get(name, 0.0)
        if not least <= low <= high <= most:
            shown = f"{low:.15g}:{high:.15g}" if name in RANGES else f"{low:.15g}"
            raise HptError(
                f"{name}={shown} is not between {least:g} and {most:g}, the lower end first", setting="strengths"
            )
