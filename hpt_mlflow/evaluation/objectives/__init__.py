"""What a search for augmentations judges a trial by, one judge per file. To add one, write its file and its entry here.

`probe` and `knn` measure how well frozen features predict the labels. `rotation` needs no labels: it measures how well
they predict by how much an image was turned, which ranks backbones that differ in their augmentations much as a probe
on labels does (Reed et al., "SelfAugment", CVPR 2021, arXiv 2009.07724); but not if no side is up, as under a
microscope. `consistency` needs none either: it measures whether an image and a view of it have the same neighbours,
which ranks milestones of one training. `infonce`, the loss of the training, has no judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hpt_mlflow.plugins import add_to, load_place

if TYPE_CHECKING:
    from hpt_mlflow.evaluation.objectives.base import Judge


class Registration(NamedTuple):
    """Where a judge is, and what others must know of it without importing torch.

    Attributes:
        place: `module:class`; empty for the loss of the training, which is minimised.
        title: what the score is, on the axis of a figure.
        needs_labels: whether it judges by labels.
        checked_by: where this is near what any training makes better, the objective by which a milestone must not be
            worse than the parent, too; empty for none.
    """

    place: str
    title: str
    needs_labels: bool = False
    checked_by: str = ""


OBJECTIVES = {
    "probe": Registration(
        "hpt_mlflow.evaluation.objectives.probe:ProbeJudge", "linear probe on validation", needs_labels=True
    ),
    "knn": Registration(
        "hpt_mlflow.evaluation.objectives.neighbours:NeighbourJudge", "20-NN on validation", needs_labels=True
    ),
    "rotation": Registration(
        "hpt_mlflow.evaluation.objectives.rotation:RotationJudge", "accuracy of predicting rotations"
    ),
    "consistency": Registration(
        "hpt_mlflow.evaluation.objectives.consistency:ConsistencyJudge",
        "neighbours that an image and its view share",
        checked_by="rotation",
    ),
    "infonce": Registration("", "InfoNCE loss"),
}


def register_objective(name: str, registration: Registration) -> None:
    """Add an objective from outside this package.

    It becomes a value of the setting only if this is called before `hpt_mlflow.settings` is imported, as a plugin does
    (see `hpt_mlflow.plugins`).

    Raises:
        ValueError: another objective has this name.
    """
    add_to(OBJECTIVES, "objective", name, registration)


def has_judge(objective: str) -> bool:
    """Whether frozen features are judged, rather than the loss of the training."""
    return bool(OBJECTIVES[objective].place)


def maximises(objective: str) -> bool:
    """Whether more is better; of a loss, less is."""
    return has_judge(objective)


def load_judge(objective: str) -> type[Judge]:
    """The class that judges by an objective.

    Raises:
        ValueError: the objective has no judge.
    """
    if objective not in OBJECTIVES or not has_judge(objective):
        raise ValueError(f"{objective!r} has no judge")
    judge: type[Judge] = load_place(OBJECTIVES[objective].place)
    return judge
