"""Multispectral images in files, through the real `mlflow run`, to a served model."""

import mlflow
import numpy as np
import pytest
from mlflow_runs import mlflow_run, newest

from hpt_mlflow.serving import load_served
from hpt_mlflow.tracking.models.store import download_model

tifffile = pytest.importorskip("tifffile")
NETWORK = {"arch": "resnet18", "image_size": 16, "batch_size": 16}


def write_scenes(folder, bands, seed=0):
    """60 images of 12 bits in three classes, of which each has another bright band."""
    rng = np.random.default_rng(seed)
    for i in range(60):
        values = rng.integers(0, 3000, (bands, 20, 20)).astype(np.uint16)
        values[i % 3] += 1095
        file = folder / "abc"[i % 3] / f"{i}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(file, values, photometric="minisblack", planarconfig="separate")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("bands", [4, 13])
def test_a_chain_of_bands_ends_in_a_served_model(tmp_path, bands):
    folder = write_scenes(tmp_path / "scenes", bands)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    stages = {
        "pretrain": {"steps": 4, "alias": "base", **NETWORK},
        "adapt": {"steps": 4, "parent": "models:/hpt@base", "batch_size": 16, "on_no_gain": "register"},
        "evaluate": {"model": "models:/hpt/latest"},
    }
    for stage, parameters in stages.items():
        done = mlflow_run(tmp_path, stage, data=str(folder), **parameters)
        assert done.returncode == 0, done.stdout + done.stderr
        assert newest(stage).info.status == "FINISHED"

    served = mlflow.pyfunc.load_model("models:/hpt/latest")
    images = np.stack([tifffile.imread(file).transpose(1, 2, 0) for file in sorted(folder.rglob("*.tif"))[:6]])
    card = load_served(download_model("models:/hpt/latest", "it", "model"), "it").card
    assert (card.architecture.channels, card.pixels.high) == (bands, (4095.0,) * bands)
    embeddings = served.predict(images)
    assert embeddings.shape == (6, 512)
    # The last band counts as the others do.
    changed = images.copy()
    changed[..., -1] //= 2
    assert np.abs(served.predict(changed) - embeddings).max() > 1e-3
    answers = mlflow.pyfunc.load_model("models:/hpt-classifier/latest").predict(images)
    assert set(answers["label"]) <= {"a", "b", "c"}
