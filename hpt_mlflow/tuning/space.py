"""What is searched: which augmentations make a view and, where that is asked for, how strong each one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from optuna.trial import Trial

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths, with_jitter
from hpt_mlflow.errors import HptError

# HPT, section 4.4: baseline, without grayscale, without colour jitter, crop and blur only, crop only.
PAPER_SUBSETS = (
    AUGMENTATIONS,
    ("crop", "color", "blur", "flip"),
    ("crop", "gray", "blur", "flip"),
    ("crop", "blur"),
    ("crop",),
)
# By augmentation, the strengths that matter where it is on. `crop_scale` is the smallest share of an image that a crop
# takes, `jitter` stands for brightness, contrast, saturation and hue, `blur_sigma` is the largest, in pixels.
STRENGTHS: dict[str, dict[str, tuple[float, float]]] = {
    "crop": {"crop_scale": (0.05, 0.8)},
    "color": {"jitter": (0.1, 0.8), "color_p": (0.2, 1.0)},
    "gray": {"gray_p": (0.05, 0.5)},
    "blur": {"blur_sigma": (0.5, 4.0), "blur_p": (0.1, 1.0)},
    "flip": {"flip_p": (0.1, 0.5)},
}
OFF_OR_ON = (False, True)


@dataclass(frozen=True)
class Space:
    """The subsets of some augmentations.

    Attributes:
        augmentations: that may be on, in the order of application.
        with_strengths: whether strengths are searched, too.
        strengths: where they are not.
    """

    augmentations: tuple[str, ...]
    with_strengths: bool = False
    strengths: Strengths = Strengths()

    def __post_init__(self) -> None:
        if not self.augmentations:
            raise HptError("augment: none leaves nothing to choose from; name the augmentations that may be used")

    @property
    def paper_subsets(self) -> list[tuple[str, ...]]:
        """The paper's five, without what may not be on."""
        allowed = [tuple(name for name in subset if name in self.augmentations) for subset in PAPER_SUBSETS]
        return list(dict.fromkeys(allowed))

    def subsets(self, seed: int) -> list[tuple[str, ...]]:
        """All subsets, each once: the paper's first, the others in an order drawn from the seed."""
        names = self.augmentations
        every = [subset for size in range(len(names) + 1) for subset in combinations(names, size)]
        others = [subset for subset in every if subset not in self.paper_subsets]
        return self.paper_subsets + [others[i] for i in np.random.default_rng(seed).permutation(len(others))]

    def queue(self, count: int | None, seed: int) -> list[dict[str, Any]]:
        """Parameters of the trials to make, as far as they are fixed beforehand.

        Without strengths that is the grid of subsets. With them the paper's subsets come first, with the strengths
        that training has by default; all else is left to the sampler.

        Args:
            count: of trials; None for all subsets, or with strengths for twice as many.
        """
        subsets = self.subsets(seed)
        if not self.with_strengths:
            return [self.parameters(subset) for subset in subsets[:count]]
        count = 2 * len(subsets) if count is None else count
        fixed = [self.parameters(subset) for subset in self.paper_subsets]
        return (fixed + [{}] * (count - len(fixed)))[:count]

    def parameters(self, subset: tuple[str, ...]) -> dict[str, Any]:
        """Optuna's parameters of a subset; strengths have their defaults, kept within what is searched."""
        chosen: dict[str, Any] = {name: name in subset for name in self.augmentations}
        if self.with_strengths:
            for key, (low, high) in self._limits(subset).items():
                chosen[key] = min(max(_default(key, self.strengths), low), high)
        return chosen

    def suggest(self, trial: Trial) -> tuple[tuple[str, ...], Strengths]:
        """The subset and the strengths of a trial."""
        subset = tuple(name for name in self.augmentations if trial.suggest_categorical(name, OFF_OR_ON))
        if self.with_strengths:
            for key, (low, high) in self._limits(subset).items():
                trial.suggest_float(key, low, high)
        return self.read(trial.params)

    def read(self, params: Mapping[str, Any]) -> tuple[tuple[str, ...], Strengths]:
        """The subset and the strengths that Optuna's parameters stand for."""
        subset = tuple(name for name in self.augmentations if params[name])
        strengths = self.strengths
        for name in subset if self.with_strengths else ():
            for key in STRENGTHS[name]:
                strengths = _with(strengths, key, params[key])
        return subset, strengths

    @property
    def smallest_crop_scale(self) -> tuple[float, float]:
        """The range of crops that needs the largest images."""
        low, high = self.strengths.crop_scale
        return (min(low, STRENGTHS["crop"]["crop_scale"][0]), high) if self.with_strengths else (low, high)

    def _limits(self, subset: tuple[str, ...]) -> dict[str, tuple[float, float]]:
        """By strength, what is searched; no further than to the other end of its range, which is not searched."""
        largest_crop, smallest_sigma = self.strengths.crop_scale[1], self.strengths.blur_sigma[0]
        limits = {key: ends for name in subset for key, ends in STRENGTHS[name].items()}
        if "crop_scale" in limits:
            low, high = limits["crop_scale"]
            limits["crop_scale"] = (min(low, largest_crop), min(high, largest_crop))
        if "blur_sigma" in limits:
            low, high = limits["blur_sigma"]
            limits["blur_sigma"] = (max(low, smallest_sigma), max(high, smallest_sigma))
        return limits


def _default(key: str, strengths: Strengths) -> float:
    """The value of a searched strength in strengths that were not searched."""
    if key == "jitter":
        return strengths.brightness
    if key == "crop_scale":
        return strengths.crop_scale[0]
    return strengths.blur_sigma[1] if key == "blur_sigma" else getattr(strengths, key)


def _with(strengths: Strengths, key: str, value: Any) -> Strengths:
    """Strengths with a searched value in its place."""
    if key == "jitter":
        return with_jitter(strengths, value)
    if key == "crop_scale":
        return replace(strengths, crop_scale=(value, strengths.crop_scale[1]))
    if key == "blur_sigma":
        return replace(strengths, blur_sigma=(strengths.blur_sigma[0], value))
    return replace(strengths, **{key: value})
