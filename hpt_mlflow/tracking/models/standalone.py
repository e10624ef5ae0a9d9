"""Models that stand alone: MLflow models of one ONNX graph, for which a server needs neither torch nor this package.

They are made where a model leaves the project, by `hpt promote --to` and `hpt export --format mlflow`, and not of every
milestone: the graph takes seconds to write, and the weights are stored a second time.
"""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec

from hpt_mlflow.data.decode import LONGEST_STRIP
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.checkpoint import copy_to_cpu, replace_difference
from hpt_mlflow.models.onnx_graph import (
    EMBEDDING,
    IMAGES,
    LABEL,
    PROBABILITIES,
    PROBABILITY,
    Geometry,
    Head,
    require_onnx,
    served_graph,
)
from hpt_mlflow.serving import ClassifierModel, EmbeddingModel, load_served
from hpt_mlflow.tracking.models.copies import register_copy
from hpt_mlflow.tracking.models.store import download_model, find_parent
from hpt_mlflow.tracking.runs.stage_run import StageRun

NAME = "standalone"
# The first that runs what torch writes today.
REQUIREMENTS = ["onnxruntime>=1.17,<2"]
EXAMPLE_SIDE = 8


def write_standalone(source: Path, name: str, folder: Path) -> None:
    """Write a downloaded model as an MLflow model that stands alone.

    It also keeps the files of the backbone, so that every command of this package takes it.

    Args:
        source: the folder of a backbone or a classifier.
        name: how errors call it.
        folder: does not exist, or is empty.

    Raises:
        HptError: it is damaged, or has an operator that ONNX does not know.
    """
    served = load_served(source, name, find_parent=find_parent)
    embedding = served.embedding if isinstance(served, ClassifierModel) else served
    card, size = embedding.card, embedding.card.architecture.image_size
    geometry = Geometry(embedding.smallest_side, embedding.resize_to or size, LONGEST_STRIP)
    dtype = np.dtype(np.uint8 if card.pixels.dtype == np.uint8 else np.float32)
    bands = 3 if card.pixels.is_rgb else -1
    weights = copy_to_cpu(embedding.backbone.state_dict())
    graph = served_graph(embedding.backbone.cpu(), card, geometry, _head(served))
    mlflow.onnx.save_model(
        graph,
        str(folder),
        signature=ModelSignature(Schema([TensorSpec(dtype, (-1, -1, -1, bands), IMAGES)]), _outputs(served)),
        input_example=np.full((1, EXAMPLE_SIDE, EXAMPLE_SIDE, max(card.pixels.bands, default=3)), 128, dtype),
        pip_requirements=REQUIREMENTS,
        save_as_external_data=False,
        # What the requirements install.
        onnx_execution_providers=["CPUExecutionProvider"],
        metadata=_metadata(served),
    )
    shutil.copytree(source / "data", folder / "data", dirs_exist_ok=True)
    replace_difference(folder / "data", weights)


def copy_standalone(address: str, to: str) -> str:
    """Register a version again under another name, as a model that stands alone; gives the address.

    Raises:
        HptError: it cannot be written as ONNX, or MLflow refuses.
    """
    require_onnx("to")
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "model"
        source = download_model(address, address, "model")
        try:
            write_standalone(source, address, written)
        except HptError as error:
            raise HptError(error.problem, "promote it with --no-standalone, to be served by this package") from error

        def fill(folder: Path) -> None:
            shutil.copytree(written, folder, dirs_exist_ok=True)

        def keep(run: StageRun, tags: dict[str, str]) -> Future[str]:
            return run.model(NAME, 0, {}, tags, fill)

        return register_copy(address, to, NAME, "as a model that stands alone: it needs onnxruntime", keep)


def _head(served: EmbeddingModel | ClassifierModel) -> Head | None:
    if not isinstance(served, ClassifierModel):
        return None
    return Head(served.head.tensors, served.card.classes, served.card.multilabel)


def _outputs(served: EmbeddingModel | ClassifierModel) -> Schema:
    if not isinstance(served, ClassifierModel):
        return Schema([TensorSpec(np.dtype(np.float32), (-1, served.card.feature_size), EMBEDDING)])
    probabilities = TensorSpec(np.dtype(np.float64), (-1, len(served.card.classes)), PROBABILITIES)
    if served.card.multilabel:
        return Schema([probabilities])
    label = TensorSpec(np.dtype(np.str_), (-1,), LABEL)
    return Schema([label, TensorSpec(np.dtype(np.float64), (-1,), PROBABILITY), probabilities])


def _metadata(served: EmbeddingModel | ClassifierModel) -> dict[str, Any]:
    """What a reader of the MLmodel file should know: the classes in the order of the probabilities, and the chain."""
    if isinstance(served, ClassifierModel):
        return _metadata(served.embedding) | asdict(served.card) | {"classes": list(served.card.classes)}
    card = served.card
    known = {"chain": list(card.chain), "arch": card.architecture.name, "image_size": card.architecture.image_size}
    return known if card.pixels.is_rgb else known | {"pixels": card.pixels.as_values()}
