from __future__ import annotations

import base64
import io
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from hpt_mlflow import serving
from hpt_mlflow.errors import HptError
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.models.backbone import build_backbone
from hpt_mlflow.models.checkpoint import BackboneCard, save_backbone
from hpt_mlflow.serving import _load_pyfunc


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    backbone, feature_size = build_backbone(Architecture("resnet18", 16, small_stem=True))
    card = BackboneCard(
        Architecture("resnet18", 16, small_stem=True), feature_size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), ("mnist",), 5
    )
    path = tmp_path_factory.mktemp("model")
    save_backbone(path, backbone.state_dict(), card)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return _load_pyfunc(str(folder))


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(model, colours) -> np.ndarray:
    return model.predict(colours)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def test_embeddings_are_the_backbones(model, colours, expected):
    batch = torch.from_numpy(colours[:, :, 2:18]).permute(0, 3, 1, 2) / 255
    batch = (batch - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        by_hand = model.backbone(batch.to(model.device)).cpu().numpy()
    assert expected.shape == (3, 512)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(expected, by_hand, atol=1e-4, rtol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


FORMS = {
    "list of arrays": list,
    "list of encoded files": lambda colours: [png(image) for image in colours],
    "list of base64 text": lambda colours: [base64.b64encode(png(image)).decode() for image in colours],
    "list of Pillow images": lambda colours: [Image.fromarray(image) for image in colours],
    "data frame of encoded files": lambda colours: pd.DataFrame({"image": [png(image) for image in colours]}),
    "data frame of base64 text": lambda colours: pd.DataFrame(
        {"image": [base64.b64encode(png(image)).decode() for image in colours]}
    ),
    "object array of encoded files": lambda colours: np.array([png(image) for image in colours], dtype=object),
    "array of base64 text": lambda colours: np.array([base64.b64encode(png(image)).decode() for image in colours]),
    "dict of one column": lambda colours: {"image": [png(image) for image in colours]},
    "nested lists as JSON has them": lambda colours: colours.tolist(),
    "64-bit whole numbers": lambda colours: colours.astype(np.int64),
    "bytearrays": lambda colours: [bytearray(png(image)) for image in colours],
    "memoryviews": lambda colours: [memoryview(png(image)) for image in colours],
    "data frame of bytearrays as Spark gives": lambda colours: pd.DataFrame(
        {"image": [bytearray(png(image)) for image in colours]}
    ),
    "object array of bytearrays": lambda colours: pd.Series([bytearray(png(image)) for image in colours]).to_numpy(),
    "numpy bytes": lambda colours: [np.bytes_(png(image)) for image in colours],
    "column of an object array": lambda colours: np.array([[png(image)] for image in colours], dtype=object),
    "Arrow column": lambda colours: pa.array([png(image) for image in colours]),
    "Arrow values": lambda colours: list(pa.array([png(image) for image in colours])),
    "Arrow text": lambda colours: list(pa.array([base64.b64encode(png(image)).decode() for image in colours])),
    "data frame of an Arrow type": lambda colours: pd.DataFrame(
        {"image": pd.Series([png(image) for image in colours], dtype=pd.ArrowDtype(pa.binary()))}
    ),
    "data frame of nested lists": lambda colours: pd.DataFrame({"image": [image.tolist() for image in colours]}),
    "tensor": torch.from_numpy,
    "nested lists of each": lambda colours: [image.tolist() for image in colours],
    "shares of white": lambda colours: (colours / 255).astype(np.float32),
}


@pytest.mark.parametrize("form", FORMS)
def test_same_images_give_the_same_embeddings_in_every_form(model, colours, expected, form):
    np.testing.assert_allclose(model.predict(FORMS[form](colours)), expected, atol=1e-5)


def test_forms_may_be_mixed(model, colours, expected):
    mixed = [png(colours[0]), Image.fromarray(colours[1]), colours[2]]
    np.testing.assert_allclose(model.predict(mixed), expected, atol=1e-5)


@pytest.mark.parametrize(
    "single",
    [
        *(lambda image: image, png, lambda image: base64.b64encode(png(image)).decode(), Image.fromarray),
        *(lambda image: bytearray(png(image)), lambda image: memoryview(png(image)), lambda image: image.tolist()),
        *(torch.from_numpy, lambda image: np.array(png(image), dtype=object)),
    ],
)
def test_one_image_gives_one_row(model, colours, expected, single):
    np.testing.assert_allclose(model.predict(single(colours[0])), expected[:1], atol=1e-5)


def test_grey_arrays_are_images_with_equal_channels(model, colours):
    grey = colours[..., 0]
    as_rgb = model.predict(np.repeat(grey[..., None], 3, axis=3))
    np.testing.assert_allclose(model.predict(grey), as_rgb, atol=1e-5)
    np.testing.assert_allclose(model.predict(grey[0]), as_rgb[:1], atol=1e-5)
    np.testing.assert_allclose(model.predict(grey[0].tolist()), as_rgb[:1], atol=1e-5)
    np.testing.assert_allclose(model.predict(list(grey)), as_rgb, atol=1e-5)


@pytest.mark.parametrize("form", [lambda image: image, lambda image: image.tolist(), torch.from_numpy])
def test_one_grey_image_with_its_channel_gives_one_row(model, colours, form):
    grey = colours[0, :, :, :1]
    np.testing.assert_allclose(model.predict(form(grey)), model.predict(grey[None]), atol=1e-5)


@pytest.mark.parametrize("height", [1, 3, 4])
def test_a_low_image_gives_one_row(model, colours, height):
    low = colours[0, :height]
    np.testing.assert_allclose(model.predict(low.tolist()), model.predict([low]), atol=1e-5)
    assert len(model.predict(low)) == 1


def test_images_may_differ_in_size(model, colours, expected):
    other = np.random.default_rng(1).integers(0, 256, (40, 17, 3), dtype=np.uint8)
    rows = model.predict([other, colours[0]])
    np.testing.assert_allclose(rows[1], expected[0], atol=1e-4)
    np.testing.assert_allclose(model.predict([other.tolist(), colours[0].tolist()]), rows, atol=1e-4)


def test_a_mask_is_black_and_white(model):
    mask = np.random.default_rng(0).random((16, 16)) < 0.5
    np.testing.assert_allclose(model.predict(mask), model.predict(mask.astype(np.uint8) * 255), atol=1e-5)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 3, 16, 16), np.uint8), r"shape \(3, 16, 16\) is not an image; .* channels last"),
        (np.zeros((1, 16, 16, 5), np.uint8), r"shape \(16, 16, 5\)"),
        (list(np.zeros((16, 20, 3), np.uint8)), r"shape \(20, 3\) may be one line of a colour image"),
        ([[[0, 0, 0]] * 9, [[0, 0, 0]] * 8], r"shape \(9, 3\) may be one line"),
        ([1, 2, 3], r"an array of shape \(3,\) does not hold images; give \(height, width\)"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), r"shape \(1, 1, 4, 4, 3\) does not hold images"),
        (np.zeros((1, 0, 4, 3), np.uint8), r"shape \(0, 4, 3\) is not an image"),
        (np.zeros((4, 4), complex), "an array of complex128 is not an image"),
        (
            np.linspace(-2, 2, 48).reshape(4, 4, 3),
            "image 0 cannot be read: values from -2 to 2 are not colours; .* 0 to 1",
        ),
        (pd.DataFrame({"pixel": [3, 4]}), "image 0 cannot be read: the number 3 is not an image"),
        (torch.zeros(4, 4, 3, device="meta"), "the images cannot be read: can.t convert meta device"),
        ([torch.zeros(4, 4, 3, device="meta")], "image 0 cannot be read: can.t convert meta device"),
        (None, "NoneType does not hold images; give a list of them"),
        (5, "int does not hold images"),
        ([[[1, 2], [3]], [[4]]], r"image 0 cannot be read: "),
        ([{"a": 1}], "dict is not an image; give the bytes of a file"),
        ([None], "NoneType is not an image"),
    ],
)
def test_what_is_not_an_image_is_told_in_words(model, images, words):
    with pytest.raises(HptError, match=words) as caught:
        model.predict(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("images", [[], {}, pd.DataFrame(), pd.DataFrame({"image": []}), np.zeros((0, 16, 16, 3))])
def test_no_images_give_no_rows(model, images):
    assert model.predict(images).shape == (0, 512)


def test_more_images_than_a_batch(model, colours, expected, monkeypatch):
    monkeypatch.setattr(serving, "BATCH_SIZE", 2)
    np.testing.assert_allclose(model.predict(colours), expected, atol=1e-5)


@pytest.mark.parametrize("broken", [b"no image", "%%%", "bm8gaW1hZ2U=", np.zeros((2, 2, 2, 2)), None])
def test_unreadable_image_is_named_by_its_position(model, colours, broken, monkeypatch):
    monkeypatch.setattr(serving, "BATCH_SIZE", 2)
    with pytest.raises(HptError, match=r"^image 3 cannot be read: ") as caught:
        model.predict([*colours, broken, colours[0]])
    assert "\n" not in str(caught.value)


def test_truncated_file_is_unreadable(model, colours):
    with pytest.raises(HptError, match=r"^image 1 cannot be read: "):
        model.predict([png(colours[0]), png(colours[1])[:-600]])


def test_prediction_changes_nothing(model, colours, expected):
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    model.predict(colours)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())
    np.testing.assert_array_equal(model.predict(colours), expected)


def test_encoded_images_of_another_size_raise_no_warning(model):
    # Otherwise torch warns once in a process, and the test depended on those before it.
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict([png(np.zeros((20, 24, 3), dtype=np.uint8))])
    finally:
        torch.set_warn_always(False)


def test_folder_without_a_backbone_is_refused(tmp_path):
    with pytest.raises(HptError, match="was not made by hpt_mlflow"):
        _load_pyfunc(str(tmp_path))
