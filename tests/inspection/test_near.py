import io

import numpy as np
import pytest
from PIL import Image
from scenes import scene

from hpt_mlflow.data.perceptual import thumbnail
from hpt_mlflow.inspection.near import NearPairs, near_pairs, without_near_copies
from hpt_mlflow.inspection.search import Neighbours

ORIGINALS = 60


def as_jpeg(image):
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=30)
    return np.asarray(Image.open(encoded))


COPIES = {
    "re-encoded": as_jpeg,
    "half the size": lambda image: np.asarray(Image.fromarray(image).resize((48, 48), Image.LANCZOS)),
    "cropped": lambda image: image[7:93, 2:88],
    "mirrored": lambda image: image[:, ::-1],
}


@pytest.fixture(scope="module")
def originals():
    return [scene(seed) for seed in range(ORIGINALS)]


def pairs_with(originals, others):
    return near_pairs(
        np.stack([thumbnail(image) for image in [*originals, *others]]), np.arange(len(originals) + len(others))
    )


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_nothing_else(originals, kind):
    copied = range(0, ORIGINALS, 5)
    found = pairs_with(originals, [COPIES[kind](originals[i]) for i in copied])
    expected = {(i, ORIGINALS + number) for number, i in enumerate(copied)}
    assert {tuple(sorted(pair)) for pair in zip(found.one.tolist(), found.other.tolist(), strict=True)} == expected
    words = {"cropped": "cropped", "mirrored": "mirrored"}.get(kind, "re-encoded or resized")
    assert all(words in found.how(row) for row in range(len(found)))


def test_the_part_that_a_crop_shows_is_found(originals):
    found = pairs_with(originals, [COPIES["cropped"](originals[4])])
    assert (found.one.tolist(), found.other.tolist()) == ([4], [ORIGINALS])
    np.testing.assert_allclose(found.parts[0], np.array([7, 2, 86, 86]) / 96, atol=0.02)


def test_a_picture_that_differs_in_a_detail_is_nearer_to_its_own_copy(originals):
    changed = originals[4].copy()
    changed[30:44, 30:44] = 255 - changed[30:44, 30:44]
    found = pairs_with(originals, [changed, as_jpeg(changed)])
    pairs = set(zip(found.one.tolist(), found.other.tolist(), strict=True)) | set(
        zip(found.other.tolist(), found.one.tolist(), strict=True)
    )
    assert (ORIGINALS, ORIGINALS + 1) in pairs
    assert (4, ORIGINALS + 1) not in pairs


def test_the_same_pixels_are_found_however_many_there_are(originals):
    found = pairs_with(originals, [originals[7]] * 40)
    assert len(found) == 40
    assert set(found.one.tolist()) == {7}
    assert found.how(0) == "the same pixels"


def test_pictures_that_are_not_to_be_compared_are_in_no_pair(originals):
    table = np.stack([thumbnail(image) for image in [*originals, as_jpeg(originals[3])]])
    assert len(near_pairs(table, np.arange(ORIGINALS))) == 0
    assert len(near_pairs(table, np.array([], np.int64))) == 0


def test_of_near_copies_the_preferred_remains_and_nothing_near_to_a_test_image():
    count = 4
    pairs = NearPairs(
        np.array([0, 1, 3]), np.array([1, 2, 5]), np.zeros(3, np.float32), np.zeros((3, count)), np.zeros(3, bool)
    )
    assert without_near_copies(pairs, np.array([2, 1, 0, 3, 4]), np.array([5])).tolist() == [2, 0, 4]


def test_exact_search_finds_what_a_loop_finds():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    one, other, cosine = Neighbours(vectors).within(vectors, 5, 0.8)
    found = dict(zip(zip(one.tolist(), other.tolist(), strict=True), cosine.tolist(), strict=True))
    for i in range(300):
        products = vectors @ vectors[i]
        nearest = [j for j in np.argsort(-products)[:5].tolist() if products[j] >= 0.8]
        assert {j for a, j in found if a == i} == set(nearest)
        assert all(found[i, j] == pytest.approx(products[j], abs=1e-5) for j in nearest)


def test_the_index_finds_nearly_all_that_exact_search_finds():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 32))
    vectors = (centres[rng.integers(0, 50, 4000)] + 0.5 * rng.standard_normal((4000, 32))).astype(np.float16)
    vectors /= np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True).astype(np.float16)
    exact, indexed = (Neighbours(vectors, exact).within(vectors[:200], 10, 0.5) for exact in (True, False))
    wanted, found = (set(zip(one.tolist(), other.tolist(), strict=True)) for one, other, _ in (exact, indexed))
    assert len(wanted & found) > 0.98 * len(wanted)
