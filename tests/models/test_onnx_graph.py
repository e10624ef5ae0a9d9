import numpy as np
import pytest
import torch

from hpt_mlflow.augment.crop import centre_crop
from hpt_mlflow.data.decode import LONGEST_STRIP, decode
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.head import LinearHead
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.models.classifier import ClassifierCard
from hpt_mlflow.models.onnx_graph import Geometry, Head, served_graph
from hpt_mlflow.pixels import PixelFormat
from hpt_mlflow.serving import ClassifierModel, EmbeddingModel

runtime = pytest.importorskip("onnxruntime")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.21, 0.22)


def session(graph):
    return runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def noise(height, width, images=1):
    return np.random.default_rng(height * width).integers(0, 256, (images, height, width, 3), dtype=np.uint8)


class Pixels(torch.nn.Module):
    """A network whose features are its input."""

    def forward(self, images):
        return images.flatten(1)


@pytest.fixture(scope="module", params=[(16, 16, 16), (16, 42, 20)], ids=["plain", "resized twice"])
def squares(request):
    """A session whose embedding is the normalised pixels, and what makes them of an image here."""
    size, side, shorter = request.param
    card = BackboneCard(Architecture("resnet18", size), 3 * size**2, MEAN, STD, ("dogs",))
    graph = session(served_graph(Pixels(), card, Geometry(side, shorter, LONGEST_STRIP)))

    def expected(image):
        pixels = torch.from_numpy(centre_crop(decode(image, side), size, shorter).copy()).permute(2, 0, 1).float() / 255
        return ((pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).flatten().numpy()

    return graph, expected


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (16, 16),
        (3, 5),
        (1, 1),
        (16, 17),
        (100, 130),
        (130, 100),
        (333, 20),
        (20, 333),
        (1500, 3),
        (3, 1500),
        (500, 375),
    ],
)
def test_pixels_are_those_of_the_package_to_the_last_step(squares, height, width):
    graph, expected = squares
    images = noise(height, width, images=2)
    (found,) = graph.run(None, {"images": images})
    # A step is 1 / 255 / 0.22 = 0.018.
    np.testing.assert_allclose(found, [expected(image) for image in images], atol=1e-5)


def small(channels=3):
    """A network that is written in a tenth of the time of a ResNet; 8 features."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(channels, 8, 5, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


@pytest.fixture(scope="module")
def backbone():
    return small(), BackboneCard(Architecture("resnet18", 32, small_stem=True), 8, MEAN, STD, ("dogs",))


# Of a ResNet, by tests/stages/test_standalone.py.
def test_embeddings_are_those_of_the_package_for_any_number_of_images(backbone):
    network, card = backbone
    graph = session(served_graph(network, card, Geometry(32, 32, LONGEST_STRIP)))
    ours = EmbeddingModel(network, card)
    for images in (noise(40, 50), noise(33, 32, images=5)):
        (found,) = graph.run(None, {"images": images})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, ours.predict(images), atol=1e-4)


@pytest.mark.parametrize(
    ("pixels", "bands"),
    [
        (PixelFormat(low=(0.0,) * 3, high=(4095.0,) * 3), 1),
        (PixelFormat(low=(100.0,) * 3, high=(3000.0,) * 3), 3),
        (PixelFormat(bands=(4, 2, 1, 5), low=(0.0, 10.0, 20.0, 0.0), high=(4095.0, 1000.0, 3000.0, 1.0)), 5),
        (PixelFormat(bands=(1, 2, 3, 4)), 4),
    ],
)
def test_deep_images_and_bands_give_what_they_give_in_the_package(pixels, bands):
    architecture = Architecture("resnet18", 32, small_stem=True, channels=pixels.channels)
    network = small(pixels.channels)
    card = BackboneCard(architecture, 8, (0.5,) * pixels.channels, (0.2,) * pixels.channels, (), 0, pixels)
    graph = session(served_graph(network, card, Geometry(40, 36, LONGEST_STRIP)))
    ours = EmbeddingModel(network, card, resize_to=36)
    ours.smallest_side = 40
    rng = np.random.default_rng(0)
    for height, width in ((32, 32), (90, 50), (20, 300)):
        most = 256 if pixels.dtype == np.uint8 else 4096
        images = rng.integers(0, most, (3, height, width, bands)).astype(np.float32)
        if pixels.dtype == np.uint8:
            images = images.astype(np.uint8)
        else:
            images[0, 0, 0], images[0, 0, 1] = np.nan, np.inf
        (found,) = graph.run(None, {"images": images})
        np.testing.assert_allclose(found, ours.predict(images), atol=1e-3)


@pytest.mark.parametrize("multilabel", [False, True])
def test_classifiers_answer_as_in_the_package(backbone, multilabel):
    network, card = backbone
    names = ("a cat", "d\u00f6g", "\u72d0")
    torch.manual_seed(0)
    tensors = {
        "mean": torch.rand(card.feature_size),
        "std": 1 + torch.rand(card.feature_size),
        "weight": torch.randn(card.feature_size, 3),
        "bias": torch.randn(3),
    }
    classifier = ClassifierModel(
        EmbeddingModel(network, card, resize_to=36),
        LinearHead(**tensors, multilabel=multilabel),
        ClassifierCard(names, multilabel, "dogs", "finetune", 36),
    )
    geometry = Geometry(classifier.embedding.smallest_side, 36, LONGEST_STRIP)
    graph = session(served_graph(network, card, geometry, Head(tensors, names, multilabel)))
    images = noise(160, 190, images=4)
    outputs = [output.name for output in graph.get_outputs()]
    found = dict(zip(outputs, graph.run(None, {"images": images}), strict=True))
    expected = classifier.probabilities(images)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    if multilabel:
        assert outputs == ["probabilities"]
    else:
        assert list(found["label"]) == [names[i] for i in expected.argmax(axis=1)]
        np.testing.assert_array_equal(found["probability"], found["probabilities"].max(axis=1))


def test_the_backbone_stays_as_it_was(backbone):
    network, card = backbone
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    served_graph(network, card, Geometry(32, 32, LONGEST_STRIP))
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_what_onnx_does_not_know_is_named():
    class Unknown(torch.nn.Module):
        def forward(self, images):
            return torch.linalg.eigvals(images.mean(dim=1)[:, :2, :2]).real

    card = BackboneCard(Architecture("resnet18", 8), 2, MEAN, STD, ())
    with pytest.raises(HptError, match=r"resnet18 cannot be written as ONNX .*linalg_eig"):
        served_graph(Unknown(), card, Geometry(8, 8, LONGEST_STRIP))
