"""MLproject, conda.yaml, pyproject.toml, docs and settings say the same."""

import dataclasses
import importlib.metadata
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch

import click
import pytest
import yaml
from mlflow.cli import run as mlflow_run
from pages import PAGES, ROOT, broken_links, commands

from hpt_mlflow.cli import hpt
from hpt_mlflow.errors import HptError
from hpt_mlflow.options import value_type
from hpt_mlflow.project_files import FILES
from hpt_mlflow.stages import STAGES

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


def test_the_architecture_shows_the_layers_that_are_checked():
    text = (ROOT / "pyproject.toml").read_text()
    layers = re.findall(r'"(.+)"', re.search(r"^layers = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1])
    assert "```text\n" + "\n".join(layers) + "\n```" in (ROOT / "docs" / "architecture.md").read_text()


def test_every_dependency_is_bounded():
    pip = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    assert all(re.search(r">=.+,<", requirement) for requirement in pip)


def check_command(words):
    """Read a command of the documentation as `hpt` and its stage do, without running it."""
    if words[0] == "mlflow":
        values = mlflow_run.make_context("run", words[2:]).params
        words = ["hpt", values["entry_point"]]
        for parameter in values["param_list"]:
            name, _, value = parameter.partition("=")
            words += [] if name == "working_dir" else [f"--{name.replace('_', '-')}={value}"]
    if words[1:] == ["--help"] or words[1].isupper():  # `hpt STAGE --name value` names no stage
        return
    context = hpt.make_context("hpt", words[1:])
    name, command, arguments = hpt.resolve_command(context, words[1:])
    # Just named, as in "`hpt compare` says which model is better".
    if arguments or name in STAGES:
        parsed = command.make_context(name, arguments)
        if name in STAGES and "--help" not in arguments:
            SETTINGS[name](**{key: value for key, value in parsed.params.items() if value is not None})


# Commands of extending.md name what its examples add; test_extending.py runs them.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "extending.md"], ids=lambda page: page.name)
def test_every_command_in_the_documentation_is_one_that_hpt_takes(page):
    for words in commands(page.read_text()):
        try:
            check_command(words)
        except (click.ClickException, HptError) as error:
            pytest.fail(f"{shlex.join(words)}: {error}")


@pytest.mark.parametrize(
    "command",
    [
        "hpt train",
        "hpt study --bases x",
        "hpt tune --pruner best",
        "mlflow run . -e adapt -P steps=many",
        "hpt export m",
    ],
)
def test_a_wrong_command_is_found(command):
    for text in (f"```\nsrun {command}  # quickly\n```\n", f"Try `{command}`."):
        (words,) = commands(text)
        assert words == command.split()
        with pytest.raises((click.ClickException, HptError)):
            check_command(words)


def test_commands_are_found_in_every_form():
    text = "```bash\nA=1 hpt adapt \\\n  --steps 3 && ls\nmlflow run . -e adapt\n```\nor `hpt runs --help`; `hpt`\n"
    assert list(commands(text)) == [
        ["hpt", "adapt", "--steps", "3"],
        ["mlflow", "run", ".", "-e", "adapt"],
        ["hpt", "runs", "--help"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "page.md").write_text(
        "# On two GPUs\n[a](page.md#on-two-gpus) [b](#there) [c](other.md) [d](https://e.org)"
    )
    assert broken_links(tmp_path / "page.md") == ["#there", "other.md"]


def test_the_image_is_made_from_the_wheel():
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line]
    assert [name for name, _ in steps] == ["FROM", "ARG", "COPY", "RUN", "RUN", "USER", "WORKDIR", "CMD"]
    (source, _) = dict(steps)["COPY"].split()
    wheel = f"dist/hpt_mlflow-{importlib.metadata.version('hpt_mlflow')}-py3-none-any.whl"
    assert fnmatch(wheel, source)
    # All that is sent to Docker.
    everything, exception = (ROOT / ".dockerignore").read_text().splitlines()
    assert (everything, fnmatch(wheel, exception.removeprefix("!"))) == ("*", True)
    command = ["make", "--dry-run", "--no-print-directory", "image"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "pip wheel --quiet --no-deps --wheel-dir dist ." in planned
    assert planned.rstrip().endswith("docker build --tag hpt_mlflow --build-arg PIP_OPTIONS .")
