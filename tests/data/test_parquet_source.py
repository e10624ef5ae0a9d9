import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from refusals import assert_refused

from hpt_mlflow.data import parquet_rows
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.data.split import NO_LABEL

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(value=0, size=(6, 5)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def huggingface(**features):
    """The description that `datasets` keeps in the schema."""
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def class_label(*names):
    return {"names": list(names), "_type": "ClassLabel"}


def write(file, columns, features=None, rows=3, **options):
    """Write a table of columns, each a type and values; `features` describe them as Hugging Face does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        [(name, kind) for name, (kind, _) in columns.items()], huggingface(**features) if features else None
    )
    table = pa.table({name: pa.array(values, kind) for name, (kind, values) in columns.items()}, schema=schema)
    pq.write_table(table, file, row_group_size=rows, **options)
    return file


def pictures(values, path="{}.png"):
    return IMAGE, [{"bytes": png(value), "path": path.format(value) if path else None} for value in values]


def labelled(file, values, labels, names=("dog", "cat"), **options):
    columns = {"image": pictures(values), "label": (pa.int64(), labels)}
    features = {"image": {"_type": "Image"}, "label": class_label(*names)}
    return write(file, columns, features, **options)


def values_of(dataset):
    return [int(decode(picture)[0, 0, 0]) for picture in dataset.pictures]


def labels_of(dataset):
    return [None if label == NO_LABEL else dataset.classes[label] for label in dataset.labels]


def test_a_table_of_hugging_face_is_pictures_with_their_classes(tmp_path):
    file = labelled(tmp_path / "some.parquet", [4, 5, 6, 7, 8], [0, 1, 1, 0, 0])
    dataset = open_dataset(f"parquet:{file}")
    assert values_of(dataset) == [4, 5, 6, 7, 8]
    assert labels_of(dataset) == ["dog", "cat", "cat", "dog", "dog"]
    assert dataset.classes == ("cat", "dog")
    assert dataset.names == [f"some.parquet/{i}/{i + 4}.png" for i in range(5)]
    assert (dataset.name, dataset.uri, dataset.test, dataset.left_out) == ("some", f"parquet:{file}", None, ())
    assert open_dataset(dataset.uri).digest == dataset.digest
    assert pickle.loads(pickle.dumps(dataset.pictures))[4] == png(8)  # noqa: S301
    assert dataset.pictures[np.int64(-2)] == png(7)


def test_what_hugging_face_writes_is_read_as_hugging_face_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    pixels = [Image.fromarray(rng.integers(0, 256, (7, 5, 3), np.uint8)) for _ in range(250)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"]), "text": datasets.Value("string")}
    )
    columns = {"image": pixels, "label": [i % 2 for i in range(250)], "text": ["x"] * 250}
    theirs = datasets.Dataset.from_dict(columns, features=features)
    theirs.to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    ours = open_dataset(f"parquet:{tmp_path}")
    assert len(ours) == 250
    for i in range(0, 250, 7):
        np.testing.assert_array_equal(decode(ours.pictures[i]), np.asarray(theirs[i]["image"]))
        assert ours.classes[ours.labels[i]] == "ba"[theirs[i]["label"]]


def test_files_named_after_a_part_are_parts(tmp_path):
    for i, part in enumerate(("train", "train", "validation", "test")):
        labelled(tmp_path / "data" / f"{part}-{i % 2:05}-of-00002.parquet", [4 * i, 4 * i + 1], [0, 1])
    (tmp_path / "README.md").write_text("no table")
    (tmp_path / ".cache.parquet").write_bytes(b"hidden")
    dataset = open_dataset(f"parquet:{tmp_path}")
    assert dataset.names[0] == "test-00001-of-00002.parquet/0/12.png"
    assert [values_of(dataset)[i] for i in dataset.test] == [12, 13]
    assert len(dataset) == 8
    split = dataset.split(0)
    assert [values_of(dataset)[i] for i in split.test] == [12, 13]
    assert len(open_dataset(f"parquet:{tmp_path}/data/train-*.parquet")) == 4
    converted = tmp_path / "converted"
    labelled(converted / "default" / "train" / "0000.parquet", [1, 2], [0, 1])
    labelled(converted / "default" / "test" / "0000.parquet", [3, 4], [0, 1])
    dataset = open_dataset(f"parquet:{converted}")
    assert [dataset.names[i] for i in dataset.test] == ["test/0000.parquet/0/3.png", "test/0000.parquet/1/4.png"]
    everything = open_dataset(f"parquet:{converted}", every_image=True)
    assert (len(everything), everything.labels, everything.test) == (4, None, None)


def test_a_test_part_without_labels_is_left_out_and_validation_held_out(tmp_path):
    labelled(tmp_path / "train-0.parquet", [1, 2], [0, 1])
    labelled(tmp_path / "validation-0.parquet", [3, 4], [0, 1])
    labelled(tmp_path / "test-0.parquet", [5, 6, 7], [-1, -1, -1])
    dataset = open_dataset(f"parquet:{tmp_path}")
    assert [values_of(dataset)[i] for i in dataset.test] == [3, 4]
    assert [str(entry) for entry in dataset.left_out] == ["3 images of the part test: they have no labels to test on"]


def test_rows_without_a_label_are_for_training_without_labels(tmp_path):
    file = labelled(tmp_path / "a.parquet", list(range(8)), [0, 1, -1, None, 0, 1, 0, 1])
    dataset = open_dataset(f"parquet:{file}")
    assert labels_of(dataset) == ["dog", "cat", None, None, "dog", "cat", "dog", "cat"]
    assert dataset.split(0).unlabelled.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("kind", "values", "classes"),
    [
        (pa.int32(), [10, 9, 9], ("9", "10")),
        (pa.string(), ["b", "a", "b"], ("a", "b")),
        (pa.bool_(), [True, False, True], ("0", "1")),
        (pa.dictionary(pa.int8(), pa.string()), ["b", "a", "b"], ("a", "b")),
    ],
)
def test_labels_are_numbers_or_texts(kind, values, classes, tmp_path):
    file = write(tmp_path / "a.parquet", {"img": (pa.binary(), [png(i) for i in range(3)]), "Label": (kind, values)})
    dataset = open_dataset(f"parquet:{file}")
    assert dataset.classes == classes
    assert values_of(dataset) == [0, 1, 2]
    assert dataset.names == ["a.parquet/0", "a.parquet/1", "a.parquet/2"]
    texts = [str(int(value)) if isinstance(value, bool) else str(value) for value in values]
    assert labels_of(dataset) == texts


def test_several_columns_are_told_apart_by_name(tmp_path):
    columns = {"left": pictures([1, 2]), "right": pictures([3, 4])}
    columns |= {"fine": (pa.int64(), [0, 1]), "coarse?": (pa.int64(), [1, 0])}
    features = {"fine": class_label("a", "b"), "coarse?": class_label("c", "d")}
    file = write(tmp_path / "a.parquet", columns, features)
    assert_refused(f"parquet:{file}", "several columns of pictures, 'left', 'right'", "?image_column=")
    dataset = open_dataset(f"parquet:{file}?image_column=right")
    assert values_of(dataset) == [3, 4]
    assert dataset.labels is None
    assert "'fine', 'coarse?' are labels; name one with ?label_column=" in dataset.unlabelled_because
    dataset = open_dataset(f"parquet:{file}?image_column=right&label_column=coarse%3F")
    assert labels_of(dataset) == ["d", "c"]
    assert open_dataset(dataset.uri).digest == dataset.digest


def test_columns_that_do_not_fit_are_refused(tmp_path):
    file = labelled(tmp_path / "a.parquet", [1], [0])
    assert_refused(f"parquet:{file}?label_column=other", "no column 'other'", "it has 'image', 'label'")
    assert_refused(f"parquet:{file}?label_column=image", "of type struct")
    assert_refused(f"parquet:{file}?image_column=label", "no column of pictures called 'label'")
    assert_refused(f"parquet:{file}?labels=label", "cannot read 'labels=label'", "?image_column=A")
    none = write(tmp_path / "b.parquet", {"a": (pa.int64(), [1])})
    assert_refused(f"parquet:{none}", "no column of pictures", "'a'")
    wrong = labelled(tmp_path / "c.parquet", [1, 2], [0, 5])
    assert_refused(f"parquet:{wrong}", "has the label 5", "from 0 to 1")
    empty = labelled(tmp_path / "d.parquet", [], [])
    assert_refused(f"parquet:{empty}", "has no rows")


def test_a_description_that_is_not_one_is_passed_over(tmp_path):
    for i, description in enumerate((b"\xff", b"[1]", b'{"info": 3}', b'{"info": {"features": ["x"]}}', b"[" * 5000)):
        table = pa.table({"image": pa.array([png(1)], pa.binary()), "label": [3]})
        pq.write_table(table.replace_schema_metadata({b"huggingface": description}), tmp_path / f"{i}.parquet")
        assert open_dataset(f"parquet:{tmp_path}/{i}.parquet").classes == ("3",)


def test_paths_are_read_inside_the_folder_of_the_table_only(tmp_path, write_image):
    write_image(tmp_path / "secret.png")
    write_image(tmp_path / "data" / "images" / "1.png", colour=(9, 9, 9))
    (tmp_path / "data" / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "images" / "folder.png").mkdir()
    inside = str(tmp_path / "data" / "images" / "1.png")
    paths = ["images/1.png", "../secret.png", "images/link.png", inside, "images/folder.png", "none.png", None, ""]
    file = write(tmp_path / "data" / "a.parquet", {"image": (IMAGE, [{"bytes": None, "path": path} for path in paths])})
    found = open_dataset(f"parquet:{file}").pictures
    assert decode(found[0])[0, 0, 0] == 9
    for i, words in enumerate(["not in the folder"] * 3 + ["not a file"] * 2 + ["no picture"] * 2, start=1):
        with pytest.raises(UnreadableImageError, match=words):
            found[i]


def test_missing_pictures_are_unreadable_and_the_others_are_not(tmp_path):
    file = write(tmp_path / "a.parquet", {"image": (pa.binary(), [png(1), None, b"", png(4)])})
    found = open_dataset(f"parquet:{file}").pictures
    with pytest.raises(UnreadableImageError, match="no picture"):
        found[1]
    with pytest.raises(UnreadableImageError):
        decode(found[2])
    assert [decode(found[i])[0, 0, 0] for i in (3, 0)] == [4, 1]


def test_few_row_groups_are_kept_at_a_time(tmp_path, monkeypatch):
    file = labelled(tmp_path / "a.parquet", list(range(30)), [0, 1] * 15, rows=5)
    read = []
    original = parquet_rows.read_group
    monkeypatch.setattr(
        parquet_rows, "read_group", lambda opened, group, column: read.append(group) or original(opened, group, column)
    )
    found = open_dataset(f"parquet:{file}").pictures
    assert [found[i] for i in range(30)] == [png(i) for i in range(30)]
    assert read == [0, 1, 2, 3, 4, 5]
    assert [found[i] for i in (29, 0, 15)] == [png(i) for i in (29, 0, 15)]
    assert len(read) == 6
    size = original(open(file, "rb"), 0, "image").nbytes  # noqa: SIM115
    monkeypatch.setattr(parquet_rows, "KEPT_BYTES", 5 * size // 2)
    found = open_dataset(f"parquet:{file}").pictures
    assert [found[i] for i in (0, 5, 10, 5, 0)] == [png(i) for i in (0, 5, 10, 5, 0)]
    assert read[6:] == [0, 1, 2, 0]


def test_row_groups_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "a.parquet", {"image": (pa.binary(), [bytes(1 << 16)] * 64)}, rows=64, compression="zstd")
    found = open_dataset(f"parquet:{file}").pictures
    # A dictionary holds the one picture once, whatever the size of all.
    monkeypatch.setattr(parquet_rows, "MOST_GROUP_BYTES", 1 << 21)
    with pytest.raises(UnreadableImageError, match="row_group_size=100"):
        found[0]
    monkeypatch.setattr("hpt_mlflow.data.parquet_table.MOST_GROUP_BYTES", 1 << 10)
    assert_refused(f"parquet:{file}", "row group 0 of", "row_group_size=100")


def test_damaged_tables_are_refused_or_their_rows_unreadable(tmp_path):
    whole = labelled(tmp_path / "a.parquet", list(range(9)), [0] * 9).read_bytes()
    file = tmp_path / "b.parquet"
    for content in (b"", b"PAR1", whole[:-9], whole[len(whole) // 2 :], b"PAR1" * 50):
        file.write_bytes(content)
        assert_refused(f"parquet:{file}", "b.parquet is not a whole Parquet file")
    file.write_bytes(b"PAR1" + bytes(200) + whole[204:])
    found = open_dataset(f"parquet:{file}?label_column=label").pictures
    with pytest.raises(UnreadableImageError, match="table is damaged") as caught:
        found[0]
    assert str(caught.value).isprintable()
    assert_refused(f"parquet:{tmp_path}/none.parquet", "there is no table")
    (tmp_path / "empty").mkdir()
    assert_refused(f"parquet:{tmp_path}/empty", "no tables in")
    assert_refused("parquet:hf://datasets/x", "copy the tables")


def test_a_table_that_changes_afterwards_is_unreadable_and_not_misread(tmp_path):
    file = labelled(tmp_path / "a.parquet", [1, 2], [0, 1])
    found = open_dataset(f"parquet:{file}").pictures
    labelled(file, [3, 4, 5], [0, 1, 1])
    with pytest.raises(UnreadableImageError, match="table has changed"):
        found[0]


def test_a_picture_has_the_content_of_the_same_picture_in_a_file(tmp_path):
    for i in range(7):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{i}.png").write_bytes(png(i))
    packed = open_dataset(f"parquet:{labelled(tmp_path / 'a.parquet', list(range(7)), [0, 1, 0, 1, 0, 1, 0])}")
    files = open_dataset(f"{tmp_path}/files")
    np.testing.assert_array_equal(packed.contents.of(np.arange(7)), files.contents.of(np.arange(7)))
