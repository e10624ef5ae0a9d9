import pytest
from click.testing import CliRunner

from hpt_mlflow.cli import hpt
from hpt_mlflow.data.catalogue import ENTRIES


def run(*arguments):
    return CliRunner().invoke(hpt, ["datasets", *arguments])


def test_the_table_has_a_line_for_each_dataset():
    result = run()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["name", "domain", "task", "classes", "images", "metric", "licence"]
    assert [line.split()[0] for line in lines[2:18]] == [entry.key for entry in ENTRIES]
    assert lines[2 + 6].split() == "resisc45 aerial classification 45 31,500 accuracy CC BY-NC 4.0".split()


def test_the_table_shows_what_is_not_stated():
    (line,) = [line for line in run().output.splitlines() if line.startswith("flowers-102")]
    assert line.endswith("not stated")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.key)
def test_a_page_has_everything(entry):
    result = run(entry.key)
    assert result.exit_code == 0, result.output
    for text in (entry.title, entry.address, entry.domain, entry.task, entry.split, entry.source, entry.note):
        assert text in result.output
    for line in entry.layout:
        assert line in result.output
    assert "None" not in result.output


def test_a_page_of_what_is_known_in_part():
    assert "licence  not stated" in run("viper").output
    assert "images   not stated (train 846, validation 281, test not stated)" in run("xview").output
    assert "images   9,963 (train 2,501, validation 2,510, test 4,952)" in run("pascal-voc").output


def test_an_address_names_its_dataset():
    assert run("paper:resisc45?root=/some/where").output == run("resisc45").output


def test_an_unknown_name_is_one_line():
    result = run("cifar")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: data: the paper has no dataset 'cifar'")
    assert "chest-xray-kids" in line
