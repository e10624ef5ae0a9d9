import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard
from hpt_mlflow.tracking.models.store import check_names, find_model, log_backbone
from hpt_mlflow.tracking.runs.stage_run import stage_run


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return build_backbone(Architecture("shufflenet_v2_x0_5", 32))[0]


def card(step=5):
    return BackboneCard(Architecture("shufflenet_v2_x0_5", 32), 1024, (0.5,) * 3, (0.25,) * 3, ("cats", "dogs"), step)


@pytest.fixture
def registered(store, backbone):
    """A run with milestones at 2 and 5; 5 is version 1 with the alias base."""
    with stage_run("pretrain cats") as run:
        log_backbone(run, backbone, card(2), {})
        log_backbone(run, backbone, card(5), {"hpt.stage": "pretrain"})
        uri = run.register("step-5", "hpt", {"hpt.chain": "cats"}, "base", "")
    assert uri == "models:/hpt/1"
    return run.run_id


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "address",
    ["models:/hpt/1", "models:/hpt/latest", "models:/hpt@base", "hpt@base", "base", "runs:/RUN", "runs:/RUN/step-5"],
)
def test_every_kind_of_address_finds_the_model(registered, backbone, address):
    found = find_model(address.replace("RUN", registered), "parent", "hpt")
    assert equal(found.backbone, backbone)
    assert found.card == card()
    assert "latest" not in found.uri
    assert "@" not in found.uri


def test_a_run_means_its_last_milestone_and_a_name_that_one(registered):
    assert find_model(f"runs:/{registered}", "parent", "hpt").card.step == 5
    assert find_model(f"runs:/{registered}/step-2", "parent", "hpt").card.step == 2


def test_the_version_leads_back_to_its_logged_model(registered):
    found = find_model("models:/hpt/1", "parent", "hpt")
    assert mlflow.get_logged_model(found.model_id).name == "step-5"


def test_versions_carry_their_tags(registered):
    assert MlflowClient().get_model_version("hpt", "1").tags["hpt.chain"] == "cats"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("models:/hpt/7", ("'7'", "it has 1")),
        ("models:/cats/latest", ("'cats'", "pretrain first")),
        ("models:/hpt@champion", ("'champion'",)),
        ("champion", ("'champion'", "'hpt'")),
        ("models:/hpt", ("names no version",)),
        ("runs:/0123456789abcdef0123456789abcdef", ("no run",)),
        ("models:/m-0123456789abcdef0123456789abcdef", ("no model",)),
        ("s3://bucket/model", ("not a model address",)),
        ("", ("",)),
    ],
)
def test_what_is_not_there_is_named_in_one_line(registered, address, words):
    with pytest.raises(HptError) as caught:
        find_model(address, "parent", "hpt")
    assert str(caught.value).startswith("parent: ")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_run_without_a_model_is_named(store):
    with mlflow.start_run() as run:
        pass
    with pytest.raises(HptError, match="has kept no model"):
        find_model(f"runs:/{run.info.run_id}", "parent", "hpt")


def test_a_model_of_another_project_is_refused_and_not_executed(store, tmp_path):
    class Stranger(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[str]) -> list[str]:
            return model_input

        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="m", python_model=Stranger(), registered_model_name="stranger", pip_requirements=[]
        )
    with pytest.raises(HptError, match="was not made by hpt_mlflow"):
        find_model("models:/stranger/1", "parent", "hpt")
    assert not (tmp_path / "executed").exists()


def test_a_registered_backbone_serves_embeddings_of_arrays_and_encoded_files(registered):
    model = mlflow.pyfunc.load_model("models:/hpt@base")
    images = np.random.default_rng(0).integers(0, 255, (3, 40, 30, 3), dtype=np.uint8)
    embeddings = model.predict(images)
    assert embeddings.shape == (3, 1024)
    assert embeddings.dtype == np.float32
    from io import BytesIO

    from PIL import Image

    files = []
    for image in images:
        Image.fromarray(image).save(buffer := BytesIO(), "PNG")
        files.append(buffer.getvalue())
    np.testing.assert_array_equal(model.predict(files), embeddings)


def test_nothing_in_a_registered_backbone_is_pickled_or_code(registered):
    folder = Path(mlflow.artifacts.download_artifacts("models:/hpt/1"))
    files = {file.name for file in folder.rglob("*") if file.is_file()}
    assert {"backbone.json", "backbone.safetensors", "MLmodel"} <= files
    assert not {Path(name).suffix for name in files} & {".pkl", ".pt", ".pth", ".py", ".bin"}
    assert json.loads(next(folder.rglob("backbone.json")).read_text())["chain"] == ["cats", "dogs"]


@pytest.mark.parametrize(
    ("model_name", "alias"),
    [("a/b", None), ("", None), ("a:b", None), ("cat's", None), ("hpt", "latest"), ("hpt", "v1")],
)
def test_names_that_mlflow_refuses_are_refused_before(model_name, alias):
    with pytest.raises(HptError):
        check_names(model_name, alias)


def test_usual_names_pass():
    check_names("hpt-x.rays_2", "champion-2_b")
