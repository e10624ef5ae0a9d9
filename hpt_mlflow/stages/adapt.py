"""Adapt: self-supervised training that continues from a registered model."""

from __future__ import annotations

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.group import own_device, training_group
from hpt_mlflow.settings import AdaptSettings
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.processes.launch import is_launched_here, launch
from hpt_mlflow.stages.result import StageResult
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.stages.training.learn import learn
from hpt_mlflow.stages.training.start import start_from_parent
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.models.store import find_model


@takes(AdaptSettings)
def adapt(chosen: AdaptSettings) -> StageResult:
    """Continue training the backbone of `parent` on another dataset, log the result, and register it.

    Only the backbone is taken over. The projection head starts anew, as in the paper's reference code: it was trained
    to tell the images of the previous dataset apart.

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """
    if is_launched_here(chosen):
        return launch("adapt", chosen)
    dataset = open_dataset(chosen.data, chosen.root)
    connect()
    with training_group(own_device(resolve_device(chosen.device))) as group:
        # An alias may be moved at any moment: rank 0 resolves it for all.
        found = find_model(chosen.parent, "parent", chosen.model_name) if group.first else None
        uri = group.share(found.uri if found else None)
        parent = found or find_model(uri, "parent", chosen.model_name)
        return learn("adapt", chosen, start_from_parent(chosen, parent), dataset, group)
