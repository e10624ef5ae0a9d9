"""The paper's experiments and one of our own ("studies"), one per file. To add one, write its file and its entry here.

Nothing here runs anything: a study plans its trainings and evaluations, and explains their results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hpt_mlflow.plugins import add_to, load_place

if TYPE_CHECKING:
    from hpt_mlflow.experiments.base import Study


class Registration(NamedTuple):
    """Where a study is, and what help texts say about it; known without importing it.

    Attributes:
        place: `module:class`.
        about: what it shows, in a few words.
    """

    place: str
    about: str


STUDIES: dict[str, Registration] = {}


def register_study(name: str, place: str, about: str) -> None:
    """Make a study known by its name.

    Args:
        place: of its class, a subclass of `hpt_mlflow.experiments.base.Study`, as `module:class`.
        about: what it shows, in a few words.

    Raises:
        ValueError: another study has this name.
    """
    add_to(STUDIES, "study", name, Registration(place, about))


def load_study(name: str) -> Study:
    """A registered study."""
    study: Study = load_place(STUDIES[name].place)()
    return study


HERE = "hpt_mlflow.experiments"
register_study("separability", f"{HERE}.separability:Separability", "accuracy against pretraining steps")
register_study("semi-supervised", f"{HERE}.semi_supervised:SemiSupervised", "fine-tuning on few labels")
register_study("sequential", f"{HERE}.sequential:Sequential", "which sequence of stages is best")
register_study("augmentation", f"{HERE}.augmentation:Augmentation", "what is lost without some augmentations")
register_study("data-amount", f"{HERE}.data_amount:DataAmount", "how many images of the target are needed")
register_study("methods", f"{HERE}.methods:Methods", "which self-supervised method is best in equal time")
