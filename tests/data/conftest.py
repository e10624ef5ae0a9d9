import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpt_mlflow.data import images as images_module
from hpt_mlflow.data.dataset import Dataset


@pytest.fixture
def write_image():
    """Write a plain image; its suffix decides the format."""

    def write(path, size=(6, 5), colour=(10, 20, 30)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        return path

    return write


@pytest.fixture
def unpacked(tmp_path, write_image):
    """Write images and other files into a folder, and give the folder."""
    root = tmp_path / "unpacked"

    def write(images, files=()):
        for path in images:
            write_image(root / path)
        for path, content in dict(files).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content if isinstance(content, str) else json.dumps(content))
        return root

    return write


@pytest.fixture
def table(tmp_path, write_image):
    """Write images and a CSV file beside them; gives its address."""

    def write(text, images=("1.png", "2.png", "3.png", "4.png"), name="some.csv"):
        for image in images:
            write_image(tmp_path / "data" / image)
        file = tmp_path / "data" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"csv:{file}"

    return write


@pytest.fixture
def dataset_of():
    """A dataset of pictures and, if there are any, labels."""

    def build(pictures, labels=None, test=None):
        names = [getattr(picture, "name", f"picture {i}") for i, picture in enumerate(pictures)]
        classes = () if labels is None else tuple(str(label) for label in np.unique(labels))
        labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        return Dataset("some", "folder:some", pictures, names, labels, classes, test)

    return build


@pytest.fixture
def plain_files(tmp_path, write_image):
    """Files 000.png, 001.png, ..., each plainly grey of the value of its number."""

    def write(count, size=(6, 5)):
        return [write_image(tmp_path / "files" / f"{i:03}.png", size, (i, i, i)) for i in range(count)]

    return write


@pytest.fixture
def folder():
    return Path(os.environ["HPT_CACHE"]) / "decoded"


@pytest.fixture
def kept(folder):
    """Names of what is in the cache, hidden or not; and nothing else of any process."""
    return lambda: sorted(file.name for file in folder.glob("*") if file.name != "locks")


@pytest.fixture
def no_decoding(monkeypatch):
    """From when it is called on, decoding fails."""

    def refuse(picture, side):
        raise AssertionError(f"{picture} is decoded")

    return lambda: monkeypatch.setattr(images_module, "decode", refuse)


@pytest.fixture
def images(dataset_of):
    """Eleven noisy images of different sizes, in memory."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (10 + i, 20 - i, 3), dtype=np.uint8) for i in range(11)]
    return images_module.Images(dataset_of(pictures), np.arange(11), smallest_side=16)
