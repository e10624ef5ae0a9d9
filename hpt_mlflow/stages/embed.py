"""Embed: the features of all images of a dataset, and what a classifier says of them, as a Parquet file."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.parquet_parts import ParquetParts
from hpt_mlflow.data.pixel_range import pixels_for
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.split import NO_LABEL
from hpt_mlflow.data.squares import square_batches, square_of
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError, one_line, printable
from hpt_mlflow.evaluation.features import FrozenNetwork, feature_precision, to_input
from hpt_mlflow.models.patches import feature_maps
from hpt_mlflow.serving import ClassifierModel, EmbeddingModel, answers
from hpt_mlflow.settings import DEFAULT_MODEL_NAME, EmbedSettings
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.progress import show_steps
from hpt_mlflow.stages.result import StageResult
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import concrete_uri
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.models.store import find_served
from hpt_mlflow.tracking.runs.inputs import log_inputs
from hpt_mlflow.tracking.runs.stage_run import stage_run

STAGE = "embed"
# How much a part of the file may hold in memory, and how many rows it has at most.
PART_BYTES, PART_ROWS = 1 << 26, 8192

log = logging.getLogger("hpt_mlflow")


@dataclass(frozen=True)
class Embedder:
    """A model, and what is written of it.

    Attributes:
        patch_shape: height, width and channels of the map of features; None to leave it out.
    """

    embedding: EmbeddingModel
    classifier: ClassifierModel | None
    dtype: np.dtype[Any]
    precision: str
    patch_shape: tuple[int, int, int] | None

    @property
    def row_bytes(self) -> int:
        """Of the numbers of one image."""
        numbers = self.embedding.card.feature_size + (int(np.prod(self.patch_shape)) if self.patch_shape else 0)
        return numbers * int(self.dtype.itemsize)


@takes(EmbedSettings)
def embed(chosen: EmbedSettings) -> StageResult:
    """Write a row for each image: its path, its features, its labels, and the prediction if the model is a classifier.

    Images that cannot be read have no features, and say why in the column `error`.

    Returns:
        The model that was used, and how many images there are, how many could not be read, and images per second.

    Raises:
        HptError: there is no such model, there are no readable images, or the file cannot be written.
    """
    dataset = open_dataset(chosen.data, chosen.root)
    for entry in dataset.left_out:
        log.warning("data: of %s, left out: %s", dataset.name, entry)
    connect()
    uri = concrete_uri(chosen.model, "model", DEFAULT_MODEL_NAME)
    device = resolve_device(chosen.device)
    embedder = _embedder(chosen, find_served(uri, chosen.model, device))
    file = Path(chosen.to).expanduser()
    rows = max(1, min(PART_ROWS, PART_BYTES // embedder.row_bytes) // chosen.batch_size) * chosen.batch_size
    work = {"model": uri, "data": dataset.digest, "rows": rows, "precision": embedder.precision}
    try:
        parts = ParquetParts(file, work | {"dtype": chosen.dtype, "patches": chosen.patches})
    except OSError as error:
        problem = f"{printable(str(file))} cannot be written ({error.strerror or one_line(error)})"
        raise HptError(problem, setting="to") from error
    card = embedder.embedding.card
    with stage_run(f"{STAGE} {dataset.name}") as run:
        chain = " > ".join(card.chain)
        run.tags({tag.STAGE: STAGE, tag.PARENT_MODEL: uri, tag.CHAIN: chain, tag.DATASET_DIGEST: dataset.digest})
        run.params(asdict(chosen) | {"model": uri, "precision": embedder.precision})
        statistics = ChannelStatistics(card.mean, card.std)
        log_inputs(run.run_id, dataset, dataset.split(0), statistics, "inference", uri)
        began, first = time.monotonic(), parts.done * rows
        schema = _schema(embedder, dataset, uri)
        _write(parts, schema, embedder, dataset, chosen, rows)
        failed = len(dataset) - pq.read_table(file, columns=["error"])["error"].null_count
        rate = max(0, len(dataset) - first) / (time.monotonic() - began)
        metrics = {"images": float(len(dataset)), "unreadable": float(failed), "images_per_second": rate}
        metrics = {f"{STAGE}/{name}": value for name, value in metrics.items()}
        run.metrics(metrics, 0)
        run.describe(f"Features of {len(dataset):,} images of {dataset.name} by {uri}, in `{file.resolve()}`.")
    return StageResult(run.run_id, uri, card.chain, metrics)


def _embedder(chosen: EmbedSettings, model: EmbeddingModel | ClassifierModel) -> Embedder:
    embedding = model.embedding if isinstance(model, ClassifierModel) else model
    shape = None
    if chosen.patches:
        size, channels = embedding.card.architecture.image_size, embedding.card.architecture.channels
        with feature_maps(embedding.backbone, embedding.card.architecture.name) as newest, torch.inference_mode():
            embedding.backbone(torch.zeros(1, channels, size, size, device=embedding.device))
            channels, height, width = newest().shape[1:]
            shape = height, width, channels
    precision = feature_precision(chosen.precision, embedding.device)
    classifier = model if isinstance(model, ClassifierModel) else None
    return Embedder(embedding, classifier, np.dtype(chosen.dtype), precision, shape)


def _write(
    parts: ParquetParts, schema: pa.Schema, embedder: Embedder, dataset: Dataset, chosen: EmbedSettings, rows: int
) -> None:
    """Write what is missing, and put the parts together."""
    first = start = parts.done * rows
    show = show_steps(f"{STAGE} {dataset.name}")
    embedding, indices = embedder.embedding, range(first, len(dataset))
    side, pixels = embedding.smallest_side, pixels_for(dataset, embedding.card.pixels)
    waiting: list[pa.RecordBatch] = []
    with _computing(embedder) as compute:
        square, size = square_of(dataset, side, pixels, embedding.crop), embedding.square_bytes
        for images in square_batches(square, indices, chosen.batch_size, size, embedding.device, chosen.workers):
            columns = _known(dataset, range(start, start + len(images))) | compute(images)
            waiting.append(pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema))
            start += len(images)
            show(start, len(dataset))
            if start == len(dataset) or (start - first) % rows == 0:
                parts.add(pa.Table.from_batches(waiting))
                waiting = []
    parts.finish(schema)


@contextmanager
def _computing(embedder: Embedder) -> Iterator[Callable[[list[np.ndarray | str]], dict[str, pa.Array]]]:
    """A function from images, or why they cannot be read, to columns."""
    embedding, network = embedder.embedding, FrozenNetwork(embedder.embedding.backbone)
    architecture = embedding.card.architecture
    statistics = ChannelStatistics(embedding.card.mean, embedding.card.std)
    with ExitStack() as stack:
        newest = stack.enter_context(feature_maps(network.network, architecture.name)) if embedder.patch_shape else None

        def compute(images: list[np.ndarray | str]) -> dict[str, pa.Array]:
            unread = np.array([isinstance(image, str) for image in images])
            readable = [image for image in images if not isinstance(image, str)]
            errors = pa.array([image if isinstance(image, str) else None for image in images], pa.string())
            features = torch.zeros(0, embedding.card.feature_size)
            maps = torch.zeros(0, int(np.prod(embedder.patch_shape or 0)))
            if readable:
                batch, parts = to_input(readable, statistics, embedding.device), [maps]

                def keep_maps() -> None:
                    if newest:
                        parts.append(newest().float().permute(0, 2, 3, 1).flatten(1).cpu())

                features = network.features(batch, embedder.precision, keep_maps).cpu()
                maps = torch.cat(parts)
            columns = {"error": errors, "features": _rows(features, unread, embedder.dtype)}
            if embedder.patch_shape:
                columns["patches"] = _rows(maps, unread, embedder.dtype)
            return columns | (_predictions(embedder.classifier, features, unread) if embedder.classifier else {})

        yield compute


def _rows(values: Tensor, unread: np.ndarray, dtype: np.dtype[Any]) -> pa.Array:
    """A column of lists, float32 (readable, length) to (all,); null where an image could not be read."""
    ends = np.concatenate([[0], np.cumsum(~unread)]) * values.shape[1]
    numbers = pa.array(values.numpy().astype(dtype).ravel())
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), numbers, mask=pa.array(unread))


def _known(dataset: Dataset, indices: range) -> dict[str, pa.Array]:
    """The paths of images, and their labels if there are any."""
    columns = {"path": pa.array([printable(str(dataset.names[i])) for i in indices], pa.string())}
    if dataset.labels is None:
        return columns
    labels = dataset.labels[indices.start : indices.stop]
    if dataset.multilabel:
        names = [[dataset.classes[i] for i in row.nonzero()[0]] for row in labels]
        return columns | {"labels": pa.array(names, pa.list_(pa.string()))}
    return columns | {"label": pa.array([None if i == NO_LABEL else dataset.classes[i] for i in labels], pa.string())}


def _predictions(classifier: ClassifierModel, features: Tensor, unread: np.ndarray) -> dict[str, pa.Array]:
    """What a classifier says; null where an image could not be read."""
    shares = classifier.head.probabilities(features.numpy())
    probabilities = np.full((len(unread), len(classifier.card.classes)), np.nan)
    probabilities[~unread] = shares
    said = answers(probabilities, classifier.card)
    columns = {"probabilities": _rows(torch.from_numpy(shares), unread, np.dtype(np.float32))}
    if classifier.card.multilabel:
        return columns | {"predictions": pa.array(list(said["labels"]), pa.list_(pa.string()), mask=unread)}
    return columns | {
        "prediction": pa.array(list(said["label"]), pa.string(), mask=unread),
        "probability": pa.array(list(said["probability"]), pa.float64(), mask=unread),
    }


def _schema(embedder: Embedder, dataset: Dataset, uri: str) -> pa.Schema:
    """Columns, and what a reader should know as JSON under `hpt_mlflow` in the metadata."""
    card, numbers = embedder.embedding.card, pa.from_numpy_dtype(embedder.dtype)
    names = pa.list_(pa.string())
    columns: dict[str, pa.DataType] = {"path": pa.string()}
    if dataset.labels is not None:
        columns |= {"labels": names} if dataset.multilabel else {"label": pa.string()}
    about: dict[str, Any] = {"model": uri, "chain": card.chain, "data": dataset.name, "digest": dataset.digest}
    if embedder.classifier:
        classes, multilabel = embedder.classifier.card.classes, embedder.classifier.card.multilabel
        one = {"prediction": pa.string(), "probability": pa.float64()}
        columns |= {"predictions": names} if multilabel else one
        columns["probabilities"] = pa.list_(pa.float32())
        about["classes"] = classes
    columns |= {"error": pa.string(), "features": pa.list_(numbers)}
    if embedder.patch_shape:
        columns["patches"] = pa.list_(numbers)
        about["patches"] = dict(zip(("height", "width", "channels"), embedder.patch_shape, strict=True))
    return pa.schema(list(columns.items()), {"hpt_mlflow": json.dumps(about)})
