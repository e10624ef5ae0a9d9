"""Pretrain: self-supervised training from random weights, or from weights of others. The first stage of a chain."""

from __future__ import annotations

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.group import joins_others, own_device, training_group
from hpt_mlflow.settings import PretrainSettings
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.processes.launch import is_launched_here, launch
from hpt_mlflow.stages.result import StageResult
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.stages.training.learn import learn
from hpt_mlflow.stages.training.start import Start, find_weights, start_from_random_weights, start_from_weights
from hpt_mlflow.stages.weights import import_weights
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.training.plan import PRESETS


@takes(PretrainSettings)
def pretrain(chosen: PretrainSettings) -> StageResult:
    """Train a backbone on a dataset from random weights or from `weights`, log it, and register it.

    With `steps=0` the backbone is registered as it is, without opening the dataset.

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """
    weights = chosen.starts_from
    if weights and chosen.steps == 0:
        if joins_others():
            problem = "0 registers weights in one process"
            raise HptError(problem, "start it without torchrun and WORLD_SIZE", setting="steps")
        size = PRESETS[chosen.preset].weights_image_size
        return import_weights(
            weights,
            chosen.model_name,
            chosen.alias,
            chosen.arch,
            chosen.image_size,
            chosen.small_stem,
            chosen.features,
            size,
        )
    if is_launched_here(chosen):
        return launch("pretrain", chosen)
    start = _start(chosen)
    dataset = open_dataset(chosen.data, chosen.root)
    connect()
    with training_group(own_device(resolve_device(chosen.device))) as group:
        return learn("pretrain", chosen, start, dataset, group)


def _start(settings: PretrainSettings) -> Start:
    weights = settings.starts_from
    if weights is None:
        return start_from_random_weights(settings)
    size = PRESETS[settings.preset].weights_image_size
    return start_from_weights(
        find_weights(
            weights, settings.arch, settings.image_size, settings.small_stem, settings.features, default_size=size
        )
    )
