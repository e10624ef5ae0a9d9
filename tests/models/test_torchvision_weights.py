import hashlib
import pickle
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from torchvision import models
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.torchvision_weights import read_torchvision_weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Where torch keeps what it has downloaded."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def publish(tmp_path, monkeypatch, hub):
    """Publishes a file, as torchvision would, as the newest weights of ResNet-18; gives its address."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()

    def publish(content, checksum=None):
        name = f"resnet18-{checksum or hashlib.sha256(content).hexdigest()[:8]}.pth"
        (folder / name).write_bytes(content)
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        transforms = partial(ImageClassification, crop_size=96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))

        class ResNet18_Weights(WeightsEnum):  # noqa: N801
            TINY_V1 = Weights(url=url, transforms=transforms, meta={})
            DEFAULT = TINY_V1

        of_torchvision = models.get_model_weights
        monkeypatch.setattr(
            models, "get_model_weights", lambda name: ResNet18_Weights if name == "resnet18" else of_torchvision(name)
        )
        return url

    yield publish
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A state of ResNet-18, and the file that holds it."""
    torch.manual_seed(0)
    network = models.resnet18()
    file = tmp_path_factory.mktemp("state") / "state.pth"
    torch.save(network.state_dict(), file)
    return network.state_dict(), file.read_bytes()


@pytest.mark.parametrize("name", ["resnet18", "ResNet18_Weights.TINY_V1", "resnet18.TINY_V1"])
def test_published_weights_are_read_by_name(publish, state, hub, name):
    url = publish(state[1])
    read = read_torchvision_weights(f"torchvision:{name}")
    assert torch.equal(read.state["layer4.1.conv2.weight"], state[0]["layer4.1.conv2.weight"])
    assert set(read.left_out) == {"fc.weight", "fc.bias"}
    assert (read.architecture.name, read.name, read.chain) == ("resnet18", name, ("imagenet",))
    # What torchvision evaluates them with.
    assert (read.architecture.image_size, read.mean, read.std) == (96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert [file.name for file in hub.iterdir()] == [read.file] == [url.rpartition("/")[2]]


def test_what_was_downloaded_is_not_downloaded_again(publish, state, tmp_path):
    publish(state[1])
    first = read_torchvision_weights("torchvision:resnet18")
    for file in (tmp_path / "published").iterdir():
        file.unlink()
    assert read_torchvision_weights("torchvision:resnet18").sha256 == first.sha256


def test_the_size_of_the_images_can_be_said(publish, state):
    publish(state[1])
    assert read_torchvision_weights("torchvision:resnet18", image_size=32).architecture.image_size == 32


def test_a_file_with_another_checksum_is_refused_and_not_kept(publish, state, hub):
    publish(state[1], checksum="0" * 8)
    with pytest.raises(HptError, match="invalid hash value"):
        read_torchvision_weights("torchvision:resnet18")
    assert list(hub.iterdir()) == []


def test_without_a_connection_it_is_said_where_to_put_the_file(publish, state, hub, tmp_path):
    url = publish(state[1])
    for file in (tmp_path / "published").iterdir():
        file.unlink()
    with pytest.raises(HptError) as caught:
        read_torchvision_weights("torchvision:resnet18")
    assert str(caught.value).startswith(
        f"weights: torchvision:resnet18 cannot be downloaded from {url} (HTTP Error 404"
    )
    assert str(caught.value).endswith(f"put it into {hub}")


class Payload:
    def __init__(self, evidence):
        self.evidence = evidence

    def __reduce__(self):
        return open, (str(self.evidence), "w")


def test_nothing_in_a_published_file_is_executed(publish, tmp_path):
    evidence = tmp_path / "executed"
    publish(pickle.dumps({"state_dict": Payload(evidence)}))
    with pytest.raises(HptError):
        read_torchvision_weights("torchvision:resnet18")
    assert not evidence.exists()


@pytest.mark.parametrize("name", ["", "resnet19", "ResNet50_Weights.NEWEST", "fcn_resnet50", "../resnet18", "a\nb"])
def test_unknown_names_are_refused_in_one_line(name):
    with pytest.raises(
        HptError, match=r"torchvision has no image classification weights .* such as torchvision:resnet50"
    ) as caught:
        read_torchvision_weights(f"torchvision:{name}")
    assert "\n" not in str(caught.value)


def test_another_network_is_refused():
    with pytest.raises(HptError, match="torchvision:resnet50 is a resnet50, not a resnet18; leave arch out"):
        read_torchvision_weights("torchvision:resnet50", arch="resnet18")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet50", "resnet50-11ad3fa6.pth"),
        ("ResNet50_Weights.IMAGENET1K_V1", "resnet50-0676ba61.pth"),
        ("vit_b_16.IMAGENET1K_SWAG_LINEAR_V1", "vit_b_16_lc_swag-4e70ced5.pth"),
    ],
)
def test_names_are_those_of_torchvision(hub, name, file):
    hub.mkdir(parents=True)
    (hub / file).write_text("no weights")
    with pytest.raises(HptError, match=rf"{file} is not the file that torchvision publishes under this name"):
        read_torchvision_weights(f"torchvision:{name}")
