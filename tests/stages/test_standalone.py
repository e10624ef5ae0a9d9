"""Real models that stand alone: written, registered, loaded where this package is not, and evaluated again."""

import os
import shutil
import subprocess
import sys

import mlflow
import numpy as np
import pytest
import torch
import torchvision
from colours import write_colours
from mlflow.tracking import MlflowClient
from mlflow_runs import store_for_copies

from hpt_mlflow import evaluate, export, import_weights, load_model, promote
from hpt_mlflow.errors import HptError
from hpt_mlflow.stages.models import lineage
from hpt_mlflow.tracking.addresses import addresses_of_model
from hpt_mlflow.tracking.models.evaluations import evaluations_of

pytest.importorskip("onnxruntime")

# Loads models where neither this package nor torch can be imported.
ALONE = """
import sys
sys.modules.update(dict.fromkeys(["hpt_mlflow", "torch", "torchvision", "timm", "onnx"]))
import mlflow, numpy
images, *models = sys.argv[1:]
for file, address in zip(models[::2], models[1::2]):
    answers = mlflow.pyfunc.load_model(address).predict(numpy.load(images))
    numpy.savez(file, **{name: answer.astype(str) if answer.dtype == object else answer
                         for name, answer in answers.items()})
"""


def alone(addresses, images, folder):
    """What each of several models answers."""
    np.save(folder / "images.npy", images)
    files = [str(folder / f"answers {i}.npz") for i in range(len(addresses))]
    words = [word for both in zip(files, addresses, strict=True) for word in both]
    command = [sys.executable, "-c", ALONE, folder / "images.npy", *words]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
    return [np.load(file) for file in files]


@pytest.fixture(scope="module")
def made(tmp_path_factory, empty_database):
    """The database of a store with a backbone and its classifier."""
    folder = tmp_path_factory.mktemp("made")
    with store_for_copies(folder, empty_database) as database:
        torch.manual_seed(0)
        torch.save(torchvision.models.resnet18().state_dict(), folder / "random.pth")
        import_weights(str(folder / "random.pth"), image_size=32)
        evaluate(model="models:/hpt/1", data=str(write_colours(folder / "images")))
    return database


@pytest.fixture
def evaluated(made, store, tmp_path):
    """A store of its own with that backbone and that classifier, and images to look at."""
    shutil.copy(made, tmp_path / "mlflow.db")
    return np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), dtype=np.uint8)


def test_a_promoted_copy_needs_neither_this_package_nor_torch(evaluated, tmp_path):
    done = promote("models:/hpt/1", to="production")
    assert (done.address, done.classifier) == ("models:/production/1", "models:/production-classifier/1")
    both = ("models:/production@champion", "models:/production-classifier@champion")
    embeddings, answers = alone(both, evaluated, tmp_path)
    np.testing.assert_allclose(
        embeddings["embedding"], mlflow.pyfunc.load_model("models:/hpt/1").predict(evaluated), atol=1e-4
    )
    expected = mlflow.pyfunc.load_model("models:/hpt-classifier/1").predict(evaluated)
    assert list(answers["label"]) == list(expected["label"])
    np.testing.assert_allclose(answers["probability"], expected["probability"], atol=1e-4)

    # It is the same model to everything else.
    assert [node.address for node in lineage("models:/production/1")] == ["models:/production/1", "models:/hpt/1"]
    assert "models:/production/1" in addresses_of_model("models:/hpt/1")
    assert evaluations_of("models:/production/1")[0].run_id == evaluations_of("models:/hpt/1")[0].run_id
    assert load_model("models:/production/1").card == load_model("models:/hpt/1").card
    assert promote("models:/hpt/1", to="production").notes == ["models:/production/1 is champion already"]
    (run,) = MlflowClient().search_runs(["0"], "tags.`hpt.stage`='export' and tags.`hpt.parent_model`='models:/hpt/1'")
    assert run.info.status == "FINISHED"


def test_an_exported_folder_says_what_it_takes_and_gives(evaluated, tmp_path):
    folder = export("models:/hpt-classifier/1", "mlflow", tmp_path / "served" / "model")
    model = mlflow.models.Model.load(folder)
    assert model.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "uint8", "shape": (-1, -1, -1, 3)}
    assert model.signature.outputs.input_names() == ["label", "probability", "probabilities"]
    assert (model.metadata["classes"], model.metadata["chain"]) == (["blue", "green", "red"], ["random"])
    assert (folder / "requirements.txt").read_text().splitlines()[1:] == ["onnxruntime<2,>=1.17"]
    example = model.load_input_example(str(folder))
    assert mlflow.pyfunc.load_model(str(folder)).predict(example)["probabilities"].shape == (1, 3)
    with pytest.raises(HptError, match=r"file: .*model exists; name a folder that does not"):
        export("models:/hpt/1", "mlflow", folder)
