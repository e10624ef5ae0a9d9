import shutil
from pathlib import Path

import mlflow
import pytest
from colours import TINY
from mlflow.tracking import MlflowClient
from mlflow_runs import store_for_copies
from PIL import Image
from safetensors.numpy import load_file, save_file
from scenes import scene

import hpt_mlflow
from hpt_mlflow.data.contents import VERSION
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.tracking.models.seen_images import seen_images
from hpt_mlflow.tracking.tags import SEEN_IMAGES_FILE, WARNING


def picture(seed):
    return Image.fromarray(scene(seed, 64))


COPIES = (
    lambda image, file: image.save(file, "JPEG", quality=30),
    lambda image, file: image.resize((40, 40)).save(file),
    lambda image, file: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file),
)


@pytest.fixture(scope="module")
def made(empty_database, tmp_path_factory):
    """The database of a store with a model of 30 images; and a target with other images, of which three test images are
    copies of some of these.
    """
    folder = tmp_path_factory.mktemp("near")
    (folder / "base").mkdir()
    for i in range(30):
        picture(i).save(folder / "base" / f"{i}.png")
    for i in range(36):
        file = folder / "target" / "abc"[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(100 + i).save(file)
    dataset = open_dataset(f"{folder}/target")
    tested = [dataset.pictures[i] for i in dataset.split(0).test]
    for i, (copy, file) in enumerate(zip(COPIES, tested, strict=False)):
        copy(picture(i), file)
    with store_for_copies(folder, empty_database) as database:
        pretrained = hpt_mlflow.pretrain(data=f"{folder}/base", steps=2, **TINY)
    return database, (pretrained, folder / "target", {Path(file).name for file in tested[: len(COPIES)]})


@pytest.fixture
def trained(made, store, tmp_path):
    """The model, the target, and the names of the copies, in a store of its own."""
    database, trained = made
    shutil.copy(database, tmp_path / "mlflow.db")
    return trained


def test_an_evaluation_warns_of_near_copies_of_what_was_trained_on(trained):
    pretrained, target, names = trained
    assert seen_images(pretrained.run_id).hashes.shape == (30, 4)
    result = hpt_mlflow.evaluate(model=pretrained.model_uri, data=str(target), untrained=False)
    assert result.metrics["data/test_images_near_seen"] == 3
    assert result.metrics["data/test_images_seen"] == 0
    warning = MlflowClient().get_run(result.run_id).data.tags[WARNING]
    assert f"look like images that pretrain base (run {pretrained.run_id}) has trained on" in warning
    assert all(name in warning for name in names)


def test_a_model_without_hashes_gives_no_warning(trained):
    pretrained, target, _ = trained
    uri = mlflow.get_run(pretrained.run_id).info.artifact_uri
    file = Path(uri.removeprefix("file://")) / SEEN_IMAGES_FILE
    before = file.read_bytes()
    tensors = {name: tensor for name, tensor in load_file(file).items() if name != "hashes"}
    save_file(tensors, file, {"version": str(VERSION)})
    try:
        result = hpt_mlflow.evaluate(model=pretrained.model_uri, data=str(target), untrained=False)
    finally:
        file.write_bytes(before)
    assert "data/test_images_near_seen" not in result.metrics
    assert "look like" not in MlflowClient().get_run(result.run_id).data.tags.get(WARNING, "")
