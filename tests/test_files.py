import pytest

from hpt_mlflow.files import CACHE_TAG, make_cache_folder, replacing


def test_a_new_cache_has_the_mark_that_other_programs_know(tmp_path):
    folder = tmp_path / "a" / "b"
    make_cache_folder(folder)
    assert (folder / "CACHEDIR.TAG").read_text().splitlines()[0] == "Signature: 8a477f597d28d172789f06886806bc55"
    assert [path.name for path in tmp_path.rglob(CACHE_TAG)] == ["CACHEDIR.TAG"]


def test_a_folder_that_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    make_cache_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        make_cache_folder(tmp_path / "file" / "cache")


def test_the_file_is_replaced_when_all_is_written(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("old")
    with replacing(file) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_what_breaks_off_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("old")

    def break_off():
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        break_off()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
