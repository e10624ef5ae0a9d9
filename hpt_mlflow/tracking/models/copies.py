"""Copies of registered versions that need no other version: whole, where the version keeps only its difference."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import PurePosixPath

import mlflow
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.delta import DELTA_CARD_FILE
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import split_version
from hpt_mlflow.tracking.models.store import BACKBONE_FOLDER, find_model, log_backbone
from hpt_mlflow.tracking.runs.stage_run import StageRun, stage_run
from hpt_mlflow.tracking.tags import milestone_name

STAGE = "export"


def is_delta(address: str) -> bool:
    """Whether a registered version keeps only its difference from its parent, by its files: tags may be missing."""
    files = mlflow.artifacts.list_artifacts(artifact_uri=f"{address}/{BACKBONE_FOLDER}")
    return any(PurePosixPath(file.path).name == DELTA_CARD_FILE for file in files)


def deltas_of(address: str) -> list[str]:
    """Addresses of the registered versions that keep only their difference from this one."""
    found = MlflowClient().search_model_versions(
        f"tags.`{tag.STORE}`='{tag.DELTA}' and tags.`{tag.PARENT_MODEL}`='{address}'"
    )
    ordered = sorted(found, key=lambda version: (version.name, int(version.version)))
    return [f"models:/{version.name}/{version.version}" for version in ordered]


def copy_whole(address: str, to: str) -> str:
    """Register a version again with whole weights; gives the address of the copy.

    Raises:
        HptError: a version that it needs is gone, or MLflow refuses.
    """
    found = find_model(address, "model", to)
    name = milestone_name(found.card.step)

    def keep(run: StageRun, tags: dict[str, str]) -> Future[str]:
        return log_backbone(run, found.backbone, found.card, tags)

    return register_copy(address, to, name, "with whole weights", keep)


def register_copy(
    address: str, to: str, name: str, what: str, keep: Callable[[StageRun, dict[str, str]], Future[str]]
) -> str:
    """Register what `keep` keeps as a copy of a version, in a run of its own; gives the address of the copy.

    Args:
        to: the registered model.
        name: of the LoggedModel that `keep` makes, from the run and the tags of the copy.
        what: how the copy differs, for its description.

    Raises:
        HptError: it cannot be stored, or MLflow refuses.
    """
    version = MlflowClient().get_model_version(*split_version(address))
    tags = {key: value for key, value in version.tags.items() if key != tag.STORE} | {tag.COPY_OF: address}
    with stage_run(f"{STAGE} {address.removeprefix('models:/')} to {to}") as run:
        run.tags({tag.STAGE: STAGE, tag.PARENT_MODEL: address})
        description = f"{tag.VERSION_PLACEHOLDER} is {address} {what}."
        run.describe(description)
        if why := run.failure(keep(run, tags)):
            raise HptError(f"the model cannot be stored: {why}", "make room and run the same command again")
        return run.register(name, to, tags, None, description)
