"""A `torch.utils.data.Dataset` that the caller passes as an object, in place of an address."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image

from hpt_mlflow.data.dataset import IN_MEMORY, Dataset, evenly_spaced
from hpt_mlflow.data.errors import UnreadableImageError, data_error, explaining
from hpt_mlflow.data.names import NumberedNames, Row
from hpt_mlflow.data.pictures import Encoded, TurnLock
from hpt_mlflow.errors import printable

# Items that are read when the dataset is opened, to check images and labels.
LOOKED_AT = 16
CHANNELS, COLOURS = (1, 3, 4), (3, 4)
# Arrays of more bands are of another order of axes.
MOST_BANDS = 64
SHAPES = (
    "return a Pillow image, a tensor (C, H, W) or an array (H, W) or (H, W, C), of uint8, of floats from 0 to 1, or of "
    "numbers of more bits"
)

# Datasets are made for processes that each read on their own, so threads take turns.
_turn = TurnLock()


class TorchPictures(Row[Encoded]):
    """The pictures of a map-style dataset, each read when it is needed."""

    def __init__(self, data: Any, threads: bool = False) -> None:
        """
        Args:
            threads: whether several threads may read from the dataset at once.
        """
        self.data, self.threads = data, threads

    def __len__(self) -> int:
        return len(self.data)

    def _value(self, i: int) -> Encoded:
        with explaining(), nullcontext() if self.threads else _turn:
            return as_picture(_image_and_label(self.data[i])[0])

    def path(self, i: int) -> None:
        """No picture is known to be a file."""


def open_torch_dataset(data: Any) -> Dataset:
    """Open a map-style dataset whose items are images or pairs (image, label).

    An image is as `as_picture` takes it; a label is a whole number, or a vector of 0 and 1 with an entry per label.
    Images are named by their index. If the dataset has `classes`, they name the labels. Labels are taken from `targets`
    or `labels` if they agree with the items that are looked at, or else all items are read.

    Raises:
        HptError: it has no length or no items, images or labels are of another kind, some images lack a label, or
            images differ each time they are read.
    """
    name = printable(type(data).__name__)
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise data_error(f"{name} has no length or no items", "pass an address or a map-style dataset")
    pictures = TorchPictures(data)
    if not len(pictures):
        raise data_error(f"{name} has no images")
    _check_images(name, pictures)
    labels, classes = _numbered(name, data, _labels(name, data))
    return Dataset(
        name=name,
        uri=f"{IN_MEMORY}{name}",
        pictures=pictures,
        names=NumberedNames(len(pictures)),
        labels=labels,
        classes=classes,
    )


def as_picture(image: Any) -> Encoded:
    """The image as `decode` takes it: a Pillow image as it is, a tensor (C, H, W) as an array (H, W, C).

    Raises:
        UnreadableImageError: it has another type or shape, or colours of another range.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, np.ndarray):
        raise UnreadableImageError(f"{type(image).__name__} is not an image; {SHAPES}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and not _has_channels_last(image)):
        raise UnreadableImageError(f"shape {image.shape} is not that of an image; {SHAPES}")
    if image.dtype.kind not in "buif":
        raise UnreadableImageError(f"{image.dtype} is not a type of image; {SHAPES}")
    # As `torchvision.transforms.ToTensor` scales images of 8 bits.
    is_share = image.dtype.kind == "f" and image.min(initial=0) >= 0 and image.max(initial=0) <= 1
    if is_share or image.dtype == bool:
        return np.round(image * 255.0).astype(np.uint8)
    # Colours that were normalised are none any more; grey and bands are measurements of any range.
    if image.ndim == 3 and image.shape[2] in COLOURS and image.dtype not in (np.uint8, np.uint16):
        raise UnreadableImageError(f"values from {image.min():.4g} to {image.max():.4g} are not colours; {SHAPES}")
    return image


def _has_channels_last(image: np.ndarray) -> bool:
    first, last = image.shape[0], image.shape[2]
    return last in CHANNELS or (first not in CHANNELS and 1 < last <= MOST_BANDS)


def name_classes(labels: np.ndarray, names: Sequence[Any] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels and class names of labels that a dataset numbers itself, int64 (N,).

    Args:
        names: of the classes, as the dataset has them; None if it has none.
    """
    values = np.unique(labels)
    classes = tuple(map(str, names if names and len(names) > values.max() else values))
    return (np.searchsorted(values, labels) if len(classes) == len(values) else labels), classes


def _image_and_label(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list):
        return item, None
    if len(item) not in (1, 2):
        raise UnreadableImageError(f"an item of {len(item)} values is not an image; return (image, label)")
    return item[0], item[1] if len(item) == 2 else None


def _sample(count: int) -> list[int]:
    return evenly_spaced(np.arange(count), LOOKED_AT).tolist()


def _check_images(name: str, pictures: TorchPictures) -> None:
    """Refuse a dataset whose items are all of a wrong kind, or random; single damaged images are for `Images`."""
    reasons = {}
    for i in _sample(len(pictures)):
        try:
            if not np.array_equal(np.asarray(pictures[i]), np.asarray(pictures[i])):
                raise data_error(f"image {i} of {name} differs each time it is read", "remove its random transforms")
        except UnreadableImageError as error:
            reasons[i] = str(error)
    if len(reasons) == len(_sample(len(pictures))):
        problem, _, remedy = next(iter(reasons.values())).partition("; ")
        raise data_error(f"image 0 of {name}: {problem}", remedy)


def _labels(name: str, data: Any) -> list[Any]:
    """The label of each image as the dataset gives it, or None."""
    some = {i: _label(name, data, i) for i in _sample(len(data))}
    for attribute in ("targets", "labels"):
        values: Any = getattr(data, attribute, None)
        if not hasattr(values, "__len__") or len(values) != len(data):
            continue
        if all(label is not None and np.array_equal(_array(values[i]), _array(label)) for i, label in some.items()):
            return list(values)
    return [some[i] if i in some else _label(name, data, i) for i in range(len(data))]


def _label(name: str, data: Any, i: int) -> Any:
    try:
        return _image_and_label(data[i])[1]
    except Exception as error:
        raise data_error(f"the label of image {i} of {name} cannot be read: {error}") from error


def _array(label: Any) -> np.ndarray:
    return np.asarray(label.detach().cpu() if isinstance(label, torch.Tensor) else label)


def _numbered(name: str, data: Any, labels: list[Any]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels int64 (N,) or uint8 (N, L), or None; and the names of classes or labels."""
    missing = [i for i, label in enumerate(labels) if label is None]
    if len(missing) == len(labels):
        return None, ()
    if missing:
        raise data_error(f"{name} has labels, but not for image {missing[0]}", "give every image a label, or none")
    arrays = list(map(_array, labels))
    for i, array in enumerate(arrays):
        is_class = array.ndim == 0 and array.dtype.kind in "iub" and array >= 0
        is_vector = array.ndim == 1 and array.dtype.kind in "iubf" and bool(np.isin(array, (0, 1)).all())
        if not (is_class or is_vector) or array.shape != arrays[0].shape:
            raise data_error(
                f"the label of image {i} of {name} is {printable(repr(labels[i]))}",
                "give every image a whole number from 0 on, or a vector of 0 and 1 with an entry per label",
            )
    # A subset, as of random_split, has the classes of the whole.
    names = getattr(data, "classes", None) or getattr(getattr(data, "dataset", None), "classes", None)
    if arrays[0].ndim == 0:
        return name_classes(np.array(arrays, dtype=np.int64), names)
    matrix = np.array(arrays, dtype=np.uint8)
    return matrix, tuple(map(str, names if names and len(names) == matrix.shape[1] else range(matrix.shape[1])))
