import hashlib
import os
import re

import numpy as np
import pytest

from hpt_mlflow.data.dataset import content_digest, files_digest
from hpt_mlflow.data.names import Files, Names
from hpt_mlflow.data.sources import open_dataset


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(b"content")
    return paths


def test_a_digest_is_sixteen_hexadecimal_digits(files):
    for digest in (files_digest(["a", "b"], files, None), content_digest(np.arange(3))):
        assert re.fullmatch("[0-9a-f]{16}", digest)


def test_the_same_files_have_the_same_digest(files):
    assert files_digest(["a", "b"], files, np.array([0, 1])) == files_digest(["a", "b"], files, np.array([0, 1]))


def test_names_sizes_and_labels_change_the_digest_of_files(files):
    digests = [files_digest(["a", "b"], files, None), files_digest(["a", "c"], files, None)]
    digests += [files_digest(["a", "b"], files, np.array(labels)) for labels in ([0, 1], [0, 0])]
    digests.append(files_digest(["a"], files[:1], None))
    files[1].write_bytes(b"more content")
    digests.append(files_digest(["a", "b"], files, None))
    assert len(set(digests)) == len(digests)


def test_a_file_that_is_not_there_has_a_digest_of_its_own(files):
    before = files_digest(["a", "b"], files, None)
    files[1].unlink()
    assert files_digest(["a", "b"], files, None) != before


def test_a_name_that_is_no_utf_8_has_a_digest(files):
    assert files_digest(["caf\udce9", "b"], files, None) != files_digest(["cafe", "b"], files, None)


@pytest.mark.parametrize("labels", [None, [1, 0, 2], [[1, 0], [0, 0], [1, 1]]])
def test_the_digest_is_the_one_that_registered_runs_have_kept(files, labels):
    names, files = ["a", "caf\udce9", "c"], [*files, files[0].parent / "gone.png"]
    expected = hashlib.sha256()
    for i, size in enumerate((7, 7, -1)):
        label = "" if labels is None else labels[i]
        label = bytes(label).hex() if isinstance(label, list) else str(label)
        for part in (names[i], "\0", str(size), "\0", label, "\n"):
            expected.update(part.encode(errors="surrogateescape"))
    if labels is not None:
        labels = np.array(labels, np.uint8 if isinstance(labels[0], list) else np.int64)
    for given in (files, Files(files[0].parent, Names.of([file.name for file in files]))):
        assert files_digest(names, given, labels) == expected.hexdigest()[:16]


@pytest.fixture
def many_files(tmp_path, monkeypatch):
    monkeypatch.setattr("hpt_mlflow.data.dataset.MOST_SIZES", 100)
    monkeypatch.setattr("hpt_mlflow.data.dataset.SAMPLED_SIZES", 51)
    for i in range(101):
        (tmp_path / f"{i}.png").write_bytes(b"content")
    return tmp_path


def digest_of_many(folder, names=None, labels=None):
    names = names or [f"{i}.png" for i in range(101)]
    return files_digest(Names.of(names), Files(folder, Names.of(f"{i}.png" for i in range(101))), labels)


def test_of_many_files_names_and_labels_count_in_full_and_sizes_of_a_sample(many_files):
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
    (many_files / "2.png").write_bytes(b"of the sample")
    others.append(digest_of_many(many_files))
    (many_files / "2.png").unlink()
    others.append(digest_of_many(many_files))
    assert len({known, *others}) == 7


def test_of_many_files_only_the_sample_is_asked_for_its_sizes(many_files, monkeypatch):
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(path) or stat(path, **more))
    digest_of_many(many_files)
    assert asked == [many_files / f"{i}.png" for i in range(0, 101, 2)]


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


def test_a_labelled_dataset_splits_by_its_labels(dataset_of):
    labels = np.repeat([0, 1], 10)
    split = dataset_of([b""] * 20, labels).split(seed=0)
    assert [len(split.train), len(split.validation), len(split.test)] == [12, 4, 4]
    assert labels[split.test].tolist() == [0, 0, 1, 1]


def test_an_unlabelled_dataset_is_all_train_but_for_its_test_part(dataset_of):
    split = dataset_of([b""] * 6, test=np.array([5])).split(seed=0)
    assert split.train.tolist() == [0, 1, 2, 3, 4]
    assert split.test.tolist() == [5]
