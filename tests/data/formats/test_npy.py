import io
import os
import pickle
import struct

import numpy as np
import pytest

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats import registry

RNG = np.random.default_rng(0)


def npy(values, **options):
    stream = io.BytesIO()
    np.save(stream, values, **options)
    return stream.getvalue()


def declared(header):
    text = f"{header}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">u2", "i4", "f2", "f4", ">f4", "f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_every_type_stay_as_they_are(dtype, order, tmp_path):
    values = np.asarray(RNG.integers(0, 100, (7, 5, 3)).astype(dtype), order=order)
    for content in (npy(values), npy(values[..., 0])):
        (tmp_path / "a.npy").write_bytes(content)
        wanted = np.load(io.BytesIO(content))
        for file in (content, tmp_path / "a.npy"):
            read = registry.read(file)
            assert read.values.dtype == wanted.dtype.newbyteorder("=")
            np.testing.assert_array_equal(read.values, wanted)
            assert (read.low, read.high, read.nodata) == (None, None, None)


def test_the_shortest_axis_at_an_end_is_the_channels():
    values = RNG.integers(0, 100, (13, 20, 30))
    np.testing.assert_array_equal(registry.read(npy(values)).values, np.moveaxis(values, 0, 2))
    for shape in ((20, 30, 13), (5, 5, 5), (5, 9, 5)):
        values = RNG.integers(0, 100, shape)
        np.testing.assert_array_equal(registry.read(npy(values)).values, values)
    with pytest.raises(UnreadableImageError, match="20x3x30 .* no axis"):
        registry.read(npy(np.zeros((20, 3, 30))))


def test_the_first_of_four_axes_counts_images():
    values = RNG.integers(0, 100, (4, 6, 7, 3))
    assert registry.frames(npy(values)) == 4
    assert registry.frames(npy(values[0])) == 1
    for k in range(4):
        np.testing.assert_array_equal(registry.read(npy(values), k).values, values[k])
    with pytest.raises(UnreadableImageError, match="no image 4, only 4"):
        registry.read(npy(values), 4)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy(np.array([[Bomb()]], object), allow_pickle=True), "pickled objects"),
        (npy(np.zeros((3, 4), "c8")), "complex64 is not a type"),
        (npy(np.zeros((3, 4), "U3")), "not a type"),
        (npy(np.zeros((3, 4), [("a", "u1")])), "not a type"),
        (npy(np.zeros(3)), "1 axes"),
        (npy(np.zeros((1, 1, 2, 2, 2))), "5 axes"),
        (npy(np.zeros((0, 4))), "no pixels"),
        (npy(np.zeros((9, 9)))[:-1], "ends before its 9x9 numbers"),
        (declared({"descr": "<u2", "fortran_order": False, "shape": (10**6, 10**6)}), "too many"),
        (declared({"descr": "<u2", "fortran_order": False, "shape": (-5, 5)}), "no pixels"),
        (
            declared({"descr": "<u2", "fortran_order": False, "shape": (10**9, 5, 5, 3)}),
            "declares 1000000000|ends before",
        ),
        (declared("__import__('os').mkdir('exploded')"), "header"),
        (b"\x93NUMPY\1\0" + struct.pack("<H", 60000) + b"(" * 60000, "header"),
        (b"\x93NUMPY\7\0" + bytes(99), "header"),
    ],
)
def test_what_is_no_image_is_refused_and_nothing_is_run(content, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreadableImageError, match=words) as caught:
        registry.read(content)
    assert str(caught.value).isprintable()
    assert not os.listdir(tmp_path)


def test_pickles_are_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.npy"
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnreadableImageError):
        registry.read(file)
    assert os.listdir(tmp_path) == ["a.npy"]
