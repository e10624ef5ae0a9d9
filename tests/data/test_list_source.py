import random

import numpy as np
import pytest
from list_checks import assert_read_alike

from hpt_mlflow.data import list_source
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError

PIECES = ["a", "b.png", "é", "猫", " ", "  ", "\t", "\u00a0", "\u3000", "\u2003", "\x1c", "\x0b", "\x85", "\0", "-"]
PIECES += ["\u1680", "1", "23", "-5", "/", "\udce9", "\udce3\udc80", "\ufeff", "0" * 19, "9" * 20, "8" * 45]


@pytest.mark.parametrize("seed", range(60))
def test_any_line_is_read_as_python_reads_it(tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(20):
        line = "".join(draw.choices(PIECES, k=draw.randint(0, 6)))
        assert_read_alike(tmp_path / "list.txt", line.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("content", [b" -5", b"  7 ", b"a.png 1\n  -5  2\n", b"- 1", b"-1", b"\t5", b"5\t", b" \t \na"])
def test_lines_of_little_but_a_number_are_read_as_python_reads_them(tmp_path, content):
    assert_read_alike(tmp_path / "list.txt", content)


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 22])
@pytest.mark.parametrize("tabs", [False, True])
def test_many_lines_are_read_in_blocks(tmp_path, monkeypatch, block, tabs):
    monkeypatch.setattr(list_source, "BLOCK_BYTES", block)
    monkeypatch.setattr(list_source, "LONGEST_LINE", 10_000)
    draw = random.Random(0)
    for _ in range(8):
        lines = []
        for _ in range(draw.randint(1, 30)):
            name = "".join(draw.choices(PIECES, k=3)) + ".png"
            label = "\t" + draw.choice(["cat", "dog", "猫", " ", "7"]) if tabs else f" {draw.randint(-3, 30)}"
            lines.append(name + label + draw.choice(["\n", "\r\n", "\r", "\n\n", " \n"]))
        content = "".join(lines).encode("utf-8", "surrogateescape")
        assert_read_alike(tmp_path / "list.txt", content)
        assert_read_alike(tmp_path / "list.txt", b"\xef\xbb\xbf" + content.rstrip())


def test_the_first_image_without_a_label_is_named_in_whatever_block_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(list_source, "BLOCK_BYTES", 50)
    lines = [f"{i}.png 1" for i in range(100)]
    lines[70], lines[90] = "without.png", "later.png"
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(HptError, match="'without.png'"):
        open_dataset(f"list:{tmp_path}/list.txt")


def test_how_a_list_is_read_in_blocks_does_not_change_its_digest(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("\n".join(f"{i}.png {i % 3}" for i in range(100)))
    digests = set()
    for block in (50, 1 << 20):
        monkeypatch.setattr(list_source, "BLOCK_BYTES", block)
        for most in (10, 1000):
            monkeypatch.setattr("hpt_mlflow.data.dataset.MOST", most)
            digests.add((most, open_dataset(f"list:{tmp_path}/list.txt").digest))
    assert len(digests) == 2


def test_what_has_no_lines_is_no_list(tmp_path, monkeypatch):
    monkeypatch.setattr(list_source, "LONGEST_LINE", 1000)
    monkeypatch.setattr(list_source, "BLOCK_BYTES", 100)
    (tmp_path / "list.txt").write_bytes(bytes(5000))
    with pytest.raises(HptError, match="more than 1000 bytes") as caught:
        open_dataset(f"list:{tmp_path}/list.txt")
    assert "\n" not in str(caught.value)


def test_numbers_that_python_does_not_read_are_ordered_as_text(tmp_path):
    (tmp_path / "list.txt").write_text(f"a.png {'1' * 5000}\nb.png 9\nc.png 10\n")
    assert open_dataset(f"list:{tmp_path}/list.txt").labels.tolist() == [1, 2, 0]


def test_two_hundred_thousand_lines_are_read_at_once(tmp_path):
    labels = np.random.default_rng(0).integers(0, 21_841, 200_000)
    lines = [f"n{label:08}/n{label:08}_{i}.JPEG {label}" for i, label in enumerate(labels.tolist())]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    dataset = open_dataset(f"list:{tmp_path}/list.txt")
    assert dataset.names == [line.split()[0] for line in lines]
    values = np.unique(labels)
    assert dataset.classes == tuple(map(str, values))
    np.testing.assert_array_equal(values[dataset.labels], labels)
    assert dataset.labels.dtype == np.int64


def test_a_list_in_utf_16_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(list_source, "BLOCK_BYTES", 7)
    for encoding, mark in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        assert_read_alike(tmp_path / "list.txt", mark + "é/1.png 1\r\n猫.png 2\r\n".encode(encoding))
    assert_read_alike(tmp_path / "list.txt", b"\xff\xfea\0b")


def test_lines_of_one_image_are_merged(tmp_path, monkeypatch):
    lines = ["a/1.png\tx", "b.png\ty", "./a/1.png\tx", "a\\1.png\tx", "a//1.png\tx", "c.png\tx"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    for block in (10, 1 << 20):
        monkeypatch.setattr(list_source, "BLOCK_BYTES", block)
        dataset = open_dataset(f"list:{tmp_path}/list.txt")
        assert dataset.names == ["a/1.png", "b.png", "c.png"]
        assert dataset.labels.tolist() == [0, 1, 0]
        assert [str(entry) for entry in dataset.left_out] == [
            "3 lines that repeat an image (a/1.png, ...): each image counts once"
        ]


def test_lines_of_one_image_have_to_agree(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\tcat\nb.png\tdog\n./a.png\tdog\n")
    with pytest.raises(HptError, match="'a.png' with the labels 'cat' and 'dog'") as caught:
        open_dataset(f"list:{tmp_path}/list.txt")
    assert "\n" not in str(caught.value)


def test_a_backslash_in_the_name_of_a_file_stays(tmp_path):
    (tmp_path / "a\\1.png").touch()
    (tmp_path / "list.txt").write_text("a\\1.png\na\\2.png\n")
    assert open_dataset(f"list:{tmp_path}/list.txt").names == ["a\\1.png", "a/2.png"]
