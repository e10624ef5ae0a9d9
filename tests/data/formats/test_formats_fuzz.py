"""Damaged files of every format: an image, or one reason why there is none, in bounded time and memory."""

import gzip
import io
import resource
import time
from pathlib import Path

import nibabel
import numpy as np
import pillow_heif
import pytest
import tifffile
from damage import damaged
from dicom_files import dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import deep_png
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, RLELossless

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats import registry

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 4096, (64, 48), dtype=np.uint16)
# Of processor time; the slowest file here takes a hundredth of it.
MOST_SECONDS = 10
# Of all files of a format together, beyond what decoding whole ones takes.
MOST_MEMORY_KIB = 1 << 20
# JPEG-LS, JPEG, JPEG of 12 bits, and deflated.
SAMPLES = ["JPEGLSNearLossless_16.dcm", "SC_rgb_small_odd_jpeg.dcm", "JPGExtended.dcm", "image_dfl.dcm"]


def compressed(syntax):
    made = dcmread(io.BytesIO(dicom(GREY, bits=12)))
    made.compress(syntax, generate_instance_uid=False)
    stream = io.BytesIO()
    made.save_as(stream)
    return stream.getvalue()


def saved(save, *values, **options):
    stream = io.BytesIO()
    save(stream, *values, **options)
    return stream.getvalue()


def tiffs():
    bands = RNG.integers(0, 65536, (16, 12, 5), dtype=np.uint16)
    yield saved(tifffile.imwrite, bands, photometric="minisblack", planarconfig="contig")
    for compression in ("zlib", "lzw", "zstd", "packbits", "lzma", "jpeg2000"):
        yield saved(tifffile.imwrite, bands[..., 0], compression=compression)
    yield saved(tifffile.imwrite, bands[..., 0].astype("f4"), tile=(16, 16), predictor=True, compression="zlib")
    yield saved(tifffile.imwrite, bands, photometric="minisblack", planarconfig="contig", bigtiff=True)


def heif():
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(RNG.integers(0, 256, (16, 12, 3), dtype=np.uint8))).save(stream)
    return stream.getvalue()


volume = nibabel.Nifti1Image(RNG.integers(0, 99, (6, 5, 4)).astype(np.int16), np.eye(4)).to_bytes()
WHOLE = {
    "DICOM": [
        dicom(GREY, bits=12, WindowCenter=40, WindowWidth=400, RescaleSlope=1, RescaleIntercept=-10),
        dicom(np.stack([GREY] * 3)),
        dicom(RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8), "YBR_FULL"),
        compressed(RLELossless),
        compressed(JPEG2000Lossless),
        *(Path(get_testdata_file(name, download=False)).read_bytes() for name in SAMPLES),
    ],
    "TIFF": list(tiffs()),
    "PNG": [deep_png(RNG.integers(0, 65536, (5, 6, 3), dtype=np.uint16)), saved(Image.fromarray(GREY).save, "PNG")],
    "NumPy": [saved(np.save, GREY), saved(np.save, np.stack([GREY] * 3)[..., None].astype("f4"))],
    "NIfTI": [volume, gzip.compress(volume)],
    "HEIF": [heif()],
}

damages = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.floats(0, 1), st.integers(0, 255)),
        # Most of what a header says is near the start of a file.
        st.tuples(st.just("head"), st.floats(0, 1), st.integers(0, 255)),
        st.tuples(st.just("large"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("remove"), st.floats(0, 1), st.integers(1, 64)),
    ),
    min_size=1,
    max_size=4,
)


def assert_an_image_or_a_reason(file):
    started = time.process_time()
    try:
        count = registry.frames(file)
        assert 0 <= count <= 100_000
        if registry.format_of(file) is None:
            return
        read = registry.read(file, max(0, count - 1))
    except UnreadableImageError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert read.values.ndim in (2, 3)
        assert min(read.values.shape) >= 1
        assert read.values.dtype.kind in "biuf"
        assert read.values.dtype.isnative
        assert (read.low is None) == (read.high is None)
    assert time.process_time() - started < MOST_SECONDS


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_images(name, tmp_path):
    assert set(WHOLE) == set(registry.FORMATS)
    file = tmp_path / f"a{registry.FORMATS[name].suffixes.split()[0]}"
    for content in WHOLE[name]:
        file.write_bytes(content)
        assert registry.read(file).values.size


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_are_images_or_reasons(name, tmp_path):
    file = tmp_path / f"a{registry.FORMATS[name].suffixes.split()[0]}"

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.sampled_from(WHOLE[name]), damages, st.booleans())
    def check(content, changes, in_file):
        content = damaged(content, changes)
        if in_file:
            file.write_bytes(content)
        assert_an_image_or_a_reason(file if in_file else content)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY_KIB
