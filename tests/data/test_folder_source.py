import pytest

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.split import NO_LABEL
from hpt_mlflow.errors import HptError


@pytest.fixture
def opened(tmp_path, write_image):
    """Open a folder of images at these paths, each of a colour of its own."""

    def build(*paths):
        for i, path in enumerate(paths):
            write_image(tmp_path / "birds" / path, colour=(i % 256, i // 256, 7))
        return open_dataset(str(tmp_path / "birds"))

    return build


def images(folder, count, start=0):
    return [f"{folder}/{i}.png" for i in range(start, start + count)]


def classes_of(dataset):
    if dataset.labels is None:
        return None
    shown = (*dataset.classes, "none")  # -1 is the last
    return {name: shown[label] for name, label in zip(dataset.names, dataset.labels, strict=True)}


def test_names(dataset):
    return set() if dataset.test is None else {dataset.names[i] for i in dataset.test}


test_names.__test__ = False


def account_of(dataset):
    return {entry.what: (entry.count, entry.why) for entry in dataset.left_out}


PARTS = [f"{part}/{kind}/{i}.png" for part in ("train", "val", "test") for kind in "ab" for i in range(3)]


def test_a_folder_beside_the_parts_is_left_out_and_never_a_class(opened):
    dataset = opened(*PARTS, *images("extra", 2), *images("old/a", 1))
    assert dataset.classes == ("a", "b")
    assert set(dataset.names) == set(PARTS)
    assert test_names(dataset) == {name for name in PARTS if name.startswith("test/")}
    assert account_of(dataset) == {
        "images in folders that are not a part": (3, "extra, old next to the parts"),
    }


@pytest.mark.parametrize("name", ["unlabeled", "unlabelled_images"])
def test_unlabelled_images_beside_the_parts_are_for_training_alone(opened, name):
    dataset = opened(*PARTS, *images(name, 4), *images(f"{name}/more", 2))
    assert dataset.classes == ("a", "b")
    assert sum(kind == "none" for kind in classes_of(dataset).values()) == 6
    split = dataset.split(0)
    unlabelled = [dataset.names[i] for i in split.unlabelled]
    assert sorted(unlabelled) == sorted([*images(name, 4), *images(f"{name}/more", 2)])
    assert set(split.unlabelled) < set(split.seen)
    assert (dataset.labels[split.labelled] != NO_LABEL).all()
    assert account_of(dataset) == {}


def test_images_beside_the_parts_are_left_out(opened):
    dataset = opened(*PARTS, "cover.png")
    assert dataset.classes == ("a", "b")
    assert "cover.png" not in dataset.names
    assert account_of(dataset) == {"images outside the parts": (1, "not in test, train, val")}


def test_a_stray_image_beside_class_folders_is_left_out(opened):
    dataset = opened(*images("a", 10), *images("b", 10), "cover.png")
    assert dataset.classes == ("a", "b")
    assert len(dataset) == 20
    assert account_of(dataset) == {"images outside the class folders": (1, "they have no class")}
    assert dataset.left_out[0].examples == ("cover.png",)


def test_many_images_beside_folders_mean_that_there_are_no_classes(opened):
    dataset = opened(*images("a", 10), *images("b", 10), *images(".", 3))
    assert dataset.labels is None
    assert len(dataset) == 23
    assert dataset.left_out == ()
    assert "3 of 23 images are outside the folders a, b" in dataset.unlabelled_because


def test_one_folder_beside_images_is_no_class(opened):
    dataset = opened(*images("old", 30), "1.png")
    assert dataset.labels is None
    assert len(dataset) == 31


def test_strays_in_the_parts_are_left_out(opened):
    dataset = opened(*images("train/a", 10), *images("train/b", 10), "train/x.png", *images("test/a", 20), "test/y.png")
    assert dataset.classes == ("a", "b")
    assert account_of(dataset)["images outside the class folders"][0] == 2


def test_a_flat_test_part_cannot_be_tested_on_and_is_named(opened):
    dataset = opened(*images("train/a", 5), *images("train/b", 5), *images("test", 4))
    assert dataset.classes == ("a", "b")
    assert dataset.test is None
    assert all(name.startswith("train/") for name in dataset.names)
    assert account_of(dataset) == {
        "images of a part without classes": (4, "nothing can be tested on them"),
    }


def test_validation_is_held_out_where_test_has_no_classes(opened):
    dataset = opened(*[name for name in PARTS if not name.startswith("test")], *images("test", 4))
    assert test_names(dataset) == {name for name in PARTS if name.startswith("val/")}


def test_parts_without_classes_keep_their_test_part(opened):
    dataset = opened(*images("train", 5), *images("test", 2), *images("unlabeled", 3), *images("spare", 1))
    assert dataset.labels is None
    assert len(dataset) == 10
    assert test_names(dataset) == set(images("test", 2))
    assert len(dataset.split(0).seen) == 8


def test_train_alone_is_a_part_and_its_folders_are_classes(opened):
    dataset = opened("train/a/1.png", "train/b/1.png")
    assert dataset.classes == ("a", "b")


def test_train_beside_most_of_the_images_is_a_folder_like_any_other(opened):
    dataset = opened(*images("train", 2), *images(".", 10))
    assert len(dataset) == 12


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("all.csv", "write csv:"),
        ("all.tsv", "write csv:"),
        ("all.txt", "write list:"),
        ("all.tar", "write shards:"),
        ("all.zip", "write zip:"),
        ("all.parquet", "write parquet:"),
        ("all.tgz", "unpack it"),
        ("a.png", "name the folder that it is in"),
    ],
)
def test_a_file_in_the_place_of_a_folder_gives_the_address_to_write(tmp_path, name, advice):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(HptError, match=f"but there is an? (file|archive); {advice}"):
        open_dataset(str(tmp_path / name))


def test_a_folder_of_pictures_that_are_not_read_says_so(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jxl").write_bytes(b"")
    with pytest.raises(HptError, match=r"no images in .*left out: 3 files \.jxl"):
        open_dataset(str(tmp_path))
