"""The result of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.runs.resume import EarlierRun
from hpt_mlflow.tracking.runs.system_metrics import PREFIX

if TYPE_CHECKING:
    from hpt_mlflow.stages.models import LoadedModel


@dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    Attributes:
        run_id: of its MLflow run.
        model_uri: the registered version that it made, `models:/NAME/VERSION`, or the one that it evaluated;
            empty if it used none.
        chain: names of the datasets behind that model, oldest first.
        metrics: the last value of each metric.
        classifier_uri: the registered classifier that an evaluation made, where it made one.
    """

    run_id: str
    model_uri: str
    chain: tuple[str, ...]
    metrics: dict[str, float]
    classifier_uri: str | None = None

    def load(self) -> LoadedModel:
        """The backbone in evaluation mode, the transform that prepares an image for it, and its card.

        Example:
            backbone, transform, _ = result.load()
            features = backbone(transform(image)[None])  # float32 (1, F) or (1, F, 1, 1)
        """
        # Not every caller of a stage needs what it takes to read images.
        from hpt_mlflow.stages.models import load_model

        return load_model(self.model_uri)


def read_result(values: Mapping[str, Any]) -> StageResult:
    """A result that has travelled from one process to another as JSON, which knows no tuples."""
    return StageResult(**{**values, "chain": tuple(values["chain"])})


def result_of(earlier: EarlierRun) -> StageResult:
    """The result of a run that was finished before."""
    run = earlier.run
    chain = tuple(run.data.tags[tag.CHAIN].split(" > "))
    if run.data.tags.get(tag.STAGE) == "adapt" and run.data.tags[tag.MODEL] == run.data.tags.get(tag.PARENT_MODEL):
        # Its parent was better than what it made.
        chain = chain[:-1]
    return StageResult(
        run.info.run_id,
        run.data.tags[tag.MODEL],
        chain,
        {name: value for name, value in run.data.metrics.items() if not name.startswith(PREFIX)},
    )
