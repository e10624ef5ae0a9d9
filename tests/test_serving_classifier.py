"""A classifier as it is served: from a folder, and by MLflow from a real registry."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc import scoring_server
from PIL import Image

from hpt_mlflow.augment.crop import smallest_useful_side
from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.images import Images
from hpt_mlflow.data.statistics import ChannelStatistics
from hpt_mlflow.errors import HptError
from hpt_mlflow.evaluation.features import FeatureReader
from hpt_mlflow.evaluation.labelled_views import CROP_SCALE
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard, save_backbone
from hpt_mlflow.models.classifier import HEAD_FILE, ClassifierCard, save_classifier
from hpt_mlflow.serving import ClassifierModel, EmbeddingModel, answers, load_served
from hpt_mlflow.tracking.models.store import find_model, log_classifier
from hpt_mlflow.tracking.runs.stage_run import stage_run
from hpt_mlflow.tracking.tags import CLASSIFIER_NAME

SIZE = 32
BACKBONE_CARD = BackboneCard(
    Architecture("shufflenet_v2_x0_5", SIZE), 1024, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), ("mnist",), 5
)
CLASSES = ClassifierCard(("Katze", "犬", 'a "b", c'), False, "pets", "fast")
LABELS = ClassifierCard(("Edema", "No Finding", "Ödem"), True, "lungs", "paper", 36)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone(Architecture("shufflenet_v2_x0_5", SIZE))[0].eval()


@pytest.fixture(scope="module")
def head(backbone):
    """One that tells noise apart: weights are large, since random features hardly differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        features = backbone(torch.randn(64, 3, SIZE, SIZE, generator=generator))
    std = features.std(0)
    return {
        "mean": features.mean(0),
        "std": std.clamp(min=float(std.max()) / 10),
        "weight": torch.randn(1024, 3, generator=generator) / 10,
        "bias": torch.tensor([0.2, 0.0, -0.2]),
    }


def saved(folder, backbone, head, card):
    save_backbone(folder, backbone.state_dict(), BACKBONE_CARD)
    if card:
        save_classifier(folder, head, card)
    return folder


@pytest.fixture(params=[CLASSES, LABELS], ids=["classes", "labels"])
def card(request):
    return request.param


@pytest.fixture
def model(tmp_path, backbone, head, card):
    return load_served(saved(tmp_path, backbone, head, card), "the model", torch.device("cpu"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, SIZE, 40, 3), dtype=np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def by_hand(backbone, head, card, images):
    """Probabilities float64 (N, 3), step by step."""
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (BACKBONE_CARD.mean, BACKBONE_CARD.std))
    squares = []
    for image in images:
        image = image[:, (40 - SIZE) // 2 : -(40 - SIZE) // 2]
        if card.resize_to:
            image = np.asarray(
                Image.fromarray(image).resize((card.resize_to, card.resize_to), Image.Resampling.BILINEAR)
            )
            margin = (card.resize_to - SIZE) // 2
            image = image[margin:-margin, margin:-margin]
        squares.append((image.transpose(2, 0, 1) / 255 - mean) / std)
    with torch.no_grad():
        features = backbone(torch.from_numpy(np.stack(squares)).float()).numpy()
    logits = (features - head["mean"].numpy()) / head["std"].numpy() @ head["weight"].numpy() + head["bias"].numpy()
    if card.multilabel:
        return 1 / (1 + np.exp(-logits.astype(np.float64)))
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def test_probabilities_are_those_of_backbone_and_head(model, backbone, head, card, images):
    expected = by_hand(backbone, head, card, images)
    np.testing.assert_allclose(model.probabilities(images), expected, atol=0.02)
    assert len({row.argmax() for row in expected}) > 1


def test_every_form_of_images_gets_the_same_answers(model, images):
    expected = model.probabilities(images)
    for form in (
        [png(image) for image in images],
        [base64.b64encode(png(image)).decode() for image in images],
        images.tolist(),
    ):
        np.testing.assert_allclose(model.probabilities(form), expected, atol=1e-4)
    assert len(model.predict(images[0])) == 1


def test_an_image_is_read_as_evaluations_read_it(model, card):
    """Evaluations keep images reduced in memory, for a probe on crops less so."""
    photograph = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(photograph).save(file, format="JPEG")
    dataset = Dataset("x", "x", [file.getvalue()], ["x"], np.zeros(1, np.int64), ("a",))
    side = smallest_useful_side(SIZE, CROP_SCALE) if card.protocol == "paper" else SIZE
    reader = FeatureReader(
        Images(dataset, np.arange(1), side),
        SIZE,
        ChannelStatistics(BACKBONE_CARD.mean, BACKBONE_CARD.std),
        torch.device("cpu"),
        resize_to=card.resize_to,
    )
    expected = reader.features(model.embedding.backbone, np.arange(1))
    np.testing.assert_allclose(model.embedding.predict([file.getvalue()]), expected, rtol=2e-3, atol=1e-10)


def test_an_answer_names_the_best_class_and_the_share_of_all():
    table = answers(np.array([[0.2, 0.7, 0.1], [0.5, 0.1, 0.4]]), CLASSES)
    assert table.columns.tolist() == ["label", "probability", "probabilities"]
    assert table["label"].tolist() == ["犬", "Katze"]
    assert table["probability"].tolist() == [0.7, 0.5]
    assert table["probabilities"].tolist() == [
        {"Katze": 0.2, "犬": 0.7, 'a "b", c': 0.1},
        {"Katze": 0.5, "犬": 0.1, 'a "b", c': 0.4},
    ]


def test_labels_are_named_from_a_half_on():
    table = answers(np.array([[0.5, 0.499999, 0.9], [0.1, 0.2, 0.3]]), LABELS)
    assert table.columns.tolist() == ["labels", "probabilities"]
    assert table["labels"].tolist() == [["Edema", "Ödem"], []]
    assert table["probabilities"][1] == {"Edema": 0.1, "No Finding": 0.2, "Ödem": 0.3}


def test_no_images_give_a_table_without_rows(model, card):
    table = model.predict([])
    assert len(table) == 0
    assert table.columns.tolist()[-1] == "probabilities"
    assert model.probabilities([]).shape == (0, 3)


def test_an_unreadable_image_is_named(model, images):
    with pytest.raises(HptError, match=r"^image 1 cannot be read: "):
        model.predict([images[0], b"no image"])


def test_a_folder_without_a_head_is_a_backbone(tmp_path, backbone, head):
    served = load_served(saved(tmp_path, backbone, head, None), "the model")
    assert isinstance(served, EmbeddingModel)
    assert not isinstance(served, ClassifierModel)


def test_a_damaged_head_is_refused_rather_than_left_out(tmp_path, backbone, head):
    (saved(tmp_path, backbone, head, CLASSES) / HEAD_FILE).write_bytes(b"")
    with pytest.raises(HptError, match=f"^the model: {HEAD_FILE} is missing or damaged"):
        load_served(tmp_path, "the model")


def test_a_head_of_another_backbone_is_refused(tmp_path, backbone, head):
    narrow = head | {name: head[name][:512] for name in ("mean", "std", "weight")}
    saved(tmp_path, backbone, narrow, CLASSES)
    with pytest.raises(HptError, match="does not fit 1024 features"):
        load_served(tmp_path, "the model")


@pytest.fixture
def registered(store, backbone, head, card):
    """The run of a registered classifier."""
    with stage_run("evaluate pets") as run:
        log_classifier(run, backbone, BACKBONE_CARD, head, card, {"hpt.stage": "evaluate"})
        uri = run.register(CLASSIFIER_NAME, "hpt-classifier", {}, "champion", "")
    assert uri == "models:/hpt-classifier/1"
    return run.run_id


def test_mlflow_serves_a_registered_classifier(registered, backbone, head, card, images, tmp_path):
    loaded = mlflow.pyfunc.load_model("models:/hpt-classifier@champion")
    table = loaded.predict(images)
    expected = answers(by_hand(backbone, head, card, images), card)
    for said, known in zip(table["probabilities"], expected["probabilities"], strict=True):
        assert list(said) == list(card.classes)
        np.testing.assert_allclose(list(said.values()), list(known.values()), atol=0.02)
    answer = "labels" if card.multilabel else "label"
    assert table[answer].tolist() == expected[answer].tolist()

    # The signature tells clients what comes back.
    outputs = loaded.metadata.signature.outputs
    assert outputs.input_names() == table.columns.tolist()
    assert str(outputs.inputs[-1].type) == "Map(str -> DataType.double)"

    # As Spark's workers call it, and with one image alone.
    for form in (
        pd.DataFrame({"image": [bytearray(png(image)) for image in images]}),
        [bytearray(png(image)) for image in images],
        [memoryview(png(image)) for image in images],
    ):
        assert loaded.predict(form)[answer].tolist() == table[answer].tolist()
    assert loaded.predict(images[0].tolist())[answer].tolist() == table[answer].tolist()[:1]
    with pytest.raises(HptError, match=r"an array of shape \(3,\) does not hold images"):
        loaded.predict([1, 2, 3])

    # As a client of `mlflow models serve` gets it.
    payload = json.dumps({"inputs": [base64.b64encode(png(image)).decode() for image in images]})
    response = scoring_server.invocations(payload, "application/json", loaded, None)
    assert response.status == 200, response.response
    rows = json.loads(response.response)["predictions"]
    assert [row[answer] for row in rows] == table[answer].tolist()
    assert list(rows[0]["probabilities"]) == list(card.classes)
    assert rows[0]["probabilities"] == pytest.approx(table["probabilities"][0], abs=1e-4)

    response = scoring_server.invocations(json.dumps({"inputs": images[0].tolist()}), "application/json", loaded, None)
    assert [row[answer] for row in json.loads(response.response)["predictions"]] == table[answer].tolist()[:1]

    # Its run has it, too, and it can be trained on as a backbone.
    assert len(mlflow.pyfunc.load_model(f"runs:/{registered}/{CLASSIFIER_NAME}").predict(images[:2])) == 2
    found = find_model("models:/hpt-classifier/1", "model", "hpt")
    assert found.card == BACKBONE_CARD
    assert all(torch.equal(a, b) for a, b in zip(found.backbone.parameters(), backbone.parameters(), strict=True))

    files = {file.name for file in Path(mlflow.artifacts.download_artifacts("models:/hpt-classifier/1")).rglob("*.*")}
    assert {"classifier.json", "classifier.safetensors", "backbone.json", "backbone.safetensors"} <= files
    assert not {Path(name).suffix for name in files} & {".pkl", ".pt", ".pth", ".py", ".bin"}
