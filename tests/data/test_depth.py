import io

import numpy as np
import pytest
from PIL import Image

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.depth import LOOKED_AT, depth_warning

RNG = np.random.default_rng(0)


def warning_of(dataset_of, pictures):
    return depth_warning(dataset_of(pictures), np.arange(len(pictures)))


def scene(low, high, dtype):
    return (low + RNG.random((64, 64)) * (high - low)).astype(dtype)


def tiff(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


def no_data(values):
    values[:8] = -9999
    return values


POOR = {
    "12 bits in 16": scene(0, 4095, np.uint16),
    "10 bits in 16": scene(0, 1023, np.uint16),
    "narrow fractions": scene(22, 35, np.float32),
    "no-data value": no_data(scene(0, 2550, np.float32)),
}
GOOD = {
    "16 bits": scene(0, 65535, np.uint16),
    "fractions": scene(0, 1, np.float32),
    "8 bits": scene(0, 255, np.uint8),
    "a mask of 16 bits": (RNG.random((64, 64)) < 0.5).astype(np.uint16) * 65535,
}


@pytest.mark.parametrize("kind", POOR)
@pytest.mark.parametrize("form", [lambda values: values, tiff, lambda values: Image.open(io.BytesIO(tiff(values)))])
def test_pictures_that_lose_their_grey_levels_are_told(dataset_of, kind, form):
    said = warning_of(dataset_of, [form(POOR[kind])] * 3)
    kept = len(np.unique(decode(form(POOR[kind]))))
    assert said.startswith("3 of the 3 pictures looked at")
    assert f"{kept} are kept" in said
    assert "convert" in said
    assert "\n" not in said


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("form", [lambda values: values, tiff])
def test_pictures_that_keep_them_are_not(dataset_of, kind, form):
    assert warning_of(dataset_of, [form(GOOD[kind])] * 3) is None


def test_the_worst_is_named_with_its_range(dataset_of, tmp_path):
    for name, values in (
        ("a.tif", POOR["12 bits in 16"]),
        ("b.tif", POOR["10 bits in 16"]),
        ("c.tif", GOOD["16 bits"]),
    ):
        (tmp_path / name).write_bytes(tiff(values))
    said = warning_of(dataset_of, sorted(tmp_path.iterdir()))
    low, high = int(POOR["10 bits in 16"].min()), int(POOR["10 bits in 16"].max())
    assert said.startswith("2 of the 3 pictures")
    assert f"b.tif has values from {low:,} to {high:,}" in said


def test_broken_pictures_are_left_to_others(dataset_of, tmp_path):
    pictures = [b"no picture", tmp_path / "nowhere.tif", tiff(scene(0, 1023, np.uint16))[:-100]]
    assert warning_of(dataset_of, pictures) is None


def test_no_pictures_need_no_warning(dataset_of):
    assert warning_of(dataset_of, []) is None


def test_of_many_pictures_a_sample_is_looked_at(dataset_of):
    asked = []

    class Watched(list):
        def __getitem__(self, i):
            asked.append(i)
            return super().__getitem__(i)

    depth_warning(dataset_of(Watched([tiff(GOOD["8 bits"])] * 1000)), np.arange(1000))
    assert len(set(asked)) <= LOOKED_AT + 1
