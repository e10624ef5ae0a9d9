import csv
import io
import os
from dataclasses import dataclass
from pathlib import PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpt_mlflow.data.csv_source import open_csv
from hpt_mlflow.errors import HptError

COMMON = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FILES = ["1.png", "a/2.png", "a/b c.JPG", "odd; name.png", "x,y|z.png", 'the "third".png', "a/tab\there.png", "é.png"]
CLASSES = ["dog", "cat", "a;b", "c, d", 'say "x"', "10", "9", "vertical|bar", "tab\there", "two\nlines"]
PARTS = {"train": ["train", "Train", "training"], "val": ["val", "valid"], "test": ["test", "TEST"]}


@dataclass
class Row:
    """What a row says: the image as it is written, and what each further column has."""

    name: str
    values: dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def spelled(name):
    """Ways to write the path of a file in the folder."""
    return st.sampled_from([name, f"./{name}", name.replace("/", "//"), name.replace("/", "\\"), f"a/../{name}"])


@st.composite
def tables(draw):
    """Columns in order, and rows, of a table with a column of classes, or several labels, or none."""
    kinds = draw(st.sampled_from([("label",), ("L1", "L2", "L3"), ()]))
    more = [column for column in ("split", "patient", "fold") if draw(st.booleans())]
    columns = draw(st.permutations(["path", *kinds, *more]))
    choices = {
        "label": CLASSES,
        "split": [text for texts in PARTS.values() for text in texts],
        "patient": ["p", "q"],
        "fold": ["0", "1"],
    }
    rows = []
    for name in draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=9)):
        same = next((row for row in rows if row.name.endswith(name)), None)
        if same and draw(st.integers(0, 3)):
            values = same.values
        else:
            values = {c: draw(st.sampled_from(choices.get(c, ["", "0", "1", "-1", "1.0"]))) for c in (*kinds, *more)}
        rows.append(Row(draw(spelled(name)), values))
    return columns, rows


@st.composite
def written(draw, lines, separator):
    """The lines as a file: quoted where need be or more, with blank lines between, in one of the encodings."""
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text = ""
    for line in lines:
        cells = []
        for value in line:
            if draw(st.booleans()) or any(special in value for special in '",;|\t\n') or not value:
                cells.append('"' + value.replace('"', '""') + '"')
            else:
                cells.append(draw(st.sampled_from(["", " "])) + value)
        text += separator.join(cells) + end + draw(st.sampled_from(["", "", end, separator * (len(line) - 1) + end]))
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))


def place(folder, name):
    return os.path.realpath(folder / PurePosixPath(name.replace("\\", "/")))


def expected(folder, rows):
    """The rows that stay, by the rules as they are documented; None where the table has to be refused."""
    kept = {}
    part = {text: part for part, texts in PARTS.items() for text in texts}
    means = {"split": part.get, "fold": lambda value: None}
    for row in rows:
        meaning = {
            c: means.get(c, lambda v: v if v in CLASSES else v in ("1", "1.0"))(v) for c, v in row.values.items()
        }
        meaning |= {"patient": row.values["patient"]} if "patient" in row.values else {}
        first = kept.setdefault(place(folder, row.name), (row, meaning))
        if first[1] != meaning:
            return None
    parts = [meaning.get("split", "train") for _, meaning in kept.values()]
    held = "test" if "test" in parts else "val"
    test = [i for i, part in enumerate(parts) if part == held]
    test = test if 0 < len(test) < len(parts) else []
    patients = [meaning.get("patient") for _, meaning in kept.values()]
    inside = {patients[i] for i in test}
    if test and "patient" in rows[0].values and inside & {p for i, p in enumerate(patients) if i not in test}:
        return None
    return [row for row, _ in kept.values()], [meaning for _, meaning in kept.values()], test


def open_or_none(file):
    try:
        return open_csv(str(file), None)
    except HptError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
    return None


def shown(name):
    return name.replace("\t", "\\t").replace("\n", "\\n")


@settings(COMMON, max_examples=250)
@given(data=st.data(), table=tables(), separator=st.sampled_from(",;\t|"))
def test_a_table_is_what_its_rows_say(folder, data, table, separator):
    columns, rows = table
    lines = [columns, *([{"path": row.name, **row.values}[column] for column in columns] for row in rows)]
    file = folder / "some.csv"
    file.write_bytes(data.draw(written(lines, separator)))
    dataset, right = open_or_none(file), expected(folder, rows)
    if right is None:
        assert dataset is None
        return
    kept, meanings, test = right
    assert dataset is not None
    # Backslashes become slashes, since no file has them in its name.
    assert dataset.names == [row.name.replace("\\", "/") for row in kept]
    assert sum(entry.count for entry in dataset.left_out) == len(rows) - len(kept)
    assert ([] if dataset.test is None else dataset.test.tolist()) == test
    if "label" in columns:
        assert [dataset.classes[label] for label in dataset.labels] == [shown(meaning["label"]) for meaning in meanings]
    else:
        labels = [c for c in columns if c.startswith("L") and any(row.values[c] for row in rows)]
        assert dataset.classes == tuple(labels)
        if labels:
            assert dataset.labels.tolist() == [[meaning[c] for c in labels] for meaning in meanings]
    if "patient" in columns:
        patients = [meaning["patient"] for meaning in meanings]
        same = [[one == other for other in patients] for one in patients]
        assert (dataset.groups[:, None] == dataset.groups).tolist() == same
    else:
        assert dataset.groups is None


@settings(COMMON, max_examples=200)
@given(
    data=st.data(),
    names=st.lists(st.sampled_from(FILES), min_size=1, unique=True),
    separator=st.sampled_from(",;\t|"),
    first=st.booleans(),
)
def test_a_table_without_column_names_is_all_images(folder, data, names, separator, first):
    labels = [data.draw(st.sampled_from(CLASSES)) for _ in names]
    lines = [pair if first else pair[::-1] for pair in zip(names, labels, strict=True)]
    file = folder / "some.csv"
    file.write_bytes(data.draw(written(lines, separator)))
    dataset = open_csv(str(file), None)
    assert dataset.names == names
    assert [dataset.classes[label] for label in dataset.labels] == list(map(shown, labels))


def rows_in(content, separator):
    """The rows of a text that are not blank."""
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    lines = text.splitlines(keepends=True)
    if lines and lines[0].strip().strip('"').lower().startswith("sep="):
        text = text[len(lines[0]) :]
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if "".join(row).strip()]
    except csv.Error:
        return []


def assert_sound(folder, content):
    """Whatever the bytes are, they are refused in a line or read whole."""
    file = folder / "some.csv"
    file.write_bytes(content)
    dataset = open_or_none(file)
    if dataset is None:
        return
    count = len(dataset) + sum(entry.count for entry in dataset.left_out)
    read = [rows for separator in ",;\t|" if (rows := rows_in(content, separator))]
    first = dataset.names[0]
    named = [rows for rows in read if first in (value.strip().replace("\\", "/") for value in rows[0])]
    assert count in {len(rows) for rows in named} | {len(rows) - 1 for rows in read}
    assert dataset.labels is None or len(dataset.labels) == len(dataset)
    assert dataset.labels is None or dataset.labels.max(initial=0) < max(2, len(dataset.classes))
    assert dataset.labels is not None or dataset.unlabelled_because
    assert dataset.groups is None or len(dataset.groups) == len(dataset)


PIECES = [
    b'"',
    b",",
    b";",
    b"\t",
    b"|",
    b"\n",
    b"\r",
    b"\r\n",
    b"1.png",
    b"path",
    b"label",
    b"sep=;\n",
    b"0",
    b"1",
    b" ",
]
PIECES += [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", "é".encode(), b"\\", b"/", b"..", b"split", b"train", b"%", b"?"]


@settings(COMMON, max_examples=400)
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)), max_size=30))
def test_any_bytes_are_refused_or_read(folder, pieces):
    assert_sound(folder, b"".join(pieces))


@settings(COMMON, max_examples=250)
@given(data=st.data(), table=tables(), separator=st.sampled_from(",;\t|"))
def test_a_damaged_table_is_refused_or_read_whole(folder, data, table, separator):
    columns, rows = table
    lines = [columns, *([{"path": row.name, **row.values}[column] for column in columns] for row in rows)]
    content = data.draw(written(lines, separator))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = start + data.draw(st.integers(0, 6))
        content = content[:start] + data.draw(st.sampled_from([b"", *PIECES])) + content[end:]
    assert_sound(folder, content)
