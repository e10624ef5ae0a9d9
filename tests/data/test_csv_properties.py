"""Whatever the bytes of a table are, it is refused in one line or read whole."""

import csv
import io

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
TABLE = "path,label,L1,L2,split,patient\n" + "".join(
    f"{name},{'dog cat'.split()[i % 2]},{i % 2},,{'train val'.split()[i % 3 == 0]},p{i}\n"
    for i, name in enumerate(FILES[:3])
)
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def open_or_none(file):
    try:
        return open_csv(str(file), None)
    except HptError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
    return None


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


@settings(COMMON, max_examples=300)
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)), max_size=30))
def test_any_bytes_are_refused_or_read(folder, pieces):
    assert_sound(folder, b"".join(pieces))


@settings(COMMON, max_examples=200)
@given(data=st.data(), separator=st.sampled_from(",;\t|"), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_a_damaged_table_is_refused_or_read_whole(folder, data, separator, encoding):
    content = TABLE.replace(",", separator).encode(encoding)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = start + data.draw(st.integers(0, 6))
        content = content[:start] + data.draw(st.sampled_from([b"", *PIECES])) + content[end:]
    assert_sound(folder, content)


@pytest.mark.parametrize("separator", ",;\t|")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_and_classes_of_any_characters_are_read_as_written(folder, separator, encoding):
    classes = ["dog", "a;b", "c, d", 'say "x"', "10", "9", "vertical|bar", "two\nlines"]
    written = io.StringIO()
    csv.writer(written, delimiter=separator).writerows([["path", "label"], *zip(FILES, classes, strict=True)])
    (folder / "some.csv").write_bytes(written.getvalue().encode(encoding))
    dataset = open_csv(str(folder / "some.csv"), None)
    assert dataset.names == FILES
    assert [dataset.classes[i] for i in dataset.labels] == [name.replace("\n", "\\n") for name in classes]
