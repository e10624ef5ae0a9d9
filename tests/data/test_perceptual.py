import imagehash
import numpy as np
import pytest
from PIL import Image
from scenes import scene
from scipy.fft import dctn

from hpt_mlflow.data import perceptual
from hpt_mlflow.data.perceptual import MIRROR, SIDE, certain_bits, directions, frequencies, hashes_of, phash, thumbnail


@pytest.fixture(scope="module")
def thumbnails():
    return np.stack([thumbnail(scene(seed)) for seed in range(40)])


@pytest.mark.parametrize("lowest", [8, 16])
def test_frequencies_are_those_of_scipy_for_a_picture_of_their_size(monkeypatch, lowest):
    size = 4 * lowest
    monkeypatch.setattr(perceptual, "SIDE", size)
    perceptual._basis.cache_clear()
    small = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    found = frequencies(small, lowest=lowest).reshape(3, lowest, lowest)
    perceptual._basis.cache_clear()
    grey = small @ np.array([0.299, 0.587, 0.114])
    expected = dctn(grey, axes=(1, 2), type=2)[:, :lowest, :lowest]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1)


@pytest.mark.parametrize("lowest", [8, 16])
def test_hashes_are_those_of_imagehash_but_for_bits_near_the_median(thumbnails, lowest):
    found = frequencies(thumbnails, lowest=lowest)
    ours, certain = phash(found), certain_bits(found, margin=0.05)
    for number, picture in enumerate(thumbnails):
        theirs = np.packbits(imagehash.phash(Image.fromarray(picture), lowest).hash).view(">u8").astype(np.uint64)
        assert np.bitwise_count((ours[number] ^ theirs) & certain[number]).sum() <= lowest // 8 - 1
        assert np.bitwise_count(certain[number]).sum() > 0.6 * lowest**2


def test_the_hashes_of_many_images_are_those_of_each(thumbnails):
    images = [scene(seed) for seed in range(3)]
    assert hashes_of(images).tolist() == phash(frequencies(thumbnails[:3], lowest=16)).tolist()
    assert hashes_of([]).shape == (0, 4)


def test_a_mirrored_picture_has_the_mirrored_frequencies(thumbnails):
    mirrored = frequencies(thumbnails[:, :, ::-1])
    np.testing.assert_allclose(mirrored, frequencies(thumbnails) * MIRROR, atol=1)


def test_the_frequencies_of_a_window_are_those_of_its_crop():
    image = scene(3, 480)
    window = frequencies(thumbnail(image)[None], (0.1, 0.05, 0.9, 0.9))
    crop = frequencies(thumbnail(image[48:480, 24:456])[None])
    assert (directions(window) * directions(crop)).sum() > 0.99
    assert (directions(frequencies(thumbnail(image)[None])) * directions(crop)).sum() < 0.97


def test_uniform_pictures_have_no_direction():
    uniform = np.full((2, SIDE, SIDE, 3), 200, np.uint8)
    assert not directions(frequencies(uniform)).any()
