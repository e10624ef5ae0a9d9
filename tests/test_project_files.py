"""MLproject, conda.yaml, pyproject.toml, docs and settings say the same."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hpt_mlflow.cli import hpt
from hpt_mlflow.options import value_type
from hpt_mlflow.project_files import FILES
from hpt_mlflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {name: stage.settings for name, stage in STAGES.items()}
MLPROJECT = yaml.safe_load((ROOT / "MLproject").read_text())


def names(stage):
    return [field.name for field in dataclasses.fields(SETTINGS[stage])]


def test_mlproject_has_an_entry_point_for_every_stage():
    assert set(MLPROJECT["entry_points"]) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_options_and_settings_are_the_same(stage):
    parameters = MLPROJECT["entry_points"][stage]["parameters"]
    options = [option.name for option in hpt.commands[stage].params]
    assert sorted(parameters.keys() - {"working_dir"}) == sorted(names(stage)) == sorted(options)


@pytest.mark.parametrize("stage", STAGES)
def test_the_defaults_of_mlproject_are_those_of_the_settings(stage):
    command = hpt.commands[stage]
    options = {option.name: option for option in command.params}
    for field in dataclasses.fields(SETTINGS[stage]):
        text = str(MLPROJECT["entry_points"][stage]["parameters"][field.name]["default"])
        value = options[field.name].type.convert(text, None, None)
        assert value == field.default, field.name
        assert value is None or isinstance(value, value_type(SETTINGS[stage], field.name))


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_passes_every_parameter_to_its_option_the_working_directory_first(stage):
    entry = MLPROJECT["entry_points"][stage]
    assert entry["parameters"]["working_dir"] == {"type": "path", "default": "."}
    assert entry["command"].startswith(f"python -m entrypoints.{stage} --working-dir {{working_dir}} ")
    passed = dict(re.findall(r"--([a-z-]+) \{(\w+)\}", entry["command"]))
    assert passed == {name.replace("_", "-"): name for name in ["working_dir", *names(stage)]}


@pytest.mark.parametrize("stage", STAGES)
def test_every_entry_point_has_its_script(stage):
    assert (ROOT / "entrypoints" / f"{stage}.py").exists()


def test_a_working_directory_that_is_not_there_is_one_line():
    words = [sys.executable, "-m", "entrypoints.pretrain", "--working-dir", "/not/there"]
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: working_dir: ")
    assert done.stderr.endswith("'/not/there'; give a folder of this machine\n")


@pytest.mark.parametrize("name", FILES)
def test_generated_files_are_up_to_date(name):
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    assert (ROOT / name).read_text() == FILES[name](ROOT), "run `make generate`"


def test_every_dependency_is_bounded():
    pip = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    assert all(re.search(r">=.+,<", requirement) for requirement in pip)


def test_commands_in_the_documents_use_options_that_there_are():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for stage, rest in re.findall(
            r"mlflow run \S+ -e ([a-z]+)((?:\s+(?:-P\s+\S+|--\S+\s+\S+|\\))*)", page.read_text()
        ):
            for parameter in re.findall(r"-P\s+(\w+)=", rest):
                assert parameter in names(stage), f"{page.name}: {stage} has no {parameter}"
        for stage, rest in re.findall(
            r"^hpt (pretrain|adapt|tune|evaluate|main)((?:[^\n]|\\\n)*)", page.read_text(), re.M
        ):
            for option in re.findall(r"--([a-z-]+)", rest):
                assert option.replace("-", "_") in names(stage), f"{page.name}: {stage} has no --{option}"
