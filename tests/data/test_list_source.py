import pytest

from hpt_mlflow.data import list_source
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError


@pytest.fixture
def opened(tmp_path):
    """Open a list of this content, text or bytes."""

    def open_list(content):
        (tmp_path / "list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return open_dataset(f"list:{tmp_path}/list.txt")

    return open_list


@pytest.mark.parametrize(
    ("line", "name", "label"),
    [
        ("a.png 3", "a.png", "3"),
        ("  a b.png   -3  ", "a b.png", "-3"),
        ("a.png\tsome cat", "a.png", "some cat"),
        ("a\tb.png\t 3 ", "a\tb.png", "3"),
        ("\tcat", "", "cat"),
        ("\u00a0猫.png\u3000\t\u2003é\x0b", "猫.png", "é"),
        (" a.png\u1680 7\x1c", "a.png", "7"),
        (f"a.png {'9' * 45}", "a.png", "9" * 45),
    ],
)
def test_a_line_is_a_name_and_a_label(opened, line, name, label):
    dataset = opened(line)
    assert (dataset.names, dataset.classes) == ([name], (label,))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        *[(line, line) for line in ("a.png", "5", "a.png x", "- 1x", "a 1.0", "a.png\u00a01", "\0", "a\x1cb")],
        *[("a\t", "a"), ("\t \n5\t", "5"), (" \x85 \n\x0b\n a", "a")],
    ],
)
def test_a_line_without_a_label_is_a_name(opened, line, name):
    dataset = opened(line)
    assert (dataset.names, dataset.labels) == ([name], None)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_end_as_on_any_system(opened, mark):
    dataset = opened(mark + b"a.png 1\r\nb.png 2\r\r c.png 1\n\n \nd.png 2")
    assert dataset.names == ["a.png", "b.png", "c.png", "d.png"]
    assert dataset.labels.tolist() == [0, 1, 0, 1]


def test_bytes_that_are_not_utf_8_name_files(opened):
    assert opened(b"\xe9.png\n\xe3\x80.png\n").names == ["\udce9.png", "\udce3\udc80.png"]


@pytest.mark.parametrize(("encoding", "mark"), [("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")])
def test_a_list_in_utf_16_is_read(opened, encoding, mark):
    dataset = opened(mark + "é/1.png 1\r\n猫.png 2\r\n".encode(encoding))
    assert (dataset.names, dataset.classes) == (["é/1.png", "猫.png"], ("1", "2"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfea\0b", "is not valid UTF-16; save it as UTF-8"),
        (b" \n\n", "names no images"),
        (b"a.png 1\nwithout.png\nb.png 2\nlater.png\n", "has labels, but not for 'without.png'"),
        (b"a.png 1\nb.png\t\n", "has labels, but not for 'b.png'"),
        (b"a.png\tcat\nb.png\tdog\n./a.png\tdog\n", "'a.png' with the labels 'cat' and 'dog'; make its lines agree"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(opened, content, reason):
    with pytest.raises(HptError, match=f"^data: .*{reason}") as caught:
        opened(content)
    assert "\n" not in str(caught.value)


def test_numbers_that_python_does_not_read_are_ordered_as_text(opened):
    assert opened(f"a.png {'1' * 5000}\nb.png 9\nc.png 10\n").labels.tolist() == [1, 2, 0]


def test_lines_of_one_image_are_merged(opened):
    dataset = opened("a/1.png\tx\nb.png\ty\n./a/1.png\tx\na\\1.png\tx\na//1.png\tx\nc.png\tx")
    assert dataset.names == ["a/1.png", "b.png", "c.png"]
    assert dataset.labels.tolist() == [0, 1, 0]
    assert [str(entry) for entry in dataset.left_out] == [
        "3 lines that repeat an image (a/1.png, ...): each image counts once"
    ]


@pytest.mark.parametrize(("most", "count"), [(4, 3), (3, 4)])
def test_lines_of_a_very_long_list_are_not_merged(opened, monkeypatch, most, count):
    monkeypatch.setattr(list_source, "MOST", most)
    dataset = opened("a.png 1\nb.png 2\na.png 1\nc.png 2\n")
    assert (len(dataset.names), len(dataset.labels), len(dataset.left_out)) == (count, count, int(count == 3))


def test_a_backslash_in_the_name_of_a_file_stays(opened, tmp_path):
    (tmp_path / "a\\1.png").touch()
    assert opened("a\\1.png\na\\2.png\n").names == ["a\\1.png", "a/2.png"]
