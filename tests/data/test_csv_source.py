import time

import numpy as np
import pytest
from refusals import assert_refused

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.sources import open_dataset

CHEXPERT = """Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pleural Effusion
CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,-1.0
CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg,Male,1,Lateral,,,0.0,1.0
CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Male,0,Frontal,PA,,1.0,1.0
"""


@pytest.fixture
def chexpert(tmp_path, write_image):
    folder = tmp_path / "CheXpert-v1.0-small"
    for line in CHEXPERT.splitlines()[1:]:
        write_image(tmp_path / line.split(",")[0])
    (folder / "train.csv").write_text(CHEXPERT)
    return folder


def test_chexpert_is_opened_as_it_comes(chexpert):
    dataset = open_dataset(f"csv:{chexpert}/train.csv")
    assert dataset.classes == ("No Finding", "Edema", "Pleural Effusion")
    assert dataset.labels.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 1]]
    assert dataset.labels.dtype == np.uint8
    assert dataset.multilabel
    assert dataset.test is None
    assert dataset.groups.tolist() == [0, 1, 1]
    assert decode(dataset.pictures[0]).shape == (5, 6, 3)


def test_chosen_labels_are_in_the_order_they_are_named_in(chexpert):
    dataset = open_dataset(f"csv:{chexpert}/train.csv?labels=Pleural Effusion, Edema")
    assert dataset.classes == ("Pleural Effusion", "Edema")
    assert dataset.labels.tolist() == [[0, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize("query", ["", "?labels=Edema,No Finding"])
@pytest.mark.parametrize(("file", "root"), [("train.csv", None), ("CheXpert-v1.0-small/train.csv", "..")])
def test_the_address_opens_the_dataset_again_from_elsewhere(chexpert, monkeypatch, query, file, root):
    monkeypatch.chdir(chexpert)
    dataset = open_dataset(f"csv:{file}{query}", root)
    monkeypatch.chdir("/")
    again = open_dataset(dataset.uri)
    assert again.uri == dataset.uri
    assert again.digest == dataset.digest
    assert again.classes == dataset.classes
    assert [decode(picture).shape for picture in again.pictures] == [(5, 6, 3)] * 3


def test_each_value_of_a_label_counts_as_in_the_reference(table):
    values = ["", "0", "0.0", "-1", "-1.0", "1", "1.0", " 1 "]
    images = [f"{i}.png" for i in range(len(values))]
    text = "path,A\n" + "".join(f"{image},{value}\n" for image, value in zip(images, values, strict=True))
    assert open_dataset(table(text, images)).labels[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_columns_with_other_values_are_no_labels(table):
    dataset = open_dataset(table("path,A,Age,Empty\n1.png,1,68,\n2.png,,1,\n"))
    assert dataset.classes == ("A",)


def test_a_column_of_class_names_makes_classes(table):
    dataset = open_dataset(table("file,Category,flag\n1.png,dog,1\n2.png,cat,0\n3.png,dog,1\n"))
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [1, 0, 1]
    assert not dataset.multilabel


def test_named_labels_go_before_a_column_of_class_names(table):
    assert open_dataset(table("file,label,flag\n1.png,dog,1\n2.png,cat,0\n") + "?labels=flag").classes == ("flag",)


@pytest.mark.parametrize("column", ["Path", "IMAGE", "file", "File name", "img"])
def test_the_image_column_is_found_by_its_name(table, column):
    assert open_dataset(table(f"A,{column}\n1,1.png\n0,2.png\n")).names == ["1.png", "2.png"]


def test_the_image_column_is_the_first_with_a_name_otherwise(table):
    assert open_dataset(table(",picture,A\n0,1.png,1\n1,2.png,0\n")).names == ["1.png", "2.png"]


def test_paths_are_relative_to_root(table, tmp_path, write_image):
    uri = table("path,A\nx.png,1\ny.png,0\n", images=())
    for name in ("x.png", "y.png"):
        write_image(tmp_path / "elsewhere" / name)
    assert open_dataset(uri, str(tmp_path / "elsewhere")).pictures[0] == tmp_path / "elsewhere" / "x.png"


@pytest.mark.parametrize(
    ("parts", "test"),
    [
        (["train", "Test", "train", "test"], [1, 3]),
        (["train", "valid", "train", "test"], [3]),
        (["train", "valid", "train", "val"], [1, 3]),
        (["test"] * 4, None),
        (["train"] * 4, None),
    ],
)
def test_the_test_part_is_that_of_the_split_column(table, parts, test):
    dataset = open_dataset(table("path,A,Split\n" + "".join(f"{i + 1}.png,1,{p}\n" for i, p in enumerate(parts))))
    assert (None if dataset.test is None else dataset.test.tolist()) == test


@pytest.mark.parametrize("column", ["patient", "Patient ID", "subject_id", "GROUP"])
def test_images_of_a_patient_stay_together(table, column):
    names = [f"{i}.png" for i in range(40)]
    rows = "".join(f"{name},{i % 2},p{i // 2}\n" for i, name in enumerate(names))
    dataset = open_dataset(table(f"path,A,{column}\n{rows}", names))
    assert dataset.classes == ("A",)
    split = dataset.split(0)
    for part in (split.train, split.validation, split.test):
        assert set(part ^ 1) == set(part)


def test_quoted_names_and_line_breaks(table):
    dataset = open_dataset(table('\ufeffpath,"A, b?",C\r\n"1.png",1,0\r\n\r\n2.png,0,1\r\n'))
    assert dataset.classes == ("A, b?", "C")
    chosen = open_dataset(dataset.uri + "?labels=A%2C b%3F")
    assert chosen.classes == ("A, b?",)
    assert open_dataset(chosen.uri).classes == ("A, b?",)


def test_the_digest_covers_labels_names_parts_and_groups(table):
    texts = [
        "path,A,B\n1.png,1,0\n2.png,0,1\n",
        "path,A,B\n1.png,0,0\n2.png,0,1\n",
        "path,A,C\n1.png,1,0\n2.png,0,1\n",
        "path,A,B,split\n1.png,1,0,train\n2.png,0,1,test\n",
        "path,A,B,patient\n1.png,1,0,x\n2.png,0,1,y\n",
        "path,A,B,patient\n1.png,1,0,x\n2.png,0,1,x\n",
    ]
    digests = [open_dataset(table(text)).digest for text in texts]
    assert len(set(digests)) == len(texts)
    assert open_dataset(table(texts[0])).digest == digests[0]
    assert len(digests[0]) == 16


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no column names"]),
        ("path,A\n", ["no rows"]),
        ("path,A,A\n1.png,1,0\n", ["'A' twice", "line 1"]),
        ("path,A\n1.png,1\n2.png\n", ["line 3", "1 values for 2 columns, separated by comma"]),
        ("path,A\n1.png,1\n2.png,x,1\n", ["line 3", "3 values for 2 columns"]),
        ("path,A\n1.png,1\n,0\n", ["line 3", "no image"]),
        ('path,A\n1.png,"1\n', ["is not CSV"]),
        (b"path,A\n1.png,1\n\xff.png,0\n", ["line 3", "not UTF-8"]),
        ("path,A,split\n1.png,1,train\n2.png,0,later\n", ["line 3", "'later'", "train, val or test"]),
        ("path,A,patient\n1.png,1,x\n2.png,0,\n", ["line 3", "'patient'"]),
        ("path,A,patient,split\n1.png,1,x,train\n2.png,0,x,test\n", ["patient 'x'", "line 2", "test"]),
        ("path,class\n1.png,dog\n2.png,\n", ["line 3", "'class'"]),
        ("path,A\nnone.png,1\n", ["none.png", "--root"]),
    ],
)
def test_what_is_wrong_is_said_with_its_line(table, text, words):
    assert_refused(table(text), "some.csv", *words)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?labels=B", ["no column 'B'", "path, A, Age"]),
        ("?labels=Age", ["line 3", "'68'", "'Age'", "1, 0, -1 or blank"]),
        ("?labels=", ["'labels='", "?labels=A,B"]),
        ("?label_column=B", ["no column 'B'", "path, A, Age"]),
        ("?label_column=A,Age", ["'label_column=A,Age'", "?label_column=A "]),
        ("?label_column=", ["'label_column='", "?label_column=A "]),
        ("?label_column=A&labels=A", ["labels and label_column"]),
        ("?classes=A", ["'classes=A'"]),
    ],
)
def test_labels_that_are_asked_for_must_be_there(table, query, words):
    assert_refused(table("path,A,Age\n1.png,1,0\n2.png,0,68\n") + query, *words)


def test_a_missing_file_is_refused(tmp_path):
    assert_refused(f"csv:{tmp_path}/none.csv", "no CSV file", "none.csv")


def test_the_address_of_a_label_column_opens_the_dataset_again(table, tmp_path):
    uri = table('path,"Kind, by?"\n1.png,b\n2.png,a\n') + "?label_column=Kind%2C by?"
    dataset = open_dataset(uri.replace("by?", "by%3F"), str(tmp_path / "data"))
    assert dataset.classes == ("a", "b")
    again = open_dataset(dataset.uri)
    assert (again.uri, again.digest, again.classes) == (dataset.uri, dataset.digest, dataset.classes)


def test_a_path_of_windows_names_the_file_that_is_there(table):
    dataset = open_dataset(table("path,A\na\\1.png,1\n.\\a\\2.png,0\n", images=("a/1.png", "a/2.png")))
    assert dataset.names == ["a/1.png", "./a/2.png"]
    assert decode(dataset.pictures[1]).shape == (5, 6, 3)


def test_a_backslash_in_the_name_of_a_file_stays(table):
    dataset = open_dataset(table("path,A\na\\1.png,1\na\\2.png,0\n", images=("a\\1.png", "a/2.png")))
    assert dataset.names == ["a\\1.png", "a/2.png"]


def test_the_images_are_in_the_first_column_of_paths_where_none_is_named(table):
    assert open_dataset(table("number,kind,scan\n7,a,1.png\n8,b,2.png\n")).names == ["1.png", "2.png"]


def test_rows_of_one_image_are_merged_however_its_path_is_written(table, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path)
    absolute = tmp_path / "data" / "a" / "1.png"
    names = ["a/2.png", "./a/1.png", "a//1.png", "a\\1.png", str(absolute), "link/../1.png", "a/../a/1.png", "1.png"]
    text = "path,x,label\n" + "".join(f"{name},{i},{'a' if i else 'b'}\n" for i, name in enumerate(names))
    write = [f"a/{i}.png" for i in (1, 2)]
    (entry,) = (dataset := open_dataset(table(text, [*write, "1.png"]))).left_out
    # `link/..` is the folder above that of the table.
    assert dataset.names == ["a/2.png", "./a/1.png", "link/../1.png", "1.png"]
    assert dataset.labels.tolist() == [1, 0, 0, 0]
    assert (entry.what, entry.count, entry.examples) == ("rows that repeat an image", 4, ("./a/1.png",))


def test_what_stays_of_merged_rows_is_in_step(table):
    rows = ["1,x,p,train", "1,x,p,train", "2,y,q,test", "1,x,p,train", "3,x,r,test", "2,y,q,test", "4,y,s,train"]
    text = "path,label,patient,split\n" + "".join(f"{row[0]}.png{row[1:]}\n" for row in rows)
    dataset = open_dataset(table(text))
    assert dataset.names == ["1.png", "2.png", "3.png", "4.png"]
    assert dataset.labels.tolist() == [0, 1, 0, 1]
    assert dataset.groups.tolist() == [0, 1, 2, 3]
    assert dataset.test.tolist() == [1, 2]
    assert dataset.left_out[0].count == 3


def test_an_unlabelled_image_may_have_rows_that_differ(table):
    dataset = open_dataset(table("path,species\n1.png,dog\n1.png,cat\n2.png,dog\n"))
    assert dataset.names == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\n1.png,a\n2.png,a\n./1.png,b\n", ["2 and 4", "'1.png'", "'a' and 'b'", "a column of 1 and 0"]),
        ("path,A,B\n1.png,1,0\n2.png,1,1\n1.png,1,1\n", ["2 and 4", "'1.png'", "'0' and '1'", "'B'"]),
        ("path,A,split\n1.png,1,train\n1.png,1,test\n", ["2 and 3", "'1.png'", "'train' and 'test'", "'split'"]),
        ("path,A,patient\n1.png,1,x\n1.png,1,y\n", ["2 and 3", "'1.png'", "'x' and 'y'", "'patient'"]),
    ],
)
def test_rows_of_one_image_that_differ_are_named(table, text, words):
    assert_refused(table(text), "some.csv", *words)


def test_rows_of_one_image_agree_by_what_their_values_mean(table):
    dataset = open_dataset(table("path,A,B,split\n1.png,1,0,train\n1.png,1.0,-1,Training\n2.png,,1,test\n"))
    assert dataset.labels.tolist() == [[1, 0], [0, 1]]


def test_a_patient_is_the_same_however_unicode_composes_the_name(table):
    assert open_dataset(table("path,A,patient\n1.png,1,\u00e9\n2.png,1,e\u0301\n")).groups.tolist() == [0, 0]


@pytest.mark.slow
def test_a_million_rows_take_seconds(tmp_path, write_image):
    write_image(tmp_path / "0.png")
    rows = "".join(f"{i // 2}.png,{i},{i // 2 % 7}\n" for i in range(1_000_000))
    (tmp_path / "large.csv").write_text("path,x,label\n" + rows)
    start = time.process_time()
    dataset = open_dataset(f"csv:{tmp_path}/large.csv")
    assert time.process_time() - start < 30
    assert len(dataset) == 500_000
    assert dataset.left_out[0].count == 500_000
