import io

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats import registry


def heic(image, **options):
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return stream.getvalue()


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def test_heic_is_rgb(colours, tmp_path):
    content = heic(Image.fromarray(colours))
    (tmp_path / "a.HEIC").write_bytes(content)
    for file in (content, tmp_path / "a.HEIC"):
        assert registry.format_of(file) == "HEIF"
        assert registry.frames(file) == 1
        read = registry.read(file)
        np.testing.assert_allclose(read.values.astype(int), colours, atol=3)
        assert (read.values.dtype, read.low, read.high) == (np.uint8, 0, 255)


def test_transparency_is_white(colours):
    alpha = np.zeros((64, 96, 1), np.uint8)
    read = registry.read(heic(Image.fromarray(np.concatenate([colours, alpha], 2))))
    assert (read.values == 255).all()


def test_photographs_of_telephones_are_upright(colours):
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.register_heif_opener()
    stream = io.BytesIO()
    options = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    Image.fromarray(colours).save(stream, "HEIF", exif=exif.tobytes(), **options)
    read = registry.read(stream.getvalue())
    np.testing.assert_allclose(read.values.astype(int), np.rot90(colours, -1), atol=3)


def test_damaged_files_are_refused(colours):
    content = heic(Image.fromarray(colours))
    for damaged in (content[:60], content[: len(content) // 2], content[:12] + bytes(500)):
        with pytest.raises(UnreadableImageError) as caught:
            registry.read(damaged)
        assert str(caught.value).isprintable()


def test_without_the_plugin_the_command_that_installs_it_is_named(colours, monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    registry.missing.cache_clear()
    try:
        with pytest.raises(UnreadableImageError, match=r'pillow_heif; pip install "hpt_mlflow\[heif\]"'):
            registry.read(heic(Image.fromarray(colours)))
    finally:
        registry.missing.cache_clear()
