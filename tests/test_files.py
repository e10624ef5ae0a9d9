import pytest

from hpt_mlflow.files import replacing


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
