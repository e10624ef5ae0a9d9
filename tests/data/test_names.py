import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from hpt_mlflow.data.file_rows import Files
from hpt_mlflow.data.names import AT_ONCE, Names, NumberedNames

ODD = ["a.png", "", "größe/猫 1.png", "caf\udce9.png", "no\0thing", "n" * 5000, "a\nb"]


@pytest.mark.parametrize("index", [int, np.int32, np.int64, np.uint8])
def test_names_of_any_kind_are_read_by_any_integer(index):
    names = Names.of(iter(ODD))
    assert [names[index(i)] for i in range(len(ODD))] == ODD == list(names)
    assert len(names) == len(ODD)


def test_names_count_from_the_end_and_in_slices_as_lists_do():
    names = Names.of(ODD)
    assert names[-1] == ODD[-1]
    assert names[np.int64(-len(ODD))] == ODD[0]
    assert names[1:5:2] == ODD[1:5:2]
    for i in (len(ODD), -len(ODD) - 1):
        with pytest.raises(IndexError):
            names[i]
    assert "a.png" in names
    assert names.index("a\nb") == 6


def test_names_in_several_chunks_follow_one_another(monkeypatch):
    monkeypatch.setattr("hpt_mlflow.data.names.AT_ONCE", 3)
    names = Names.of(ODD)
    assert [names[i] for i in range(len(ODD))] == ODD == list(names)
    assert names == Names.of(names)
    assert pickle.loads(pickle.dumps(names)) == ODD  # noqa: S301


def test_names_of_chunks_may_start_with_a_prefix():
    chunks = [*Names.of(["1", "2"])._chunks, *Names.of([])._chunks, *Names.of(["1"])._chunks]
    names = Names(chunks, ["a/", "b/"])
    assert list(names) == [names[0], names[1], names[2]] == ["a/1", "a/2", "b/1"]


def test_buffers_are_those_of_the_names_alone():
    (chunk,) = Names.of(["a", "bc", "def"])._chunks
    ((prefix, data, ends),) = Names([chunk[1:]], ["x/"]).buffers()
    assert (prefix, bytes(data), ends.tolist()) == ("x/", b"bcdef", [2, 5])


def test_names_equal_the_same_strings_and_nothing_else():
    assert Names.of(ODD) == ODD
    assert ODD == Names.of(ODD)  # noqa: SIM300
    assert Names.of(ODD) != ODD[:-1]
    assert Names.of(["a", "b"]) != ["a", "c"]
    assert Names.of(["a"]) != "a"
    assert Names.of([]) == []


def test_names_show_a_few():
    assert repr(Names.of(["a", "b", "c", "d"])) == "<4 names: 'a', 'b', 'c', ...>"


def test_files_are_those_of_the_names_in_the_folder():
    files = Files("/data", Names.of(["a/1.png", "/elsewhere/2.png", "..", "caf\udce9"]))
    expected = [Path("/data/a/1.png"), Path("/elsewhere/2.png"), Path("/data/.."), Path("/data/caf\udce9")]
    assert files == expected
    assert [files[np.int64(i)] for i in range(4)] == expected
    assert [files.path(i) for i in range(4)] == list(map(str, expected))
    assert files[:2] == expected[:2]
    assert all(isinstance(file, Path) for file in files)


def test_numbered_names_are_made_as_they_are_asked_for():
    names = NumberedNames(3, "MNIST")
    assert names == ["MNIST/0", "MNIST/1", "MNIST/2"]
    assert names[np.int64(2)] == names[-1] == "MNIST/2"
    with pytest.raises(IndexError):
        names[3]


@pytest.fixture(scope="module")
def many():
    return Names.of(f"n01440764/n01440764_{i}.JPEG" for i in range(2 * AT_ONCE))


def test_many_names_take_little_more_than_their_bytes_also_when_pickled(many):
    size = sum(map(len, many))
    assert size < len(pickle.dumps(Files("/data", many))) < size + 5 * len(many)
    again = pickle.loads(pickle.dumps(many))  # noqa: S301
    assert again[150_000] == many[150_000] == "n01440764/n01440764_150000.JPEG"


def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def growth_of_reading(names, queue):
    for i in range(1000):  # what the first reading takes once
        len(names[i])
    before = private_bytes()
    for i in np.random.default_rng(0).permutation(len(names)):
        len(names[i])
    queue.put(private_bytes() - before)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux tells of it")
def test_a_forked_worker_that_reads_all_names_gets_no_copy_of_them(many):
    context = multiprocessing.get_context("fork")

    def growth(names):
        queue = context.Queue()
        worker = context.Process(target=growth_of_reading, args=(names, queue))
        worker.start()
        found = queue.get(timeout=60)
        worker.join()
        return found

    assert growth(many) < 4e6
    assert growth(list(many)) > 10e6  # as it was
