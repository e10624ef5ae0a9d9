import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from hpt_mlflow.data.images import Images
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


class Items(Dataset):
    """A map-style dataset of these items."""

    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def tensors(dtype=torch.uint8):
    planes = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    return list(planes if dtype == torch.uint8 else (planes / 255).to(dtype))


def labelled(labels, **attributes):
    return Items(list(zip(PIXELS, labels, strict=True)), **attributes)


@pytest.mark.parametrize(
    "images",
    [
        list(PIXELS),
        list(map(Image.fromarray, PIXELS)),
        tensors(),
        tensors(torch.float32),
        [(image, None) for image in PIXELS],
        [(image,) for image in PIXELS],
    ],
)
def test_images_of_any_kind_are_decoded_as_those_of_files(images):
    dataset = open_dataset(Items(images))
    assert (dataset.labels, dataset.names) == (None, [str(i) for i in range(12)])
    decoded = Images(dataset, np.arange(12), 100)
    for i, pixels in enumerate(PIXELS):
        np.testing.assert_array_equal(decoded[i], pixels)
    assert dataset.digest == open_dataset(Items(list(PIXELS))).digest


def test_grey_images_become_rgb():
    grey = PIXELS[..., 0]
    for images in (list(grey), list(torch.from_numpy(grey)), list(torch.from_numpy(grey)[:, None])):
        decoded = Images(open_dataset(Items(images)), np.arange(12), 100)
        np.testing.assert_array_equal(decoded[3], np.repeat(grey[3][..., None], 3, axis=2))


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor, np.array])
def test_labels_are_whole_numbers(kind):
    dataset = open_dataset(labelled([kind(i % 3 * 2) for i in range(12)]))
    assert dataset.labels.tolist() == [0, 1, 2] * 4
    assert dataset.classes == ("0", "2", "4")
    assert dataset.labels.dtype == np.int64


def test_classes_are_those_of_the_dataset_also_for_a_subset():
    whole = labelled([2, 0] * 6, classes=["ant", "bee", "cat"])
    for data in (whole, Subset(whole, range(4))):
        dataset = open_dataset(data)
        assert (dataset.classes, dataset.labels.tolist()[:4]) == (("ant", "bee", "cat"), [2, 0, 2, 0])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_vectors_are_several_labels(kind):
    dataset = open_dataset(labelled([kind([i % 2, 1]) for i in range(12)], classes=["cat", "dog"]))
    assert dataset.multilabel
    assert dataset.labels.dtype == np.uint8
    assert (dataset.labels.tolist(), dataset.classes) == ([[0, 1], [1, 1]] * 6, ("cat", "dog"))


def test_a_dataset_of_tensors_is_opened():
    dataset = open_dataset(TensorDataset(torch.stack(tensors()), torch.arange(12) % 2))
    assert (dataset.name, dataset.classes) == ("TensorDataset", ("0", "1"))


def test_targets_spare_reading_all_items_unless_the_items_say_otherwise():
    class Counted(Items):
        read = 0

        def __getitem__(self, i):
            self.read += 1
            return PIXELS[i % 12], self.items[i]

    labels = [i % 2 for i in range(200)]
    data = Counted(labels, targets=labels)
    assert open_dataset(data).labels.tolist() == labels
    assert data.read < 100
    data = Counted(labels, targets=[1 - label for label in labels])
    assert open_dataset(data).labels.tolist() == labels


def test_the_digest_changes_with_pixels_labels_and_classes():
    other = PIXELS.copy()
    other[7, 3, 2, 1] ^= 1
    datasets = [
        labelled([0, 1] * 6),
        labelled([0, 1] * 5 + [1, 0]),
        labelled([0, 1] * 6, classes=["a", "b"]),
        Items(list(zip(other, [0, 1] * 6, strict=True))),
        Items(list(PIXELS)),
    ]
    digests = [open_dataset(data).digest for data in datasets]
    assert len(set(digests)) == len(datasets)
    assert digests[0] == open_dataset(labelled([0, 1] * 6)).digest


def test_it_has_no_address():
    dataset = open_dataset(Items(list(PIXELS)))
    with pytest.raises(HptError, match="^data: 'memory:Items' was passed as an object in memory; pass it again"):
        open_dataset(dataset.uri)


def test_a_dataset_of_ours_is_returned_as_it_is():
    dataset = open_dataset(Items(list(PIXELS)))
    assert open_dataset(dataset) is dataset


class Random(Items):
    def __getitem__(self, i):
        return torch.rand(3, 4, 4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Items([]), "Items has no images"),
        (iter([]), "has no length or no items; pass an address or a map-style dataset"),
        (labelled([0, 1, None] * 4), "Items has labels, but not for image 2; give every image a label, or none"),
        (labelled(["cat"] * 12), "the label of image 0 of Items is 'cat'; give every image a whole number"),
        (labelled([0, -1] * 6), "the label of image 1 of Items is -1; give every image a whole number"),
        (labelled([[0, 1], [0, 2]] * 6), "the label of image 1 of Items is [0, 2]"),
        (labelled([[0, 1], [0]] * 6), "the label of image 1 of Items is [0]"),
        (Items([np.zeros((3, 8, 9), np.uint8)] * 3), "image 0 of Items: shape (3, 8, 9) is not that of an image"),
        (
            Items([torch.zeros(2, 8, 9, 3)] * 3),
            "image 0 of Items: shape (2, 8, 9, 3) is not that of an image; return a Pil",
        ),
        (Items([torch.full((3, 4, 4), 1.5)]), "values from 1.5 to 1.5 are not colours"),
        (Items([torch.full((3, 4, 4), torch.nan)]), "values from nan to nan are not colours"),
        (Items([np.zeros((4, 4), np.complex64)]), "complex64 is not a type of image"),
        (Items(["a.png"]), "str is not an image; return a Pillow image"),
        (Items([(PIXELS[0], 1, "more")]), "an item of 3 values is not an image; return (image, label)"),
        (Random([0]), "image 0 of Random differs each time it is read; remove its random transforms"),
    ],
)
def test_what_is_not_a_dataset_of_images_is_refused(data, words):
    with pytest.raises(HptError) as caught:
        open_dataset(data)
    assert str(caught.value).startswith("data: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_image_is_unreadable_and_the_others_are_not():
    images = list(PIXELS) * 20
    images[50] = np.zeros((3, 8, 9), np.uint8)
    decoded = Images(open_dataset(Items(images)), np.arange(240), 100)
    assert list(decoded.unreadable) == [50]
    assert "is not that of an image" in decoded.unreadable[50]


def test_threads_take_turns():
    class Seeking(Items):
        """Fails if two threads read at once, as a file with a position does."""

        reading = 0

        def __getitem__(self, i):
            assert not self.reading
            self.reading = 1
            torch.rand(100_000).sort()
            self.reading = 0
            return self.items[i]

    decoded = Images(open_dataset(Seeking(list(PIXELS))), np.arange(12), 100)
    assert not decoded.unreadable


def test_an_item_is_read_once_for_its_content():
    class Counting(Items):
        reads = 0

        def __getitem__(self, i):
            self.reads += 1
            return self.items[i]

    items = Counting(list(PIXELS))
    dataset = open_dataset(items)
    before = items.reads
    dataset.contents.of(np.arange(len(PIXELS)))
    assert items.reads == before + len(PIXELS)
