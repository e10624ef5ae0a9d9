import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpt_mlflow.data.dataset import Dataset, content_digest
from hpt_mlflow.data.file_rows import Files
from hpt_mlflow.data.names import Names
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.split import NO_LABEL


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(b"content")
    return paths


def digest_of(files, names=None, labels=None, classes=(), **more):
    labels = None if labels is None else np.array(labels)
    return Dataset("some", "test:some", files, names or [file.name for file in files], labels, classes, **more).digest


def test_a_digest_is_sixteen_hexadecimal_digits(files):
    for digest in (digest_of(files), content_digest(np.arange(3))):
        assert re.fullmatch("[0-9a-f]{16}", digest)


def test_the_same_files_have_the_same_digest(files):
    assert digest_of(files, labels=[0, 1]) == digest_of(files, labels=[0, 1])


def test_names_contents_labels_classes_parts_and_groups_change_the_digest(files):
    digests = [digest_of(files), digest_of(files, ["a", "c"]), digest_of(files[:1])]
    digests += [digest_of(files, labels=labels) for labels in ([0, 1], [0, 0], [[0, 1], [0, 0]])]
    digests += [digest_of(files, labels=[0, 1], classes=classes) for classes in (("a", "b"), ("a", "c"))]
    digests += [digest_of(files, test=np.array([1])), digest_of(files, groups=np.array([1, 1]))]
    files[1].write_bytes(b"contenT")
    digests.append(digest_of(files))
    files[1].unlink()
    digests.append(digest_of(files))
    assert len(set(digests)) == len(digests)


def test_a_name_that_is_no_utf_8_has_a_digest(files):
    assert digest_of(files, ["caf\udce9", "b"]) != digest_of(files, ["cafe", "b"])


@pytest.fixture
def many_files(tmp_path, monkeypatch):
    monkeypatch.setattr("hpt_mlflow.data.dataset.MOST", 100)
    monkeypatch.setattr("hpt_mlflow.data.dataset.SAMPLED", 51)
    for i in range(101):
        (tmp_path / f"{i}.png").write_bytes(b"content")
    return tmp_path


def digest_of_many(folder, names=None, labels=None):
    files = Files(folder, Names.of(f"{i}.png" for i in range(101)))
    return digest_of(files, names or [f"{i}.png" for i in range(101)], labels)


def test_of_many_files_names_and_labels_count_in_full_and_contents_of_a_sample(many_files):
    names = [f"{i}.png" for i in range(101)]
    known = digest_of_many(many_files)
    assert digest_of_many(many_files) == known
    others = [digest_of_many(many_files, [*names[:50], "other", *names[51:]])]
    others.append(digest_of_many(many_files, ["0.pn", "g1.png", *names[2:]]))
    labels = np.zeros(101, np.int64)
    others.append(digest_of_many(many_files, labels=labels))
    labels[77] = 1
    others.append(digest_of_many(many_files, labels=labels))
    (many_files / "1.png").write_bytes(b"of no sample")
    assert digest_of_many(many_files) == known
    (many_files / "2.png").write_bytes(b"sampled")
    others.append(digest_of_many(many_files))
    (many_files / "2.png").unlink()
    others.append(digest_of_many(many_files))
    assert len({known, *others}) == 7


def test_of_many_files_only_the_sample_is_looked_at(many_files, monkeypatch):
    asked = set()
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.add(Path(path).name) or stat(path, **more))
    digest_of_many(many_files)
    assert {name for name in asked if name.endswith(".png")} == {f"{i}.png" for i in range(0, 101, 2)}


def test_values_shapes_and_types_change_the_digest_of_content():
    arrays = [np.zeros(4, np.uint8), np.ones(4, np.uint8), np.zeros((2, 2), np.uint8), np.zeros(4, np.int8)]
    assert len({content_digest(array) for array in arrays}) == len(arrays)
    assert content_digest(arrays[0], arrays[1]) != content_digest(arrays[1], arrays[0])


def test_the_digest_of_content_does_not_depend_on_the_layout_in_memory():
    array = np.arange(12).reshape(3, 4)
    assert content_digest(array) == content_digest(np.asfortranarray(array)) == content_digest(array.copy()[:, :])


def test_a_folder_that_was_moved_keeps_its_digest(tmp_path, write_image):
    for name in ("one", "two"):
        write_image(tmp_path / name / "cat" / "1.png")
        write_image(tmp_path / name / "dog" / "1.png")
    one, two = open_dataset(str(tmp_path / "one")), open_dataset(str(tmp_path / "two"))
    assert one.digest == two.digest
    write_image(tmp_path / "two" / "dog" / "2.png")
    assert open_dataset(str(tmp_path / "two")).digest != one.digest


def test_other_pictures_of_the_same_names_and_sizes_have_another_digest(tmp_path):
    # Uncompressed pictures with a margin are alike in size, in their first and in their last bytes.
    digests = set()
    for seed in (0, 1):
        pixels = np.full((128, 128, 3), 255, np.uint8)
        pixels[32:96, 32:96] = np.random.default_rng(seed).integers(0, 256, (64, 64, 3))
        (tmp_path / str(seed)).mkdir()
        Image.fromarray(pixels).save(tmp_path / str(seed) / "1.bmp")
        digests.add(open_dataset(str(tmp_path / str(seed))).digest)
    assert len(digests) == 2


def contents_of(*numbers):
    return [bytes([number]) for number in numbers]


def parts_of(split):
    return [part.tolist() for part in (split.train, split.validation, split.test, split.unlabelled)]


def part_by_image(split, count):
    """0 for train, 1 for validation, 2 for test, 3 for unlabelled, None for none."""
    parts = parts_of(split)
    return [next((k for k, part in enumerate(parts) if i in part), None) for i in range(count)]


def test_a_labelled_dataset_splits_by_its_labels(dataset_of):
    labels = np.repeat([0, 1], 10)
    split = dataset_of(contents_of(*range(20)), labels).split(seed=0)
    assert [len(split.train), len(split.validation), len(split.test)] == [12, 4, 4]
    assert labels[split.test].tolist() == [0, 0, 1, 1]


def test_an_unlabelled_dataset_is_all_train_but_for_its_test_part(dataset_of):
    split = dataset_of(contents_of(*range(6)), test=np.array([5])).split(seed=0)
    assert split.train.tolist() == [0, 1, 2, 3, 4]
    assert split.test.tolist() == [5]


@pytest.mark.parametrize("seed", range(5))
def test_identical_images_are_in_one_part(dataset_of, seed):
    numbers = [*range(20), *range(20), *range(5)]
    dataset = dataset_of(contents_of(*numbers), np.array(numbers) % 2)
    parts = part_by_image(dataset.split(seed), 45)
    assert None not in parts
    assert parts[:20] == parts[20:40]
    assert parts[:5] == parts[40:]
    assert dataset.identical.tolist() == list(range(20, 45))
    assert [parts[:20].count(k) for k in range(3)] == [12, 4, 4]


def test_the_split_of_first_images_is_that_of_a_dataset_without_copies(dataset_of):
    labels = np.arange(30) % 3
    alone = dataset_of(contents_of(*range(30)), labels).split(7)
    with_copies = dataset_of(contents_of(*range(30), 4, 4, 9), [*labels, 1, 1, 0]).split(7)
    assert part_by_image(with_copies, 33)[:30] == part_by_image(alone, 30)


def test_copies_of_images_of_a_given_test_part_are_in_no_other(dataset_of):
    numbers = [0, 1, 2, 3, 4, 5, 0, 3]
    for labels in (None, [0, 1] * 4):
        split = dataset_of(contents_of(*numbers), labels, test=np.array([6, 7])).split(0)
        assert split.test.tolist() == [6, 7]
        assert sorted(split.seen) == [1, 2, 4, 5]


def test_groups_that_share_an_identical_image_stay_together():
    numbers, groups = [*range(30), 0, 1], [*np.repeat(np.arange(10), 3), 9, 8]
    labels = np.arange(32) % 2
    dataset = Dataset("a", "a:a", contents_of(*numbers), ["a"] * 32, labels, ("x", "y"), groups=np.array(groups))
    parts = part_by_image(dataset.split(0), 32)
    for i in range(32):
        assert parts[i] == parts[groups.index(groups[i])]
    # 0 and 30 are the same image, as are 1 and 31; so the groups 0, 9 and 8 are one.
    assert parts[0] == parts[27] == parts[24]


def test_labels_of_many_kinds_keep_identical_images_together():
    rng = np.random.default_rng(0)
    numbers = [*range(60), *range(20)]
    labels = (rng.random((60, 3)) < 0.4)[numbers].astype(np.uint8)
    dataset = Dataset("a", "a:a", contents_of(*numbers), list("a" * 80), labels, ("x", "y", "z"))
    parts = part_by_image(dataset.split(0), 80)
    assert parts[:20] == parts[60:]


def test_images_that_cannot_be_read_are_not_taken_for_each_other(dataset_of, tmp_path):
    dataset = dataset_of([tmp_path / "a.png", tmp_path / "b.png", *contents_of(1, 2)])
    assert dataset.identical.tolist() == []
    assert dataset.together is None


def test_images_without_a_label_are_for_training_alone(dataset_of):
    labels = np.array([*np.repeat([0, 1], 10), *[NO_LABEL] * 4])
    split = dataset_of(contents_of(*range(20), 30, 31, 32, 3), labels).split(0)
    without = dataset_of(contents_of(*range(20)), labels[:20]).split(0)
    assert parts_of(split)[:3] == parts_of(without)[:3]
    # The last is a copy of a labelled image, which may be tested on.
    assert split.unlabelled.tolist() == ([20, 21, 22] if 3 in split.test else [20, 21, 22, 23])
    assert not np.isin(split.unlabelled, split.labelled).any()
    assert np.isin(split.unlabelled, split.seen).all()


def test_no_copy_of_a_test_image_is_among_the_images_without_a_label(dataset_of):
    labels = np.array([*np.repeat([0, 1], 10), *[NO_LABEL] * 20])
    split = dataset_of(contents_of(*range(20), *range(20)), labels).split(0)
    assert split.unlabelled.tolist() == sorted({*range(20, 40)} - {*(split.test + 20)})


def test_of_very_many_images_those_that_are_compared_are_kept_together(dataset_of, monkeypatch):
    monkeypatch.setattr("hpt_mlflow.data.dataset.MOST", 10)
    monkeypatch.setattr("hpt_mlflow.data.dataset.SAMPLED", 6)
    dataset = dataset_of(contents_of(*range(10), 0), np.arange(11) % 2)
    assert dataset.compared.tolist() == [0, 2, 4, 6, 8, 10]
    assert dataset.identical.tolist() == [10]
