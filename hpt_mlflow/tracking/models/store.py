"""Models in MLflow: backbones and classifiers as LoggedModels, loaded again from an address."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import DataType
from mlflow.types.schema import Array, ColSpec, Map, Schema, TensorSpec
from torch import Tensor, device, nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.checkpoint import BackboneCard, copy_to_cpu, load_backbone, save_backbone
from hpt_mlflow.models.classifier import ClassifierCard, save_classifier
from hpt_mlflow.models.delta import DeltaParent
from hpt_mlflow.serving import ClassifierModel, EmbeddingModel, load_served
from hpt_mlflow.tracking.addresses import concrete_uri, exists, model_id_of
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.delivery.model_entries import MODEL_DESCRIPTION
from hpt_mlflow.tracking.reasons import reason
from hpt_mlflow.tracking.runs.stage_run import StageRun
from hpt_mlflow.tracking.tags import CLASSIFIER_NAME, milestone_name

LOADER_MODULE = "hpt_mlflow.serving"
# Where a model has its files: MLflow itself puts the folder into data/.
BACKBONE_FOLDER = "data/backbone"
REFUSALS = frozenset(["PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"])
SERVING_PACKAGES = ("torch", "torchvision", "safetensors", "pillow", "numpy", "pandas", "click")


@dataclass(frozen=True)
class FoundModel:
    """A backbone and where it was found.

    Attributes:
        uri: the address without `latest` or alias: `models:/hpt/3`.
        backbone: on the CPU, in training mode.
        model_id: of the LoggedModel behind it, if MLflow knows it.
        tags: of that LoggedModel.
    """

    uri: str
    backbone: nn.Module
    card: BackboneCard
    model_id: str | None
    tags: Mapping[str, str] = field(default_factory=dict)


def log_backbone(
    run: StageRun, backbone: nn.Module, card: BackboneCard, tags: dict[str, str], parent: DeltaParent | None = None
) -> Future[str]:
    """Keep a backbone as a LoggedModel of a run, under `milestone_name`, with low-rank changes in its weights.

    Args:
        parent: to keep only the difference from it.

    Returns:
        See `StageRun.failure`.
    """
    state = copy_to_cpu(backbone.state_dict())
    output = TensorSpec(np.dtype(np.float32), (-1, card.feature_size), name="embedding")

    def save(folder: Path) -> None:
        save_backbone(folder, state, card, parent)

    return _log_model(run, milestone_name(card.step), card, tags, Schema([output]), save)


def log_classifier(
    run: StageRun,
    backbone: nn.Module,
    card: BackboneCard,
    head: Mapping[str, Tensor],
    classifier: ClassifierCard,
    tags: dict[str, str],
) -> Future[str]:
    """Keep a backbone with a linear head as a LoggedModel of a run, under `CLASSIFIER_NAME`.

    Args:
        head: see `models.classifier.save_classifier`.

    Returns:
        See `StageRun.failure`.
    """
    weights, head = copy_to_cpu(backbone.state_dict()), copy_to_cpu(head)

    def save(folder: Path) -> None:
        save_backbone(folder, weights, card)
        save_classifier(folder, head, classifier)

    by_name = ColSpec(Map(DataType.double), "probabilities")
    label = ColSpec(DataType.string, "label")
    one: list[ColSpec | TensorSpec] = [label, ColSpec(DataType.double, "probability"), by_name]
    several: list[ColSpec | TensorSpec] = [ColSpec(Array(DataType.string), "labels"), by_name]
    return _log_model(run, CLASSIFIER_NAME, card, tags, Schema(several if classifier.multilabel else one), save)


def _log_model(
    run: StageRun, name: str, card: BackboneCard, tags: dict[str, str], outputs: Schema, save: Callable[[Path], None]
) -> Future[str]:
    """Keep what `save` writes into a folder as a pyfunc LoggedModel."""

    packages = (*SERVING_PACKAGES, *(("timm",) if card.architecture.name.startswith("timm:") else ()))

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            saved = Path(temporary) / PurePosixPath(BACKBONE_FOLDER).name
            save(saved)
            folder.rmdir()
            mlflow.pyfunc.save_model(
                str(folder),
                loader_module=LOADER_MODULE,
                data_path=str(saved),
                # No schema of the input: it may be arrays or encoded bytes.
                signature=ModelSignature(outputs=outputs),
                pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in packages],
            )

    params = {
        "arch": card.architecture.name,
        "image_size": str(card.architecture.image_size),
        "chain": " > ".join(card.chain),
    }
    return run.model(name, card.step, params, tags, fill)


def check_may_register(model_name: str, alias: str | None = None, setting: str = "model_name") -> None:
    """Refuse a registered model or an alias of it that this user may not write, before any long work.

    Tests a registry behind a server by writes that change nothing, or create the model, as registering does. It is
    never deleted again: another process may have registered a version of it. A server that does not answer passes.

    Args:
        setting: that names the model, for errors.

    Raises:
        HptError: the server does not permit it.
    """
    if not mlflow.get_registry_uri().startswith(("http:", "https:")):
        return
    client = MlflowClient()
    try:
        try:
            client.update_registered_model(model_name, client.get_registered_model(model_name).description or "")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            client.create_registered_model(model_name, description=MODEL_DESCRIPTION)
    except MlflowException as error:
        if error.error_code in REFUSALS:
            raise HptError(
                f"{model_name} may not be written in the registry {mlflow.get_registry_uri()} ({reason(error)})",
                "name another one, or ask for the permission",
                setting=setting,
            ) from error
        return
    if alias is not None:
        _check_may_point(client, model_name, alias)


def _check_may_point(client: MlflowClient, model_name: str, alias: str) -> None:
    """Refuse an alias where the registry does: of version 0, which no model has."""
    try:
        client.set_registered_model_alias(model_name, alias, "0")
    except MlflowException as error:
        if error.error_code in REFUSALS or "error code 404" in str(error):
            raise HptError(
                f"the registry {mlflow.get_registry_uri()} refuses the alias {alias} of {model_name} ({reason(error)})",
                "use another one or none, and name versions by their numbers",
                setting="alias",
            ) from error


def check_names(model_name: str, alias: str | None) -> None:
    """Raise HptError if MLflow would refuse these names at the end of a training."""
    if not model_name or any(character in model_name for character in "/:'"):
        raise HptError(f"{model_name!r} cannot name a registered model", "leave out / : and '", setting="model_name")
    if alias is not None and (not alias.replace("-", "").replace("_", "").isalnum() or alias.lower() == "latest"):
        raise HptError(f"{alias!r} cannot be an alias", "use letters, digits, - and _, and not latest", setting="alias")
    if alias is not None and alias[0] in "vV" and alias[1:].isdigit():
        raise HptError(f"{alias!r} looks like a version, which MLflow refuses", "use a word", setting="alias")


def find_model(address: str, option: str, model_name: str) -> FoundModel:
    """Load the backbone at an address, whole.

    Args:
        address: see `tracking.addresses.concrete_uri`.
        option: name of the option in errors.
        model_name: whose alias a single word is.

    Raises:
        HptError: there is no such model, it was not made by this project, or a parent that it needs is gone.
    """
    uri = concrete_uri(address, option, model_name)
    folder = download_model(uri, address, option)
    backbone, card = load_backbone(folder, f"{option}: {address}", find_parent)
    model_id = model_id_of(uri)
    return FoundModel(uri, backbone, card, model_id, _tags_of(model_id))


def find_served(uri: str, address: str, on: device | None = None) -> EmbeddingModel | ClassifierModel:
    """Load the backbone or classifier at an address, whole, ready to answer.

    Args:
        uri: the concrete address.
        address: as the user wrote it, for errors.
        on: where it computes; see `load_served`.

    Raises:
        HptError: as `find_model`.
    """
    return load_served(download_model(uri, address, "model"), f"model: {address}", on, find_parent)


def find_parent(address: str, what: str) -> Path:
    """The files of the parent of a model that is kept as its difference from it.

    Args:
        address: of the parent, models:/NAME/VERSION.
        what: says whose parent it is, for errors.

    Raises:
        HptError: the parent is gone, or its files are.
    """
    with tracking_errors(f"{what}, which cannot be read"):
        if not exists(address):
            raise HptError(f"{what}, which is gone", "adapt again, or use another version")
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=address))


def _tags_of(model_id: str | None) -> dict[str, str]:
    """The tags of a LoggedModel; none if it is gone, as a version outlives it, or is on another server."""
    with suppress(MlflowException):
        return dict(MlflowClient().get_logged_model(model_id).tags) if model_id else {}
    return {}


def download_model(uri: str, address: str, option: str) -> Path:
    """The files of a model, in a folder on this machine.

    Args:
        uri: the concrete address.
        address: as the user wrote it, for errors.

    Raises:
        HptError: there is no such model.
    """
    with tracking_errors(f"{option}: cannot read {uri}"):
        try:
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        except MlflowException as error:
            raise HptError(f"there is no model at {address} ({reason(error)})", setting=option) from error
