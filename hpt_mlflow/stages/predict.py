"""Predict: the predictions of a classifier for all images of a folder, as a CSV file."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import torch

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.pixel_range import pixels_for
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.squares import square_batches, square_of
from hpt_mlflow.errors import HptError, printable
from hpt_mlflow.files import replacing
from hpt_mlflow.serving import LABEL_THRESHOLD, ClassifierModel
from hpt_mlflow.stages.processes.device import memory_errors, resolve_device
from hpt_mlflow.tracking.addresses import concrete_uri
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.models.store import find_served

BATCH_SIZE = 64
DEFAULT_CLASSIFIER = "hpt-classifier"

log = logging.getLogger("hpt_mlflow")


def predict(model: str, data: str, file: Path, device: str = "auto", root: str | None = None) -> tuple[int, int]:
    """Write the predictions of a classifier: the label of each image and its probability, and those of all labels.

    Args:
        model: address of a classifier: models:/NAME/VERSION, NAME@ALIAS, or an alias of `hpt-classifier`.
        data: images, as for a stage; labels are not needed.
        file: CSV file, one line per image in the order of the dataset; replaced in one step at the end.

    Returns:
        The number of classified and of unreadable images; the latter have an `error` instead of a label.

    Raises:
        HptError: the model is not a classifier, there are no images, or the file cannot be written.
    """
    with memory_errors():
        return _predict(model, data, file, resolve_device(device), root)


def _predict(model: str, data: str, file: Path, device: torch.device, root: str | None) -> tuple[int, int]:
    dataset = open_dataset(data, root, every_image=True)
    for entry in dataset.left_out:
        log.warning("data: of %s, left out: %s", dataset.name, entry)
    connect()
    uri = concrete_uri(model, "model", DEFAULT_CLASSIFIER)
    classifier = find_served(uri, model, device)
    if not isinstance(classifier, ClassifierModel):
        remedy = f"hpt evaluate --model {uri} --data LABELLED makes a classifier"
        raise HptError(f"{uri} is a backbone without classes", remedy, setting="model")
    try:
        with replacing(file) as written, open(written, "w", newline="", encoding="utf-8") as opened:
            return _write(opened, classifier, dataset)
    except OSError as error:
        raise HptError(f"cannot write {printable(str(file))}: {error.strerror}") from error


def _write(opened, classifier: ClassifierModel, dataset: Dataset) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    classes = classifier.card.classes
    answer = ("labels",) if classifier.card.multilabel else ("label", "probability")
    writer = csv.writer(opened)
    writer.writerow(["image", *answer, "error", *(f"p({name})" for name in classes)])
    classified = failed = 0
    names, side = iter(dataset.names), classifier.embedding.smallest_side
    pixels = pixels_for(dataset, classifier.embedding.card.pixels)
    # Not as they are: hundreds of photographs would fill the memory.
    embedding, head = classifier.embedding, classifier.head
    square, indices = square_of(dataset, side, pixels, embedding.crop), range(len(dataset))
    for batch in square_batches(square, indices, BATCH_SIZE, embedding.square_bytes, embedding.device):
        squares = [image for image in batch if not isinstance(image, str)]
        rows = iter(head.probabilities(embedding.embed(squares))) if squares else iter(())
        for image in batch:
            name = printable(str(next(names)))
            if isinstance(image, str):
                failed += 1
                writer.writerow([name, *("" for _ in answer), image, *("" for _ in classes)])
            else:
                classified += 1
                row = next(rows)
                writer.writerow([name, *_answer(classifier, row), "", *(f"{share:.6f}" for share in row)])
    return classified, failed


def _answer(classifier: ClassifierModel, row: np.ndarray) -> list[str]:
    classes = classifier.card.classes
    if classifier.card.multilabel:
        return [";".join(name for name, share in zip(classes, row, strict=True) if share >= LABEL_THRESHOLD)]
    best = int(row.argmax())
    return [classes[best], f"{row[best]:.6f}"]
