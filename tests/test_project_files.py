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
from hpt_mlflow.reference import reference_page
from hpt_mlflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {name: stage.settings for name, stage in STAGES.items()}
MLPROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
PROMISED = {
    "pretrain": """data root images arch image_size small_stem method preset steps batch_size learning_rate weight_decay
        key_momentum temperature queue_size bn_splits augment strengths precision compile workers cache_gib device
        nproc restarts seed split_seed milestones checkpoint_every resume model_name alias strict""",
    "evaluate": """data root model protocol labels steps repeats steps_to untrained classifier_name leave_out allow_seen
        seed split_seed workers cache_gib precision device batch_size""",
}
PROMISED["adapt"] = PROMISED["pretrain"] + " parent update"
PROMISED["tune"] = (
    PROMISED["adapt"]
    + " tune_strengths objective study storage trial_steps pruner first_rung reduction trials budget_steps minutes"
    + " adapt_winner"
)
PROMISED["pretrain"] += " weights"


def names(stage):
    return [field.name for field in dataclasses.fields(SETTINGS[stage])]


def test_mlproject_has_an_entry_point_for_every_stage():
    assert set(MLPROJECT["entry_points"]) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_options_and_settings_are_the_same(stage):
    parameters = MLPROJECT["entry_points"][stage]["parameters"]
    options = [option.name for option in hpt.commands[stage].params]
    assert sorted(parameters.keys() - {"working_dir"}) == sorted(names(stage)) == sorted(options)


@pytest.mark.parametrize("stage", PROMISED)
def test_the_promised_names_are_there(stage):
    assert set(names(stage)) == set(PROMISED[stage].split())


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
def test_the_command_hands_every_parameter_on_to_its_option(stage):
    command = MLPROJECT["entry_points"][stage]["command"]
    assert command.startswith(f"python -m entrypoints.{stage} ")
    handed_on = dict(re.findall(r"--([a-z-]+) \{(\w+)\}", command))
    assert handed_on == {name.replace("_", "-"): name for name in ["working_dir", *names(stage)]}


@pytest.mark.parametrize("stage", STAGES)
def test_the_working_directory_is_a_path_that_mlflow_makes_absolute_and_comes_first(stage):
    entry = MLPROJECT["entry_points"][stage]
    assert entry["parameters"]["working_dir"] == {"type": "path", "default": "."}
    assert entry["command"].startswith(f"python -m entrypoints.{stage} --working-dir {{working_dir}} ")


@pytest.mark.parametrize("stage", STAGES)
def test_every_entry_point_has_its_script(stage):
    assert (ROOT / "entrypoints" / f"{stage}.py").exists()


def test_a_working_directory_that_is_not_there_is_one_line():
    words = [sys.executable, "-m", "entrypoints.pretrain", "--working-dir", "/not/there"]
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: working_dir: ")
    assert done.stderr.endswith("'/not/there'; give a folder of this machine\n")


def test_conda_and_pyproject_name_the_same_packages():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert sorted(pip) == sorted(project["dependencies"])
    assert f"python{project['requires-python']}" in conda


def test_every_dependency_is_bounded():
    pip = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    assert all(re.search(r">=.+,<", requirement) for requirement in pip)


def test_the_reference_is_made_from_the_settings():
    assert (ROOT / "docs" / "reference.md").read_text() == reference_page(SETTINGS)


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
