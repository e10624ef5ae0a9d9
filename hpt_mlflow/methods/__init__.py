"""Self-supervised methods, one per file. To add one, write its file and its entry here; see docs/extending.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from hpt_mlflow.plugins import add_to, load_place

if TYPE_CHECKING:
    from hpt_mlflow.methods.base import Method

DEFAULT_METHOD = "moco"


class MethodOption(NamedTuple):
    """An option of a method: its type, its meaning, and the range of its values; `above` excludes its end."""

    type: type[int] | type[float]
    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None


class Registration(NamedTuple):
    """Where a method is, and its options; known without importing torch, for help texts.

    Attributes:
        place: `module:class`.
        options: by name.
        presets: the value of each option, by preset; `quick` is needed, and counts for those that are not there.
    """

    place: str
    options: Mapping[str, MethodOption]
    presets: Mapping[str, Mapping[str, float]]


TEMPERATURE = MethodOption(float, "Temperature of the loss.", above=0)
METHODS = {
    "moco": Registration(
        "hpt_mlflow.methods.moco:MoCo",
        {
            "key_momentum": MethodOption(
                float, "Share of its weights that the key encoder keeps at each step.", minimum=0, maximum=1
            ),
            "temperature": TEMPERATURE,
            "queue_size": MethodOption(
                int,
                "Keys in the queue of negatives; cut to a multiple of the batch that the dataset can fill.",
                minimum=1,
            ),
            "bn_splits": MethodOption(
                int, "Parts of the key batch with their own batch statistics (instead of ShuffleBN).", minimum=1
            ),
        },
        {
            # docs/method.md says how the values of quick were found. paper: section 4.1 and reference code.
            "quick": {"key_momentum": 0.99, "temperature": 0.1, "queue_size": 4096, "bn_splits": 4},
            "paper": {"key_momentum": 0.999, "temperature": 0.2, "queue_size": 65_536, "bn_splits": 4},
        },
    ),
    "simclr": Registration(
        "hpt_mlflow.methods.simclr:SimCLR",
        {"temperature": TEMPERATURE},
        # SimCLR, section 5.1 (ImageNet) and appendix B.9 (CIFAR-10).
        {"quick": {"temperature": 0.5}, "paper": {"temperature": 0.1}},
    ),
    "byol": Registration(
        "hpt_mlflow.methods.byol:BYOL",
        {
            "target_momentum": MethodOption(
                float,
                "Share of its weights that the target network keeps at the first step; rises to 1.",
                minimum=0,
                maximum=1,
            )
        },
        # Where the schedule of BYOL starts: its reference code for 100 and 300 epochs, and section 3.3 for 1000.
        {"quick": {"target_momentum": 0.99}, "paper": {"target_momentum": 0.996}},
    ),
    "lejepa": Registration(
        "hpt_mlflow.methods.lejepa:LeJEPA",
        {
            "sigreg_weight": MethodOption(
                float, "Share of SIGReg in the loss; the rest is the distance of views.", minimum=0, maximum=1
            )
        },
        # The authors' example.
        {"quick": {"sigreg_weight": 0.02}},
    ),
    "dino": Registration(
        "hpt_mlflow.methods.dino:DINO",
        {
            "teacher_momentum": MethodOption(
                float,
                "Share of its weights that the teacher keeps at first; rises to 1.",
                minimum=0,
                maximum=1,
            ),
            "teacher_temperature": MethodOption(
                float, "Temperature of the teacher after its warm-up; lower is sharper.", above=0
            ),
            "prototypes": MethodOption(
                int, "Prototypes that images are assigned to; by default at most one per image.", minimum=2
            ),
        },
        # paper: sections 3.1 and 3.2. quick: the reference code's default temperature, and a teacher for few steps.
        {
            "quick": {"teacher_momentum": 0.99, "teacher_temperature": 0.04, "prototypes": 4096},
            "paper": {"teacher_momentum": 0.996, "teacher_temperature": 0.07, "prototypes": 65_536},
        },
    ),
}


def register_method(name: str, registration: Registration) -> None:
    """Add a method from outside this package.

    Options that no other method has become settings only if this is called before `hpt_mlflow.settings` is imported, as
    a plugin does (see `hpt_mlflow.plugins`).

    Raises:
        ValueError: another method has this name.
    """
    add_to(METHODS, "method", name, registration)


def load_method(name: str) -> type[Method]:
    """The class of a registered method."""
    method: type[Method] = load_place(METHODS[name].place)
    return method


def preset_options(name: str, preset: str) -> Mapping[str, float]:
    """The options of a method in a preset; those of `quick` where the method has none for it."""
    presets = METHODS[name].presets
    return presets.get(preset, presets["quick"])


def options_of(name: str) -> frozenset[str]:
    """Names of the options of a method."""
    return frozenset(METHODS[name].options)


def all_options() -> dict[str, MethodOption]:
    """The options of all methods by name, each with the methods that have it if those are not all."""
    options = {name: option for method in METHODS.values() for name, option in method.options.items()}
    owners = {name: [method for method in METHODS if name in options_of(method)] for name in options}
    return {
        name: option if len(owners[name]) == len(METHODS) else option._replace(help=_with_owners(option, owners[name]))
        for name, option in options.items()
    }


def _with_owners(option: MethodOption, owners: list[str]) -> str:
    return f"{option.help} Only for method {' or '.join(owners)}."
