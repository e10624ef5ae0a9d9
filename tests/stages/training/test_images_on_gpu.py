"""Trainings whose images are on a GPU: here the processor holds them, and loops stand in for the kernel."""

import signal

import mlflow
import numpy as np
import pytest
import torch
from scenes import write_digits

import hpt_mlflow
from hpt_mlflow.augment.crop_kernels import resize_box
from hpt_mlflow.data import gpu_images
from hpt_mlflow.data.gpu_images import GpuImages
from hpt_mlflow.stages.training import prepare
from hpt_mlflow.training.loop import Trainer

# In the folder of the store.
TINY = {
    "data": "digits",
    "arch": "shufflenet_v2_x0_5",
    "image_size": 16,
    "batch_size": 4,
    "bn_splits": 2,
    "steps": 4,
    "precision": "float32",
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def digits(store, tmp_path):
    write_digits(tmp_path / "digits")


def cut(pixels, boxes, side, channels):
    """`augment.on_gpu.cut`, by loops."""
    crops = np.empty((len(boxes), channels, side, side), pixels.numpy().dtype)
    for crop, (begin, image_width, *box) in zip(crops, boxes.tolist(), strict=True):
        rows = (len(pixels) - begin) // (image_width * channels)
        image = pixels.numpy()[begin:][: rows * image_width * channels].reshape(rows, image_width, channels)
        resize_box(image, *box, crop)
    return torch.from_numpy(crops).transpose(2, 3)


@pytest.fixture
def held(monkeypatch):
    """Let images be held, in a list of those that were."""
    found = []

    def hold(images, device, trainings):
        found.append(GpuImages(images, images.packed, device))
        return found[-1]

    monkeypatch.setattr(prepare, "images_on_gpu", hold)
    monkeypatch.setattr(gpu_images, "cut", cut)
    return found


def params_of(result):
    return mlflow.get_run(result.run_id).data.params


@pytest.fixture
def interrupted_after(monkeypatch):
    """Interrupt the next training after a step."""

    def install(step):
        train = Trainer.train

        def wrapped(*given):
            for progress in train(*given):
                if progress.step == step:
                    signal.raise_signal(signal.SIGINT)
                yield progress

        monkeypatch.setattr(Trainer, "train", wrapped)
        return lambda: monkeypatch.setattr(Trainer, "train", train)

    return install


def test_a_training_cuts_its_crops_where_its_images_are(held):
    result = hpt_mlflow.pretrain(**TINY)
    params = params_of(result)
    assert params["settings/gpu_images"] == "True"
    assert params["settings/workers"] == "0"
    assert 0 < result.metrics["train/loss"] < 20


def test_who_asks_for_workers_gets_them(held):
    assert params_of(hpt_mlflow.pretrain(**TINY, workers=0))["settings/gpu_images"] == "False"
    assert not held


def test_a_resumed_training_goes_on_as_it_began(held, interrupted_after, monkeypatch, caplog):
    expected = hpt_mlflow.pretrain(**TINY, seed=1, model_name="whole")
    go_on = interrupted_after(2)
    with pytest.raises(KeyboardInterrupt):
        hpt_mlflow.pretrain(**TINY, seed=1)
    go_on()
    got = hpt_mlflow.pretrain(**TINY, seed=1)
    assert len(held) == 3
    assert got.metrics["train/loss"] == expected.metrics["train/loss"]

    go_on = interrupted_after(2)
    with pytest.raises(KeyboardInterrupt):
        hpt_mlflow.pretrain(**TINY, seed=2)
    go_on()
    monkeypatch.setattr(prepare, "images_on_gpu", lambda *_: None)
    hpt_mlflow.pretrain(**TINY, seed=2)
    assert "began with its images on a GPU" in caplog.text


def test_a_training_that_began_without_goes_on_without(held, interrupted_after, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "images_on_gpu", lambda *_: None)
        go_on = interrupted_after(2)
        with pytest.raises(KeyboardInterrupt):
            hpt_mlflow.pretrain(**TINY)
        go_on()
    hpt_mlflow.pretrain(**TINY)
    assert not held
