"""Backbones in MLflow: milestones as LoggedModels, results as registered versions, and the way from an address back."""

from __future__ import annotations

import importlib.metadata
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import Schema, TensorSpec
from torch import nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.checkpoint import BackboneCard, load_backbone, save_backbone
from hpt_mlflow.tracking.addresses import concrete_uri, model_id_of
from hpt_mlflow.tracking.connection import reason, tracking_errors

LOADER_MODULE = "hpt_mlflow.serving"
SERVING_PACKAGES = ("torch", "torchvision", "safetensors", "pillow", "numpy", "pandas", "click")


@dataclass(frozen=True)
class FoundModel:
    """A backbone and where it was found.

    Attributes:
        uri: the address without `latest` or alias: `models:/hpt/3`.
        backbone: on the CPU, in training mode.
        model_id: of the LoggedModel behind it, where MLflow tells.
    """

    uri: str
    backbone: nn.Module
    card: BackboneCard
    model_id: str | None


def log_backbone(backbone: nn.Module, card: BackboneCard, tags: dict[str, str]) -> str:
    """Log a backbone as a LoggedModel of the active run.

    Returns:
        Its model_id.
    """
    output = TensorSpec(np.dtype(np.float32), (-1, card.feature_size), name="embedding")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "backbone"
        save_backbone(folder, backbone, card)
        info = mlflow.pyfunc.log_model(
            name=f"step-{card.step}",
            loader_module=LOADER_MODULE,
            data_path=str(folder),
            step=card.step,
            params={"arch": card.arch, "image_size": str(card.image_size), "chain": " > ".join(card.chain)},
            tags=tags,
            # No schema of the input: arrays and encoded bytes are both welcome.
            signature=ModelSignature(outputs=Schema([output])),
            pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in SERVING_PACKAGES],
        )
    return str(info.model_id)


def register(model_id: str, model_name: str, tags: dict[str, str], alias: str | None) -> str:
    """Make a LoggedModel a new version of a registered model.

    Returns:
        Its address, `models:/NAME/VERSION`.
    """
    version = mlflow.register_model(f"models:/{model_id}", model_name, tags=tags)
    if alias:
        MlflowClient().set_registered_model_alias(model_name, alias, version.version)
    return f"models:/{model_name}/{version.version}"


def check_names(model_name: str, alias: str | None) -> None:
    """Raise HptError where MLflow would refuse these names at the end of a training."""
    if not model_name or any(character in model_name for character in "/:"):
        raise HptError(f"model_name: {model_name!r} cannot name a registered model; leave out / and :")
    if alias is not None and (not alias.replace("-", "").replace("_", "").isalnum() or alias.lower() == "latest"):
        raise HptError(f"alias: {alias!r} cannot be an alias; use letters, digits, - and _, and not latest")
    if alias is not None and alias[0] in "vV" and alias[1:].isdigit():
        raise HptError(f"alias: {alias!r} looks like a version; MLflow refuses it, use a word")


def find_model(address: str, option: str, model_name: str) -> FoundModel:
    """Load the backbone at an address.

    Args:
        address: see `tracking.addresses.concrete_uri`.
        option: what errors call the option that it was given with.
        model_name: whose alias a single word is.

    Raises:
        HptError: there is no such model, or it was not made by this project.
    """
    uri = concrete_uri(address, option, model_name)
    with tracking_errors(f"{option}: cannot read {uri}"):
        try:
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        except MlflowException as error:
            raise HptError(f"{option}: there is no model at {address} ({reason(error)})") from error
    backbone, card = load_backbone(folder, f"{option}: {address}")
    return FoundModel(uri, backbone, card, model_id_of(uri))
