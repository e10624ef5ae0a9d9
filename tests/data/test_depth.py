import io
import re
import tarfile

import numpy as np
import pytest
from picture_files import deep_png, noise, plain_tiff
from PIL import Image

from hpt_mlflow.data import depth
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.depth import LOOKED_AT, depth_warning
from hpt_mlflow.data.sources import open_dataset

SIZE = (64, 64)


def warning_of(dataset_of, pictures):
    return depth_warning(dataset_of(pictures), np.arange(len(pictures)))


def tiff(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    return file.getvalue()


def with_one(value, values):
    """Some rows are of one number, which means that nothing was measured there."""
    values[:8] = value
    return values


POOR = {
    "12 bits in 16": noise(SIZE, 0, 4095, np.uint16),
    "10 bits in 16": noise(SIZE, 0, 1023, np.uint16),
    "narrow fractions": noise(SIZE, 22, 35, np.float32),
    "no-data value": with_one(-9999, noise(SIZE, 0, 2550, np.float32)),
    "no-data value that leaves a third": with_one(-9999, noise(SIZE, 0, 5000, np.float32)),
    "no-data value above": with_one(1e6, noise(SIZE, 0, 5000, np.float32)),
    "no-data value of 12 bits in 16": with_one(65535, noise(SIZE, 0, 4095, np.uint16)),
}
GOOD = {
    "16 bits": noise(SIZE, 0, 65535, np.uint16),
    "16 bits, overexposed": with_one(65535, noise(SIZE, 0, 30_000, np.uint16)),
    "elevations": noise(SIZE, -400, 5000, np.float32),
    "fractions": noise(SIZE, 0, 1, np.float32),
    "8 bits": noise(SIZE, 0, 255, np.uint8),
    "a mask of 16 bits": (noise(SIZE, 0, 1, np.float32) < 0.5).astype(np.uint16) * 65535,
}


@pytest.mark.parametrize("kind", POOR)
@pytest.mark.parametrize("form", [lambda values: values, tiff, lambda values: Image.open(io.BytesIO(tiff(values)))])
def test_pictures_that_lose_their_grey_levels_are_told(dataset_of, kind, form):
    said = warning_of(dataset_of, [form(POOR[kind])] * 3)
    kept = len(np.unique(decode(form(POOR[kind]))))
    assert said.startswith("3 of the 3 pictures looked at")
    assert f" keep {kept} of 256; convert" in said
    assert "\n" not in said


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("form", [lambda values: values, tiff])
def test_pictures_that_keep_them_are_not(dataset_of, kind, form):
    assert warning_of(dataset_of, [form(GOOD[kind])] * 3) is None


@pytest.mark.parametrize("kind", POOR)
def test_what_is_advised_keeps_the_grey_levels(dataset_of, kind):
    advised = re.search(
        r"numpy.interp\(values, \[(.*), (.*)\], \[0, 255\]\).astype\('uint8'\)$", warning_of(dataset_of, [POOR[kind]])
    )
    low, high = map(float, advised.groups())
    converted = np.interp(POOR[kind], [low, high], [0, 255]).astype("uint8")
    assert len(np.unique(decode(converted))) > 200


@pytest.mark.parametrize("file", [deep_png, lambda values: plain_tiff(values, photometric=2)])
def test_colours_of_sixteen_bits_are_told_where_all_are_dark(dataset_of, file):
    dark, whole = (file(noise((*SIZE, 3), 0, high, np.uint16)) for high in (4095, 65535))
    assert "keep 16 of 256" in warning_of(dataset_of, [dark])
    assert warning_of(dataset_of, [whole]) is None


def test_colours_of_sixteen_bits_may_be_few(dataset_of):
    drawing = np.where(noise((*SIZE, 3), 0, 1, np.float32) < 0.5, 0, 60_000).astype(np.uint16)
    assert warning_of(dataset_of, [deep_png(drawing)]) is None


def test_few_dark_pictures_among_many_are_as_they_should_be(dataset_of):
    assert warning_of(dataset_of, [GOOD["16 bits"]] * 30 + [POOR["10 bits in 16"]]) is None
    assert warning_of(dataset_of, [GOOD["16 bits"]] * 5 + [POOR["10 bits in 16"]]).startswith("1 of the 6 pictures")


def test_large_pictures_are_judged_by_some_of_their_pixels_and_by_their_extremes(dataset_of, monkeypatch):
    monkeypatch.setattr(depth, "PIXELS", 1000)
    values = noise((100, 100), 0, 2550, np.float32)
    values[37, 41] = -9999
    said = warning_of(dataset_of, [values])
    assert "from -9,999 to" in said
    assert warning_of(dataset_of, [noise((100, 100), 0, 65535, np.uint16)]) is None


def test_pictures_in_shards_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(3):
            member, content = tarfile.TarInfo(f"{i}.tif"), tiff(POOR["12 bits in 16"])
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    dataset = open_dataset(f"shards:{tmp_path / 'a.tar'}")
    assert depth_warning(dataset, np.arange(3)).startswith("3 of the 3 pictures looked at")


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
    assert f"the values of b.tif, from {low:,} to {high:,}, keep " in said


def test_broken_pictures_are_left_to_others(dataset_of, tmp_path):
    pictures = [b"no picture", tmp_path / "nowhere.tif", tiff(POOR["10 bits in 16"])[:-100], np.array([[None]])]
    pictures.append(np.full(SIZE, np.nan, np.float32))
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
