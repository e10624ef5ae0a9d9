from __future__ import annotations

import shutil

import numpy as np
import pytest
from colours import TINY, Past, write_colours
from mlflow_runs import store_for_copies
from PIL import Image

import hpt_mlflow


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20 images of noise each."""
    rng = np.random.default_rng(0)
    for i in range(40):
        file = tmp_path / "images" / ("cat" if i % 2 else "dog") / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(file)
    return tmp_path / "images"


@pytest.fixture(scope="session")
def pretrained(empty_database, tmp_path_factory):
    """The database of a store in which a model was trained, and what it has learned from."""
    folder = tmp_path_factory.mktemp("past")
    with store_for_copies(folder, empty_database) as database:
        images = write_colours(folder / "images")
        result = hpt_mlflow.pretrain(data=str(images), steps=2, milestones="50%", **TINY)
    return database, Past(images, result.model_uri, result.run_id)


@pytest.fixture
def past(pretrained, store, tmp_path):
    """A store of its own with that past, and a copy of the images that can be changed."""
    database, made = pretrained
    shutil.copy(database, tmp_path / "mlflow.db")
    return made
