"""What is searched: which augmentations make a view and, optionally, how strong each one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from optuna.trial import Trial

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths, with_jitter

# HPT, section 4.4: baseline, without grayscale, without colour jitter, crop and blur only, crop only.
PAPER_SUBSETS = (
    AUGMENTATIONS,
    ("crop", "color", "blur", "flip"),
    ("crop", "gray", "blur", "flip"),
    ("crop", "blur"),
    ("crop",),
)
# By augmentation, the strengths that matter if it is on, and the range that is searched. `jitter` stands for
# brightness, contrast, saturation and hue.
STRENGTHS: dict[str, dict[str, tuple[float, float]]] = {
    "crop": {"crop_scale": (0.05, 0.8)},
    "color": {"jitter": (0.1, 0.8), "color_p": (0.2, 1.0)},
    "gray": {"gray_p": (0.05, 0.5)},
    "blur": {"blur_sigma": (0.5, 4.0), "blur_p": (0.1, 1.0)},
    "flip": {"flip_p": (0.1, 0.5)},
}
# For strengths that are ranges, the end that is searched: the smallest share of an image that a crop takes, and the
# largest sigma of the blur, in pixels.
SEARCHED_END = {"crop_scale": 0, "blur_sigma": 1}
OFF_OR_ON = (False, True)


@dataclass(frozen=True)
class Space:
    """The subsets of some augmentations.

    Attributes:
        augmentations: that may be on, in the order of application; at least one.
        with_strengths: whether strengths are searched, too.
        strengths: those that are not searched.
    """

    augmentations: tuple[str, ...]
    with_strengths: bool = False
    strengths: Strengths = Strengths()

    @property
    def paper_subsets(self) -> list[tuple[str, ...]]:
        """The paper's five, without augmentations that may not be on."""
        allowed = [tuple(name for name in subset if name in self.augmentations) for subset in PAPER_SUBSETS]
        return list(dict.fromkeys(allowed))

    def subsets(self, seed: int) -> list[tuple[str, ...]]:
        """All subsets, each once: the paper's first, the others in an order drawn from the seed."""
        names = self.augmentations
        every = [subset for size in range(len(names) + 1) for subset in combinations(names, size)]
        others = [subset for subset in every if subset not in self.paper_subsets]
        return self.paper_subsets + [others[i] for i in np.random.default_rng(seed).permutation(len(others))]

    def queue(self, count: int | None, seed: int) -> list[dict[str, Any]]:
        """The parameters of the trials to run, as far as they are fixed beforehand.

        Without strengths that is the grid of subsets. With them the paper's subsets come first, with the default
        strengths of training; everything else is left to the sampler.

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
        """Optuna's parameters of a subset; strengths have their defaults, clipped to the range that is searched."""
        parameters: dict[str, Any] = {name: name in subset for name in self.augmentations}
        for key, (low, high) in self._limits(subset).items():
            parameters[key] = min(max(_searched_value(self.strengths, key), low), high)
        return parameters

    def suggest(self, trial: Trial) -> tuple[tuple[str, ...], Strengths]:
        """The subset and the strengths of a trial."""
        subset = tuple(name for name in self.augmentations if trial.suggest_categorical(name, OFF_OR_ON))
        for key, (low, high) in self._limits(subset).items():
            trial.suggest_float(key, low, high)
        return self.read(trial.params)

    def read(self, params: Mapping[str, Any]) -> tuple[tuple[str, ...], Strengths]:
        """The subset and the strengths that Optuna's parameters stand for."""
        subset = tuple(name for name in self.augmentations if params[name])
        strengths = self.strengths
        for key in self._limits(subset):
            strengths = _replace_searched_value(strengths, key, params[key])
        return subset, strengths

    @property
    def smallest_crop_scale(self) -> tuple[float, float]:
        """The range of crops that needs the largest images."""
        low, high = self.strengths.crop_scale
        return (min(low, STRENGTHS["crop"]["crop_scale"][0]), high) if self.with_strengths else (low, high)

    def _limits(self, subset: tuple[str, ...]) -> dict[str, tuple[float, float]]:
        """By strength, the range that is searched; ranges of strengths keep their ends in order."""
        limits = {key: ends for name in subset for key, ends in STRENGTHS[name].items()} if self.with_strengths else {}
        for key, end in SEARCHED_END.items():
            if key in limits:
                other_end = getattr(self.strengths, key)[1 - end]
                low, high = limits[key]
                clip = max if end else min
                limits[key] = (clip(low, other_end), clip(high, other_end))
        return limits


def _searched_value(strengths: Strengths, key: str) -> float:
    value: Any = strengths.brightness if key == "jitter" else getattr(strengths, key)
    return value[SEARCHED_END[key]] if key in SEARCHED_END else value


def _replace_searched_value(strengths: Strengths, key: str, value: float) -> Strengths:
    if key == "jitter":
        return with_jitter(strengths, value)
    change: dict[str, Any] = {key: value}
    if key in SEARCHED_END:
        low, high = getattr(strengths, key)
        change[key] = (low, value) if SEARCHED_END[key] else (value, high)
    return replace(strengths, **change)
