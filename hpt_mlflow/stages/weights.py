"""Importing weights from other programs, to register or to train; exporting registered models for them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hpt_mlflow.errors import HptError, one_line
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.models.export import FORMATS, export_backbone
from hpt_mlflow.models.onnx_graph import require_onnx
from hpt_mlflow.report.card import weights_card
from hpt_mlflow.settings import DEFAULT_MODEL_NAME
from hpt_mlflow.stages.result import StageResult
from hpt_mlflow.stages.training.start import find_weights, start_from_weights
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import concrete_uri, is_version, split_version
from hpt_mlflow.tracking.connection import connect, tracking_errors
from hpt_mlflow.tracking.models.copies import copy_whole, is_delta
from hpt_mlflow.tracking.models.standalone import write_standalone
from hpt_mlflow.tracking.models.store import (
    check_may_register,
    check_names,
    download_model,
    find_model,
    log_backbone,
)
from hpt_mlflow.tracking.runs.stage_run import stage_run
from hpt_mlflow.tracking.tags import VERSION_PLACEHOLDER, milestone_name

STAGE = "import"
STANDALONE = "mlflow"
EXPORTS = (*FORMATS, STANDALONE)


def import_weights(
    source: str,
    model_name: str = DEFAULT_MODEL_NAME,
    alias: str | None = None,
    arch: str | None = None,
    image_size: int | None = None,
    small_stem: bool = False,
    features: str | None = None,
    default_size: int | None = None,
) -> StageResult:
    """Register weights from another program unchanged.

    Args:
        source: a file of weights; `torchvision:NAME` for published ones; or `efficientnet-lite0`.
        model_name: the registered model that they become a new version of.
        alias: of the new version.
        arch: of the backbone. Default: the network that they are recognised as.
        image_size: side of the images in pixels. Default: `default_size`, or else 224, or that of the weights.
        small_stem: whether they must have the stem for small images.
        features: of a vision transformer: cls, mean or cls+mean. Default: the class token.
        default_size: the image size if none is given.

    Raises:
        HptError: they cannot be read safely, or do not fit; says which tensor.
    """
    check_names(model_name, alias)
    weights = find_weights(source, arch, image_size, small_stem, features, default_size)
    start = start_from_weights(weights)
    card = BackboneCard(
        weights.architecture,
        start.feature_size,
        weights.mean,
        weights.std,
        weights.chain,
        pixels=weights.pixels,
    )
    tags = {tag.STAGE: STAGE, tag.CHAIN: " > ".join(card.chain), **start.weights}
    connect()
    with stage_run(f"{STAGE} {weights.name}") as run:
        run.tags(tags)
        run.describe(weights_card(weights, None))
        run.params(
            {
                "weights": source,
                **weights.architecture.as_settings(),
                "model_name": model_name,
                "alias": alias,
            }
        )
        if weights.left_out:
            left_out = {"tensor": list(weights.left_out), "what it is": list(weights.left_out.values())}
            run.table(left_out, "left_out.json")
        kept = log_backbone(run, start.backbone, card, tags)
        if error := run.failure(kept):
            raise HptError(f"the weights cannot be stored: {error}", "make room and run the same command again")
        description = weights_card(weights, VERSION_PLACEHOLDER)
        version = run.register(milestone_name(card.step), model_name, tags, alias, description)
    return StageResult(run.run_id, version, card.chain, {})


def export(model: str, format: str, file: str | os.PathLike[str]) -> Path:
    """Write a registered model in the format of another library, or as one that stands alone.

    Args:
        model: its address; see `tracking.addresses.concrete_uri`.
        format: torchvision, timm, detectron2 or onnx, see `models.export.export_backbone`; or mlflow, an MLflow model
            of a backbone or a classifier that needs onnxruntime alone.
        file: replaced if it exists; of mlflow, a folder that does not exist yet.

    Returns:
        The file or folder.

    Raises:
        HptError: no such model, the format has no such network, or the file cannot be written.
    """
    if format not in EXPORTS:
        raise HptError(f"{format!r} is unknown", f"use {', '.join(EXPORTS)}", setting="format")
    path = Path(file).expanduser()
    if format == STANDALONE:
        _export_standalone(model, path)
        return path
    connect()
    found = find_model(model, "model", DEFAULT_MODEL_NAME)
    export_backbone(found.backbone, found.card, format, path)
    return path


def make_whole(model: str, to: str | None = None) -> str:
    """Register a version that keeps only its difference from its parent (`store=delta`) again, with whole weights.

    Evaluations and lineage of the version are found for the copy, too.

    Args:
        model: its address; see `tracking.addresses.concrete_uri`.
        to: the registered model that gets the copy as a new version. Default: that of the version.

    Returns:
        The address of the copy.

    Raises:
        HptError: it is not a registered version, it is whole already, or a version that it needs is gone.
    """
    connect()
    with tracking_errors(f"cannot make {model} whole"):
        address = concrete_uri(model, "model", DEFAULT_MODEL_NAME)
        if not is_version(address):
            raise HptError(f"{address} is not a registered version", "give models:/NAME/VERSION", setting="model")
        if not is_delta(address):
            raise HptError(f"{address} is whole", "use it as it is", setting="model")
        name = to or split_version(address)[0]
        check_names(name, None)
        check_may_register(name, setting="to")
        return copy_whole(address, name)


def _export_standalone(model: str, folder: Path) -> None:
    require_onnx("format")
    if folder.exists():
        raise HptError(f"{folder} exists", "name a folder that does not", setting="file")
    connect()
    uri = concrete_uri(model, "model", DEFAULT_MODEL_NAME)
    source = download_model(uri, model, "model")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            written = Path(temporary) / "model"
            write_standalone(source, uri, written)
            written.rename(folder)
    except OSError as error:
        raise HptError(f"{folder} cannot be written ({error.strerror or one_line(error)})", setting="file") from error
