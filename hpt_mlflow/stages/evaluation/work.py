"""What an evaluation is about to do, checked before its run is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.labels import check_labels, leave_out_classes
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.evaluation.task import Task
from hpt_mlflow.settings import DEFAULT_MODEL_NAME, EvaluateSettings
from hpt_mlflow.stages.evaluation.task import prepare_task
from hpt_mlflow.stages.evaluation.unseen import Overlaps, check_unseen
from hpt_mlflow.stages.identify import identify
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import exists, milestones_of, registered_as
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.identity import Identity
from hpt_mlflow.tracking.models.store import FoundModel, check_may_register, check_names, find_model


@dataclass(frozen=True)
class EvaluationWork:
    """A model, or the milestones of a run, and a labelled dataset.

    Attributes:
        addresses: of the milestones, oldest first, or of the one model.
        model: the one at the last address, which is evaluated in full.
        classifier_name: the registered model that gets the classifier; None to keep it with the run only.
        overlaps: the test images that the stages behind the model have trained on.
    """

    settings: EvaluateSettings
    dataset: Dataset
    addresses: list[str]
    model: FoundModel
    task: Task
    classifier_name: str | None
    overlaps: Overlaps

    @property
    def run_name(self) -> str:
        """What the run is called."""
        return f"evaluate {self.dataset.name}: {' > '.join(self.model.card.chain)}"

    @property
    def identity(self) -> Identity:
        """See `evaluation_identity`."""
        return evaluation_identity(self.settings, self.dataset, self.addresses)

    def earlier_milestones(self) -> Iterator[FoundModel]:
        """The models at the addresses before the last."""
        for address in self.addresses[:-1]:
            yield find_model(address, "model", DEFAULT_MODEL_NAME)


def prepare_evaluation(settings: EvaluateSettings) -> EvaluationWork:
    """Open the dataset, find the model, and check all that can be checked before long work.

    Raises:
        HptError: the labels cannot be learned from, there is no such model or it has trained on test images, or the
            classifier may not be registered.
    """
    dataset = leave_out_classes(open_dataset(settings.data, settings.root), settings.classes_left_out)
    check_labels(dataset, dataset.split(settings.split_seed))
    connect()
    addresses = addresses_of(settings.model)
    model = find_model(addresses[-1], "model", DEFAULT_MODEL_NAME)
    name = classifier_name(settings, model.uri)
    if name is not None:
        check_may_register(name, setting="classifier_name")
    task = prepare_task(settings, dataset, model.card)
    overlaps = check_unseen(settings, model.uri, dataset, task)
    return EvaluationWork(settings, dataset, addresses, model, task, name, overlaps)


def evaluation_identity(settings: EvaluateSettings, dataset: Dataset, addresses: list[str]) -> Identity:
    """What makes another evaluation the same work.

    Args:
        addresses: of the models, without `latest` or alias.
    """
    return identify("evaluate", replace(settings, model=", ".join(addresses)), [dataset])


def addresses_of(model: str) -> list[str]:
    """Of a run, its milestones, the last one by the version that it was registered as; of a model, itself."""
    run_id = model.removeprefix("runs:/").strip("/")
    if not model.startswith("runs:/") or "/" in run_id:
        return [model]
    milestones, version = milestones_of(run_id, "model"), registered_as(run_id)
    return [*milestones[:-1], version if version and exists(version) else milestones[-1]]


def classifier_name(settings: EvaluateSettings, uri: str) -> str | None:
    """The registered model that gets the classifier of the model at `uri`, or None for none."""
    if settings.classifier_name == "none":
        return None
    is_version = uri.startswith("models:/") and "/" in uri.removeprefix("models:/")
    backbone = uri.removeprefix("models:/").split("/")[0] if is_version else DEFAULT_MODEL_NAME
    name = settings.classifier_name or backbone.removesuffix(tag.CLASSIFIER_SUFFIX) + tag.CLASSIFIER_SUFFIX
    check_names(name, None)
    return name
