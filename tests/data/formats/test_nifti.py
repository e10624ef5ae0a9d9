import gzip
import io
import struct

import nibabel
import numpy as np
import pytest

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats import registry

RNG = np.random.default_rng(0)


def nifti(values, kind=nibabel.Nifti1Image, **fields):
    made = kind(values, np.eye(4))
    slope = fields.pop("slope", ())
    for name, value in fields.items():
        made.header[name] = value
    content = made.to_bytes()
    # nibabel sets the scaling itself when it writes.
    return content[:112] + struct.pack("<ff", *slope) + content[120:] if slope else content


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "f4", "f8"])
def test_slices_lie_along_the_last_axis(kind, dtype, tmp_path):
    values = RNG.integers(0, 200, (7, 5, 4)).astype(dtype)
    content = nifti(values, kind)
    files = {"a.nii": content, "a.nii.gz": gzip.compress(content)}
    for name, packed in files.items():
        (tmp_path / name).write_bytes(packed)
        assert registry.frames(tmp_path / name) == 4
        for k in range(4):
            read = registry.read(tmp_path / name, k)
            np.testing.assert_array_equal(read.values, values[:, :, k].T)
            assert (read.low, read.high) == (None, None)
    np.testing.assert_array_equal(registry.read(content, 2).values, values[:, :, 2].T)
    with pytest.raises(UnreadableImageError, match="no image 4, only 4"):
        registry.read(content, 4)


def test_several_volumes_follow_one_another():
    values = RNG.integers(0, 200, (7, 5, 4, 3)).astype(np.int16)
    assert registry.frames(nifti(values)) == 12
    np.testing.assert_array_equal(registry.read(nifti(values), 9).values, values[:, :, 1, 2].T)
    assert registry.frames(nifti(values[:, :, 0, 0])) == 1


def test_scaling_and_range_of_the_header_are_kept():
    stored = RNG.integers(0, 200, (7, 5, 4)).astype(np.int16)
    content = nifti(stored, slope=(2, -1000), cal_min=-500, cal_max=300)
    read = registry.read(content, 1)
    np.testing.assert_array_equal(read.values, nibabel.Nifti1Image.from_bytes(content).get_fdata()[:, :, 1].T)
    assert read.values.dtype == np.int16
    assert (read.low, read.high) == (-500, 300)
    content = nifti(stored, slope=(0.25, 0))
    read = registry.read(content, 1)
    np.testing.assert_array_equal(read.values, nibabel.Nifti1Image.from_bytes(content).get_fdata()[:, :, 1].T)
    assert read.values.dtype == np.float32


def test_colours_are_rgb():
    colours = RNG.integers(0, 256, (7, 5, 4, 3)).astype(np.uint8)
    packed = np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    np.testing.assert_array_equal(registry.read(nifti(packed), 3).values, colours[:, :, 3].swapaxes(0, 1))


def refused(content, words):
    with pytest.raises(UnreadableImageError, match=words) as caught:
        registry.read(content)
    assert str(caught.value).isprintable()


def test_what_is_not_a_whole_volume_is_refused():
    content = nifti(np.zeros((7, 5, 4), np.int16))
    refused(content[:400], "ends before its numbers")
    for at, value, words in (
        (42, b"\x60\x75\x60\x75\x60\x75", "declares|too many"),
        (42, b"\xff\xff", "shape"),
        (108, b"\x00\x00\x80\x7f", "start at byte inf"),
        (70, b"\x20\x00", "complex|not a type"),
        (344, b"ni1\0", "another file"),
    ):
        refused(content[:at] + value + content[at + len(value) :], words)
    refused(nifti(np.zeros((7, 5, 4), np.complex64)), "not a type")


def test_a_gzipped_volume_is_inflated_no_further_than_its_slice(tmp_path):
    content = nifti(np.zeros((7, 5, 4), np.int16))
    file = tmp_path / "a.nii.gz"
    with gzip.open(file, "wb", 1) as packed:
        packed.write(content)
        for _ in range(20):
            packed.write(bytes(1 << 20))
    assert registry.read(file, 3).values.shape == (5, 7)
    assert io.BytesIO(content).read(4) == (348).to_bytes(4, "little")
