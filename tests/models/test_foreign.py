"""Each checkpoint is laid out as the program it is named after writes it, by names of its own."""

import pickle

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard, save_backbone
from hpt_mlflow.models.foreign import IMAGENET_MEAN, read_weights
from hpt_mlflow.models.resnets import RESNETS, recognise_resnet

SIZE = 32


def randomised(network):
    """Statistics and biases as after some training, so that no two tensors are alike."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif tensor.dim() < 2:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return network


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return randomised(torchvision.models.resnet18()).eval()


@pytest.fixture(scope="module")
def features(resnet):
    """What the backbone of `resnet` says of some images, computed layer by layer."""
    body = nn.Sequential(*list(resnet.children())[:-1])
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        return images, body(images).flatten(1)


def check(file, features, **options):
    """Read the file, build the backbone and compare its features."""
    weights = read_weights(file, image_size=SIZE, **options)
    backbone, _ = build_backbone(Architecture(weights.architecture.name, SIZE, weights.architecture.small_stem))
    backbone.load_state_dict(weights.state)
    images, expected = features
    with torch.no_grad():
        assert torch.allclose(backbone.eval()(images).flatten(1), expected, atol=1e-5)
    return weights


def save(content, file, **options):
    torch.save(content, file, **options)
    return file


def moco(network, head):
    """facebookresearch/moco: builder.py in DistributedDataParallel, as main_moco.py saves it."""
    body = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    one = body | {f"fc.{name}": tensor for name, tensor in head.state_dict().items()}
    state = {f"module.encoder_q.{name}": tensor for name, tensor in one.items()}
    state |= {f"module.encoder_k.{name}": torch.zeros_like(tensor) for name, tensor in one.items()}
    state |= {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("version", "head"),
    [("moco-v1", nn.Linear(512, 128)), ("moco-v2", nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128)))],
)
def test_moco(tmp_path, resnet, features, version, head, zipped):
    # The published checkpoints are older than the zip format of torch.save.
    file = save(moco(resnet, head), tmp_path / "moco_200ep.pth.tar", _use_new_zipfile_serialization=zipped)
    weights = check(file, features)
    assert (weights.format, weights.architecture.name, weights.name, weights.chain) == (
        version,
        "resnet18",
        "moco_200ep",
        ("moco_200ep",),
    )
    accounted = len(weights.state) + len(weights.left_out)
    in_file = moco(resnet, head)
    assert accounted == len(in_file["state_dict"]) + len(in_file) - 1
    assert weights.left_out["queue"] == "queue"
    assert weights.left_out["encoder_k.conv1.weight"] == "key encoder"
    assert "fc.weight" in weights.left_out or "fc.2.weight" in weights.left_out
    assert "optimizer" in weights.left_out


def openselfsup(network):
    """OpenSelfSup's MoCo: `backbone` is a second name of `encoder_q[0]`."""
    body = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    state = {"queue": torch.randn(128, 64), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    for encoder in ("encoder_q", "encoder_k"):
        state |= {f"{encoder}.0.{name}": tensor for name, tensor in body.items()}
        state |= {f"{encoder}.1.mlp.0.weight": torch.randn(4, 4)}
    state |= {f"backbone.{name}": tensor for name, tensor in body.items()}
    return {"meta": {"epoch": 3, "time": "Tue"}, "state_dict": state, "optimizer": {"state": {}}}


def test_openselfsup_training(tmp_path, resnet, features):
    weights = check(save(openselfsup(resnet), tmp_path / "latest.pth"), features)
    assert weights.format == "openselfsup"
    assert weights.left_out["encoder_q.1.mlp.0.weight"] == "second name of the backbone"


def test_openselfsup_with_neck_and_head(tmp_path, resnet, features):
    state = {name: t for name, t in openselfsup(resnet)["state_dict"].items() if name.startswith("backbone")}
    state |= {"neck.fc0.weight": torch.zeros(2), "head.fc_cls.weight": torch.zeros(2)}
    weights = check(save({"state_dict": state}, tmp_path / "epoch_1.pth"), features)
    assert weights.format == "openselfsup"
    assert set(weights.left_out) == {"neck.fc0.weight", "head.fc_cls.weight"}


def test_openselfsup_extracted_backbone(tmp_path, resnet, features):
    body = {name: tensor for name, tensor in resnet.state_dict().items() if not name.startswith("fc.")}
    weights = check(save({"state_dict": body, "author": "OpenSelfSup"}, tmp_path / "extracted.pth"), features)
    assert weights.format == "openselfsup"
    assert weights.left_out == {"author": "not a part of the network"}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_torchvision(tmp_path, resnet, features, prefix):
    state = {prefix + name: tensor for name, tensor in resnet.state_dict().items()}
    weights = check(save(state, tmp_path / "resnet18-f37072fd.pth"), features)
    assert (weights.format, weights.mean) == ("torchvision", IMAGENET_MEAN)
    assert set(weights.left_out) == {"fc.weight", "fc.bias"}


def test_torchvision_before_batches_were_counted(tmp_path, resnet, features):
    state = {n: tensor for n, tensor in resnet.state_dict().items() if not n.endswith("num_batches_tracked")}
    check(save(state, tmp_path / "old.pth"), features)


def test_other_networks_of_torchvision_are_named(tmp_path):
    network = torchvision.models.mobilenet_v3_small()
    file = save(network.state_dict(), tmp_path / "mobilenet.pth")
    with pytest.raises(HptError, match=r"does not tell its network .*features\.0\.0\.weight.* with arch") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    weights = read_weights(file, "mobilenet_v3_small", SIZE)
    assert set(weights.left_out) == {"classifier.3.weight", "classifier.3.bias"}
    build_backbone(Architecture("mobilenet_v3_small", SIZE))[0].load_state_dict(weights.state)


def test_timm_resnet_is_recognised(tmp_path, features):
    timm = pytest.importorskip("timm")
    network = randomised(timm.create_model("resnet18", pretrained=False)).eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    images = features[0]
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    weights = check(tmp_path / "model.safetensors", (images, expected))
    assert (weights.format, weights.architecture.name) == ("timm", "resnet18")
    assert (
        check(tmp_path / "model.safetensors", (images, expected), arch="timm:resnet18").architecture.name
        == "timm:resnet18"
    )


def test_timm_network_by_name(tmp_path, features):
    timm = pytest.importorskip("timm")
    network = randomised(timm.create_model("mobilenetv3_small_050", pretrained=False)).eval()
    images = features[0]
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    file = save(network.state_dict(), tmp_path / "small.pth")
    weights = check(file, (images, expected), arch="timm:mobilenetv3_small_050")
    assert set(weights.left_out) == {"classifier.weight", "classifier.bias"}


def lightly(network):
    """Lightly's examples: a LightningModule whose backbone is `nn.Sequential(*list(resnet.children())[:-1])`."""

    class MoCo(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(*list(network.children())[:-1])
            self.projection_head = nn.Sequential(nn.Linear(8, 8))
            self.backbone_momentum = nn.Sequential(nn.Linear(2, 2))
            self.projection_head_momentum = nn.Sequential(nn.Linear(8, 8))
            self.criterion = nn.Module()
            self.criterion.register_buffer("memory_bank", torch.zeros(3))

    return MoCo()


def test_lightly_checkpoint(tmp_path, resnet, features):
    content = {"epoch": 9, "pytorch-lightning_version": "2.1.0", "state_dict": lightly(resnet).state_dict()}
    content |= {"hyper_parameters": {"lr": 0.06}, "optimizer_states": [], "lr_schedulers": []}
    weights = check(save(content, tmp_path / "epoch=9.ckpt"), features)
    assert weights.format == "lightly"
    assert "backbone_momentum.0.weight" in weights.left_out
    assert "criterion.memory_bank" in weights.left_out


def test_lightly_backbone_alone(tmp_path, resnet, features):
    body = lightly(resnet).backbone.state_dict()
    assert check(save({"resnet18_parameters": body}, tmp_path / "a.pth"), features).format == "lightly"
    assert check(save(body, tmp_path / "b.pth"), features).format == "lightly"


def test_our_own_backbone_brings_its_card(tmp_path):
    backbone, size = build_backbone(Architecture("resnet18", 16, small_stem=True))
    card = BackboneCard(
        Architecture("resnet18", 16, small_stem=True), size, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("clipart", "noto"), 5
    )
    save_backbone(tmp_path, backbone.state_dict(), card)
    weights = read_weights(tmp_path / "backbone.safetensors")
    assert (weights.format, weights.architecture.small_stem, weights.architecture.image_size) == (
        "hpt_mlflow",
        True,
        16,
    )
    assert (weights.chain, weights.mean) == (("clipart", "noto"), card.mean)
    with pytest.raises(HptError, match="is a resnet18, not a resnet50"):
        read_weights(tmp_path / "backbone.safetensors", "resnet50")


def test_small_stem_is_recognised(tmp_path):
    network = torchvision.models.resnet18()
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = nn.Sequential(*list(network.eval().children())[:-1])(images).flatten(1)
    weights = check(save(network.state_dict(), tmp_path / "cifar.pth"), (images, expected))
    assert weights.architecture.small_stem


def test_every_resnet_is_told_from_the_others():
    for arch in RESNETS:
        with torch.device("meta"):
            state = torchvision.models.get_model(arch, weights=None).state_dict()
        assert recognise_resnet(state) == arch
    assert recognise_resnet({"layer1.0.conv1.weight": torch.zeros(3)}) is None


def test_checksum_is_of_the_file(tmp_path, resnet):
    import hashlib

    file = save(resnet.state_dict(), tmp_path / "a.pth")
    assert read_weights(file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("layer2.0.conv2.weight"), r"1 missing \(layer2.0.conv2.weight\)"),
        (lambda state: state.update(odd=torch.zeros(1)), r"1 unexpected \(odd\)"),
        (
            lambda state: state.update({"bn1.weight": torch.zeros(3)}),
            r"1 of another shape \(bn1.weight is 3 instead of 64\)",
        ),
        (lambda state: state["bn1.bias"].fill_(float("nan")), r"1 not finite \(bn1.bias\)"),
    ],
)
def test_a_mismatch_is_named_in_one_line(tmp_path, resnet, change, words):
    state = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    change(state)
    with pytest.raises(HptError, match=f"do not fit resnet18: {words}") as caught:
        read_weights(save(state, tmp_path / "bad.pth"))
    assert "\n" not in str(caught.value)


def test_part_of_a_training_that_nobody_knows_is_not_left_out_in_silence(tmp_path, resnet):
    content = openselfsup(resnet)
    content["state_dict"]["mystery.weight"] = torch.zeros(1)
    with pytest.raises(HptError, match=r"1 unexpected \(mystery.weight\)"):
        read_weights(save(content, tmp_path / "a.pth"))


def test_two_tensors_for_one_place_are_not_mixed(tmp_path, resnet):
    content = openselfsup(resnet)["state_dict"]
    content["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(HptError, match=r"1 unexpected \(conv1.weight\)"):
        read_weights(save(content, tmp_path / "a.pth"))
    content = lightly(resnet).state_dict()
    content["backbone.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(HptError, match=r"1 unexpected \(conv1.weight\)"):
        read_weights(save(content, tmp_path / "b.pth"))


def test_weights_of_another_network_than_arch_says(tmp_path, resnet):
    file = save(resnet.state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        HptError, match=r"do not fit resnet34: \d+ missing \(.*, \.\.\.\).*look like a resnet18"
    ) as caught:
        read_weights(file, "resnet34", SIZE)
    assert len(str(caught.value)) < 500


class Malicious:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return open, (str(self.trap), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, resnet, zipped):
    trap = tmp_path / "executed"
    content = {"state_dict": resnet.state_dict(), "hyper_parameters": Malicious(trap)}
    file = save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=zipped)
    assert not trap.exists()
    with pytest.raises(HptError, match=r"holds more than tensors \(.*open.*could run code.*torch\.save") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_a_bare_pickle_is_refused(tmp_path):
    trap = tmp_path / "executed"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Malicious(trap)}))
    with pytest.raises(HptError, match="^weights: "):
        read_weights(tmp_path / "evil.pth")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pth", b"", "not a torch file, or is damaged"),
        ("a.pth", b"no weights at all", "damaged, or not a torch file"),
        ("a.safetensors", b"no weights at all", "not a safetensors file"),
        ("a.pth", None, "cannot be read .No such file"),
        ("a.safetensors", None, "cannot be read .No such file"),
    ],
)
def test_what_is_no_file_of_weights_is_told_so(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(HptError, match=words) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.zeros(3), nn.Linear(2, 2).state_dict()])
def test_files_of_torch_without_a_network_are_told_so(tmp_path, content):
    with pytest.raises(HptError, match=r"^weights: .*(holds|does not tell)"):
        read_weights(save(content, tmp_path / "a.pth"))


def test_a_truncated_file_is_refused(tmp_path, resnet):
    file = save(resnet.state_dict(), tmp_path / "a.pth")
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(HptError, match="damaged"):
        read_weights(file)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(HptError, match="cannot be read"):
        read_weights(tmp_path)
