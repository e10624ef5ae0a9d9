"""Protocols of evaluation, one per file. To add one, write its file and its entry in `PROTOCOLS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hpt_mlflow.plugins import add_to, load_place

if TYPE_CHECKING:
    from hpt_mlflow.evaluation.protocols.base import Protocol

DEFAULT_PROTOCOL = "fast"


class Registration(NamedTuple):
    """Where a protocol is, and what others must know of it without importing torch.

    Attributes:
        place: `module:class`.
        title: what it is, for help texts and descriptions of runs.
        trains_backbone: whether the weights of the backbone change. Then the images count as seen by the model, and no
            precision of frozen features is chosen.
        takes_steps: whether it trains for a number of steps, with randomness, so that repeating it makes sense.
        random_crops: whether it learns from random crops. Then images are decoded large enough for them, and tested on
            the centre of a slightly larger image.
        default_labels: how many labels it learns from at most, unless the user says otherwise; None for all.
    """

    place: str
    title: str
    trains_backbone: bool = False
    takes_steps: bool = False
    random_crops: bool = False
    default_labels: int | None = None

    @property
    def metric_prefix(self) -> str:
        """What the names of the metrics of its training begin with."""
        return "finetune" if self.trains_backbone else "probe"


PROTOCOLS = {
    "fast": Registration(
        "hpt_mlflow.evaluation.protocols.fast:Fast",
        "a linear probe on features that are computed once, its regularisation chosen on validation",
    ),
    "paper": Registration(
        "hpt_mlflow.evaluation.protocols.paper:Paper",
        "a linear probe by SGD on random crops and flips, as the paper trains it",
        takes_steps=True,
        random_crops=True,
    ),
    "finetune": Registration(
        "hpt_mlflow.evaluation.protocols.finetune:Finetune",
        "all weights fine-tuned from these labels, schedule and learning rate chosen on validation",
        trains_backbone=True,
        takes_steps=True,
        random_crops=True,
        default_labels=1000,  # HPT, section 4.2.
    ),
}


def register_protocol(name: str, registration: Registration) -> None:
    """Add a protocol from outside this package; `EvaluateSettings(protocol=name)` then accepts it.

    Raises:
        ValueError: another protocol has this name.
    """
    add_to(PROTOCOLS, "protocol", name, registration)


def probe_names() -> tuple[str, ...]:
    """Names of the protocols that leave the backbone as it is."""
    return tuple(name for name, entry in PROTOCOLS.items() if not entry.trains_backbone)


def trains_backbone(name: str) -> bool:
    """Whether a protocol, perhaps one that is not registered here, may have changed the weights of the backbone."""
    return name not in probe_names()


def load_protocol(name: str) -> Protocol:
    """A registered protocol."""
    protocol: Protocol = load_place(PROTOCOLS[name].place)()
    return protocol
