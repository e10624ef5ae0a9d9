import mlflow
import numpy as np
import pytest
import torch
from torch import nn

import hpt_mlflow
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.backbone import ARCHITECTURES

TINY = {"image_size": 16, "batch_size": 16, "steps": 2, "precision": "float32", "compile": "off"}


class Shapes(torch.utils.data.Dataset):
    """40 images of noise in two classes, one of which is darker."""

    classes = ("dark", "light")

    def __len__(self):
        return 40

    def __getitem__(self, number):
        noise = np.random.default_rng(number).integers(0, 100, (20, 20, 3), dtype=np.uint8)
        return torch.from_numpy(noise + 100 * (number % 2)).permute(2, 0, 1).to(torch.uint8), number % 2


class Small(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, images):
        return self.layers(images)


def test_a_chain_runs_on_a_dataset_and_a_network_that_are_objects(store):
    network = Small()
    before = network.layers[0].weight.clone()
    base = hpt_mlflow.pretrain(data=Shapes(), arch=network, **TINY)
    assert torch.equal(network.layers[0].weight, before)
    adapted = hpt_mlflow.adapt(data=Shapes(), parent=base.model_uri, judge="none", **TINY)
    scored = hpt_mlflow.evaluate(data=Shapes(), model=adapted.model_uri)
    assert adapted.chain == ("Shapes", "Shapes")
    assert 0 <= scored.metrics["test/accuracy"] <= 1
    tags = mlflow.get_run(base.run_id).data.tags
    assert tags["hpt.continue"].startswith("call hpt_mlflow.pretrain again from Python: ")


def test_the_same_objects_are_the_same_work(store):
    torch.manual_seed(0)
    network = Small()
    first = hpt_mlflow.pretrain(data=Shapes(), arch=network, **TINY)
    again = hpt_mlflow.pretrain(data=Shapes(), arch=network, **TINY)
    others = [hpt_mlflow.pretrain(data=Shapes(), arch=Small(), **TINY)]
    # Equal weights in other layers.
    network.layers[2] = nn.GELU()
    others.append(hpt_mlflow.pretrain(data=Shapes(), arch=network, **TINY))
    fingerprints = [mlflow.get_run(run.run_id).data.tags["hpt.fingerprint"] for run in (first, again, *others)]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_other_processes_cannot_have_an_object(store):
    with pytest.raises(
        HptError, match=r"data: memory:Shapes-\d+ was passed as an object, which other processes cannot"
    ):
        hpt_mlflow.pretrain(data=Shapes(), nproc=2, **TINY)
    with pytest.raises(HptError, match="arch: module:Small-.* was passed as an object"):
        hpt_mlflow.pretrain(arch=Small(), nproc=2, **TINY)
    with pytest.raises(HptError, match="data: memory:Shapes-.* was passed as an object"):
        hpt_mlflow.tune(data=Shapes())
    with pytest.raises(HptError, match="target: memory:Shapes-.* was passed as an object"):
        hpt_mlflow.study(target=Shapes())
    assert mlflow.search_runs(search_all_experiments=True).empty


def test_a_model_of_an_object_says_what_another_process_lacks(store):
    base = hpt_mlflow.pretrain(data=Shapes(), arch=Small(), **TINY)
    name = mlflow.get_run(base.run_id).data.params["settings/arch"]
    del ARCHITECTURES[name]
    with pytest.raises(HptError, match=f"arch: {name} is a network that was passed as an object to another process"):
        hpt_mlflow.adapt(data=Shapes(), parent=base.model_uri, judge="none", **TINY)


def test_a_network_that_keeps_places_is_refused(store):
    with pytest.raises(HptError, match=r"arch: module:Conv2d-.* gives \(1, 4, 14, 14\) instead of \(1, features\)"):
        hpt_mlflow.pretrain(data=Shapes(), arch=nn.Conv2d(3, 4, 3), **TINY)


def test_what_is_not_a_dataset_is_refused(store):
    with pytest.raises(HptError, match="data: int has no length or no items"):
        hpt_mlflow.pretrain(data=3, **TINY)
