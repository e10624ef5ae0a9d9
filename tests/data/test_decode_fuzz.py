"""Damaged pictures of every format: an image, or one reason why there is none."""

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpt_mlflow.data.decode import UnreadableImageError, decode, deep_values

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
KINDS = "PNG JPEG BMP GIF TIFF WEBP PCX PPM TGA JPEG2000 DIB".split()


def encoded(kind, image):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


WHOLE = [encoded(kind, Image.fromarray(PICTURE)) for kind in KINDS]
WHOLE += [encoded(kind, Image.fromarray(PICTURE).convert(mode)) for kind, mode in (("PNG", "P"), ("TIFF", "CMYK"))]
WHOLE += [encoded(kind, Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)) for kind in ("PNG", "TIFF")]

damages = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.floats(0, 1), st.integers(0, 255)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("remove"), st.floats(0, 1), st.integers(1, 64)),
    ),
    min_size=1,
    max_size=4,
)
quick = settings(max_examples=400, deadline=None, derandomize=True)


def damaged(content, changes):
    content = bytearray(content)
    for kind, place, number in changes:
        at = int(place * (len(content) - 1)) if content else 0
        if kind == "set" and content:
            content[at] = number
        elif kind == "cut":
            del content[at:]
        elif kind == "repeat":
            content[at:at] = content[at : at + number]
        elif kind == "remove":
            del content[at : at + number]
    return bytes(content)


def assert_an_image_or_a_reason(content):
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
        values = deep_values(content)
    except UnreadableImageError:
        return
    assert values is None or isinstance(values, np.ndarray)


@quick
@given(st.sampled_from(WHOLE), damages)
def test_a_damaged_picture_is_an_image_or_a_reason(content, changes):
    assert_an_image_or_a_reason(damaged(content, changes))


@quick
@given(st.binary(max_size=300), st.sampled_from([b"", *(content[:12] for content in WHOLE)]))
def test_any_bytes_are_an_image_or_a_reason(content, start):
    assert_an_image_or_a_reason(start + content)
