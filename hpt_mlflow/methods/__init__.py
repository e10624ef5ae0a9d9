"""Self-supervised methods, one per file. To add one, write its file and its entry here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hpt_mlflow.methods.base import Method

DEFAULT_METHOD = "moco"


class Registration(NamedTuple):
    """Where a method is, and its options; known without importing torch, for help texts.

    Attributes:
        place: `module:class`.
        presets: value of each option of the method, by preset.
    """

    place: str
    presets: Mapping[str, Mapping[str, float]]


METHODS = {
    "moco": Registration(
        "hpt_mlflow.methods.moco:MoCo",
        {
            # docs/method.md says how the values of quick were found. paper: section 4.1 and reference code.
            "quick": {"key_momentum": 0.99, "temperature": 0.1, "queue_size": 4096, "bn_splits": 4},
            "paper": {"key_momentum": 0.999, "temperature": 0.2, "queue_size": 65_536, "bn_splits": 4},
        },
    ),
    "simclr": Registration(
        "hpt_mlflow.methods.simclr:SimCLR",
        # SimCLR, section 5.1 (ImageNet) and appendix B.9 (CIFAR-10).
        {"quick": {"temperature": 0.5}, "paper": {"temperature": 0.1}},
    ),
}


def load_method(name: str) -> type[Method]:
    """The class of a registered method."""
    module, _, attribute = METHODS[name].place.partition(":")
    loaded: type[Method] = getattr(import_module(module), attribute)
    return loaded


def options_of(name: str) -> frozenset[str]:
    """Names of the options of a method."""
    return frozenset(option for preset in METHODS[name].presets.values() for option in preset)
