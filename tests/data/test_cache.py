import os
import stat
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from hpt_mlflow.data.cache import cache_folder, keep, keep_json, limit, locked, read_json


@pytest.fixture
def file(tmp_path):
    return tmp_path / "some" / "kept.txt"


def text_writer(text):
    return lambda path: path.write_text(text)


def test_the_folder_is_the_one_that_the_user_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("empty", [None, ""])
def test_without_a_name_it_is_in_the_users_home(monkeypatch, tmp_path, empty):
    monkeypatch.delenv("HPT_CACHE") if empty is None else monkeypatch.setenv("HPT_CACHE", empty)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in cache_folder().parents
    assert "hpt" in cache_folder().name


def test_the_users_home_may_be_written_as_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HPT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("use", [lambda file: keep(file, text_writer("one")), lambda file: locked(file).release()])
def test_a_new_folder_is_marked_as_a_cache(monkeypatch, tmp_path, use):
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "mine"))
    use(cache_folder() / "some" / "file")
    assert (tmp_path / "mine" / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")


def test_a_folder_of_the_users_is_not_marked(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("HPT_CACHE", str(tmp_path / "mine"))
    keep(cache_folder() / "some" / "file", text_writer("one"))
    keep(tmp_path / "elsewhere" / "file", text_writer("one"))
    assert len(list(tmp_path.rglob("file"))) == 2
    assert not list(tmp_path.rglob("CACHEDIR.TAG"))


def test_what_is_kept_is_there_and_nothing_else(file):
    keep(file, text_writer("one"))
    keep(file, text_writer("two"))
    assert file.read_text() == "two"
    assert list(file.parent.iterdir()) == [file]


def test_until_it_is_written_the_old_file_is_read(file):
    keep(file, text_writer("one"))

    def write(path):
        path.write_text("half")
        assert path.parent == file.parent
        assert file.read_text() == "one"
        path.write_text("whole")

    keep(file, write)
    assert file.read_text() == "whole"


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(file):
    keep(file, text_writer("one"))

    def fail(path):
        path.write_text("half")
        raise RuntimeError("disk full")

    keep(file, fail)
    assert file.read_text() == "one"
    assert list(file.parent.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    keep(tmp_path / "file" / "kept.txt", text_writer("one"))
    folder = tmp_path / "folder"
    (folder / "kept.txt").mkdir(parents=True)
    keep(folder / "kept.txt", text_writer("one"))
    assert [entry.name for entry in folder.iterdir()] == ["kept.txt"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_json_is_read_back_and_damaged_json_is_nothing(file):
    assert read_json(file, dict) is None
    keep_json(file, {"rate": 1.5})
    assert read_json(file, lambda values: values["rate"]) == 1.5
    assert read_json(file, lambda values: values["other"]) is None
    for damaged in ('{"rate": 1.', "[]", "", "\0"):
        file.write_text(damaged)
        assert read_json(file, lambda values: values["rate"]) is None


@pytest.fixture
def aged(tmp_path):
    """Files a to d of 100 bytes; a was used last, d longest ago."""
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    return tmp_path


@pytest.mark.parametrize(
    ("most", "left"), [(1000, "abcd"), (400, "abcd"), (399, "abc"), (250, "ab"), (100, "a"), (99, ""), (0, "")]
)
def test_what_was_used_longest_ago_goes_first(aged, most, left):
    limit(aged, most)
    assert sorted(file.name for file in aged.iterdir()) == list(left)


def test_a_folder_inside_is_left_alone(aged):
    (aged / "folder").mkdir()
    os.utime(aged / "folder", (0, 0))
    limit(aged, 400)
    assert len(list(aged.iterdir())) == 5
    limit(aged, 0)
    assert [file.name for file in aged.iterdir()] == ["folder"]


def test_a_folder_that_is_not_there_takes_no_room(tmp_path):
    limit(tmp_path / "nowhere", 0)


def test_a_file_that_another_process_removed_is_no_error(aged, monkeypatch):
    status = Path.stat

    def stat_of_what_then_vanishes(path, **more):
        found = status(path, **more)
        if path.name == "d" and stat.S_ISREG(found.st_mode):
            path.unlink()
        return found

    monkeypatch.setattr(Path, "stat", stat_of_what_then_vanishes)
    limit(aged, 250)
    monkeypatch.undo()
    assert sorted(file.name for file in aged.iterdir()) == ["a", "b"]


def test_a_file_that_cannot_be_removed_still_takes_its_room(aged, monkeypatch):
    unlink = Path.unlink

    def refuse_d(path, **more):
        if path.name == "d":
            raise PermissionError("mapped by another process")
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", refuse_d)
    limit(aged, 250)
    assert sorted(file.name for file in aged.iterdir()) == ["a", "d"]


def test_what_is_being_written_is_counted_but_stays(aged):
    (aged / ".1-1.e").write_bytes(bytes(100))
    limit(aged, 200)
    assert sorted(file.name for file in aged.iterdir()) == [".1-1.e", "a"]
    limit(aged, 50)
    assert [file.name for file in aged.iterdir()] == [".1-1.e"]


def test_what_a_process_left_when_it_was_killed_goes(aged):
    (aged / ".1-1.e").write_bytes(bytes(100))
    os.utime(aged / ".1-1.e", (1, 1))
    limit(aged, 400)
    assert sorted(file.name for file in aged.iterdir()) == list("abcd")


def test_a_lock_is_held_until_it_is_released(tmp_path):
    lock = locked(tmp_path / "some" / "one.lock")
    with pytest.raises(Timeout):
        FileLock(tmp_path / "some" / "one.lock").acquire(timeout=0)
    lock.release()
    locked(tmp_path / "some" / "one.lock").release()


def test_where_no_lock_can_be_there_is_none(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert locked(tmp_path / "file" / "one.lock") is None
