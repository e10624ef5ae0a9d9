"""At which steps the backbone is kept as a model."""

from __future__ import annotations

from hpt_mlflow.errors import HptError


def parse_milestones(text: str, steps: int) -> frozenset[int]:
    """Read comma-separated steps or percentages of `steps`; the last step always is a milestone.

    Raises:
        HptError: an entry is no number, or lies outside the training.
    """
    milestones = {steps}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        try:
            # A percentage above 0 is at least the first step.
            exact = float(entry[:-1]) / 100 * steps if entry.endswith("%") else int(entry)
        except ValueError:
            raise HptError(
                f"milestones: {entry!r} is neither a step nor a percentage; write for example 100,50%"
            ) from None
        if not 0 < exact <= steps:
            raise HptError(f"milestones: {entry} is not within the {steps} steps of the training")
        milestones.add(max(1, round(exact)))
    return frozenset(milestones)
