"""Damaged pictures of every format: an image, or one reason why there is none."""

import io
import time

import numpy as np
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import bmp, deep_png, encode, plain_tiff, tga
from PIL import Image

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.numbers import read_numbers
from hpt_mlflow.data.pictures import FORMATS, MOST_PIXELS

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
# Of processor time; the slowest picture here takes a hundredth of it.
MOST_SECONDS = 10


WHOLE = [encode(Image.fromarray(PICTURE), kind) for kind in FORMATS]
WHOLE.append(encode(Image.fromarray(PICTURE), "MPO", save_all=True, append_images=[Image.fromarray(PICTURE)]))
WHOLE += [encode(Image.fromarray(PICTURE).convert(mode), kind) for kind, mode in (("PNG", "P"), ("TIFF", "CMYK"))]
WHOLE += [encode(Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257), kind) for kind in ("PNG", "TIFF")]
WHOLE += [plain_tiff(PICTURE[..., 0].astype(dtype)) for dtype in ("i1", "i2", "u4", "f4")]
WHOLE += [plain_tiff(PICTURE[..., 0].astype(dtype), photometric=0) for dtype in ("u2", "f4")]
WHOLE += [plain_tiff(PICTURE.astype("u2"), 2), deep_png(PICTURE.astype("u2"))]
WHOLE += [make([0, 9, 255] * 4, *bits) for make, bits in ((tga, [0]), (tga, [8]), (bmp, []))]

damages = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.floats(0, 1), st.integers(0, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("remove"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("append"), st.just(0.0), st.integers(0, len(WHOLE) - 1)),
    ),
    min_size=1,
    max_size=4,
)
quick = settings(max_examples=400, deadline=None, derandomize=True)


def assert_an_image_or_a_reason(content):
    started = time.process_time()
    try:
        image = decode(content, 32)
    except UnreadableImageError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert min(image.shape[:2]) >= 1
    try:
        assert read_numbers(content).values.size <= MOST_PIXELS * 4
    except UnreadableImageError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert time.process_time() - started < MOST_SECONDS


def test_each_format_is_damaged():
    assert {Image.open(io.BytesIO(content)).format for content in WHOLE} == {*FORMATS, "MPO"}


@quick
@given(st.sampled_from(WHOLE), damages)
def test_a_damaged_picture_is_an_image_or_a_reason(content, changes):
    assert_an_image_or_a_reason(damaged(content, changes, others=WHOLE))


@quick
@given(st.binary(max_size=300), st.sampled_from([b"", *(content[:12] for content in WHOLE)]))
def test_any_bytes_are_an_image_or_a_reason(content, start):
    assert_an_image_or_a_reason(start + content)
