"""Images of more than 8 bits or three channels, from their files to what is served."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from colours import TINY
from PIL import Image

import hpt_mlflow
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import prepare
from hpt_mlflow.pixels import PixelFormat

COMMON = {"device": "cpu", "workers": 0, "precision": "float32"}


class Bands(torch.utils.data.Dataset):
    """Images of some bands in 12 bits; of each class, another band is bright."""

    def __init__(self, bands, count=60, size=24):
        rng = np.random.default_rng(0)
        self.targets = [i % 3 for i in range(count)]
        self.images = rng.integers(0, 3000, (count, size, size, bands)).astype(np.uint16)
        for image, label in zip(self.images, self.targets, strict=True):
            image[:, :, label % bands] += 1095

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.images[i], self.targets[i]


@pytest.fixture
def radiographs(tmp_path):
    """Grey images in 12 of 16 bits, of two classes."""
    rng = np.random.default_rng(0)
    for i in range(60):
        values = rng.integers(0, 2048 + 2048 * (i % 2), (24, 24)).astype(np.uint16)
        file = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    return tmp_path / "images"


def features_of(model, images):
    """What the backbone of a model gives for raw numbers that are scaled by hand."""
    loaded = hpt_mlflow.load_model(model)
    card = loaded.card
    low, high = np.array(card.pixels.low), np.array(card.pixels.high)
    wide = images if images[0].ndim == 3 else [np.repeat(image[:, :, None], 3, axis=2) for image in images]
    shares = [np.clip((image - low) / (high - low), 0, 1) for image in wide]
    batch = torch.from_numpy(np.stack(shares)).permute(0, 3, 1, 2).float()
    size = card.architecture.image_size
    assert batch.shape[-1] == size
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (card.mean, card.std))
    with torch.inference_mode():
        return loaded.backbone((batch - mean) / std).flatten(1).numpy(), card


@pytest.mark.slow
@pytest.mark.parametrize("bands", [4, 13])
def test_bands_go_through_the_chain_to_a_served_model(store, bands):
    dataset = Bands(bands)
    short = {"steps": 2, "milestones": "100%", "model_name": "bands"}
    base = hpt_mlflow.pretrain(data=dataset, **TINY | short | {"image_size": 24})
    short |= {"batch_size": 8, "on_no_gain": "register"}
    target = hpt_mlflow.adapt(data=dataset, parent=base.model_uri, **short, **COMMON)
    served = mlflow.pyfunc.load_model(target.model_uri)
    images = dataset.images[:5]
    expected, card = features_of(target.model_uri, images)
    assert card.architecture.channels == bands
    assert card.pixels == PixelFormat(tuple(range(1, bands + 1)), (0.0,) * bands, (4095.0,) * bands)
    np.testing.assert_allclose(served.predict(images), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(served.predict(images[0]), expected[:1], rtol=1e-3, atol=1e-4)
    result = hpt_mlflow.evaluate(data=dataset, model=target.model_uri, classifier_name="bands-classifier", **COMMON)
    classifier = mlflow.pyfunc.load_model(result.classifier_uri)
    assert list(classifier.predict(images).columns) == ["label", "probability", "probabilities"]


def test_a_radiograph_keeps_its_levels_from_the_file_to_the_served_model(radiographs, store, tmp_path):
    settings = TINY | {"image_size": 24, "milestones": "100%"}
    result = hpt_mlflow.pretrain(data=str(radiographs), steps=2, **settings)
    files = sorted(radiographs.rglob("*.png"))[:4]
    images = [np.asarray(Image.open(file)) for file in files]
    expected, card = features_of(result.model_uri, images)
    assert card.pixels == PixelFormat(low=(0.0,) * 3, high=(4095.0,) * 3)
    served = mlflow.pyfunc.load_model(result.model_uri)
    np.testing.assert_allclose(served.predict([file.read_bytes() for file in files]), expected, rtol=1e-3, atol=1e-4)
    # Also as arrays and as lists of whole numbers, of which none says how many bits it has.
    np.testing.assert_allclose(served.predict(np.stack(images)), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(served.predict([image.tolist() for image in images]), expected, rtol=1e-3, atol=1e-4)
    transform = hpt_mlflow.load_model(result.model_uri).transform
    by_hand = prepare([decode(images[0], pixels=card.pixels)], 24, ChannelStatistics(card.mean, card.std))[0]
    torch.testing.assert_close(transform(images[0]), by_hand)

    evaluated = hpt_mlflow.evaluate(data=str(radiographs), model=result.model_uri, untrained=False, **COMMON)
    assert hpt_mlflow.predict(evaluated.classifier_uri, str(radiographs), tmp_path / "out.csv", "cpu") == (60, 0)
    embedded = hpt_mlflow.embed(
        data=str(radiographs), model=result.model_uri, to=str(tmp_path / "t.parquet"), device="cpu"
    )
    assert embedded.metrics["embed/unreadable"] == 0


def test_a_model_of_colours_is_widened_and_one_of_bands_is_not(store, past):
    adapted = hpt_mlflow.adapt(
        data=Bands(4), parent="models:/hpt/latest", steps=1, batch_size=8, on_no_gain="register", **COMMON
    )
    assert hpt_mlflow.load_model(adapted.model_uri).card.architecture.channels == 4
    with pytest.raises(HptError, match="have 5 channels, and the model takes 4"):
        hpt_mlflow.evaluate(data=Bands(5), model=adapted.model_uri, **COMMON)
    with pytest.raises(HptError, match="takes images of 4 channels, and these have 5"):
        hpt_mlflow.adapt(data=Bands(5), parent=adapted.model_uri, steps=1, batch_size=8, **COMMON)
    with pytest.raises(HptError, match="have 4 channels, and the model takes 3"):
        hpt_mlflow.evaluate(data=Bands(4), model="models:/hpt/1", **COMMON)


def test_an_imported_backbone_of_bands_stays_what_it_was(store, tmp_path):
    trained = hpt_mlflow.pretrain(data=Bands(4), steps=1, **TINY | {"image_size": 24})
    folder = Path(mlflow.artifacts.download_artifacts(trained.model_uri, dst_path=str(tmp_path)))
    (weights,) = folder.rglob("backbone.safetensors")
    imported = hpt_mlflow.import_weights(str(weights), "again")
    first, again = (hpt_mlflow.load_model(uri) for uri in (trained.model_uri, imported.model_uri))
    assert again.card.architecture.channels == 4
    assert again.card.pixels == first.card.pixels
    images = Bands(4).images[:3]
    served = [mlflow.pyfunc.load_model(uri).predict(images) for uri in (trained.model_uri, imported.model_uri)]
    np.testing.assert_array_equal(*served)
