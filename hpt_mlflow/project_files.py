"""The files that follow from settings and pyproject.toml: MLproject, conda.yaml, docs/reference.md, the stub.

`make generate`, or `python -m hpt_mlflow.project_files` in the project's folder, writes them; a test compares them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpt_mlflow import _PLACES
from hpt_mlflow.options import value_type
from hpt_mlflow.reference import reference_page, settings_of
from hpt_mlflow.stages import STAGES, Stage
from hpt_mlflow.stub import stub_text

MLPROJECT_HEAD = """\
# Written by `make generate` from hpt_mlflow/settings; docs/reference.md says what parameters mean. An empty default
# leaves the choice to the preset, the parent or the machine. Relative paths start in working_dir, by default the folder
# of `mlflow run`: the command itself runs in the project's folder, or in a temporary checkout of it.
name: hpt_mlflow
conda_env: conda.yaml

entry_points:"""
CONDA_HEAD = """\
# Written by `make generate` from pyproject.toml, for `mlflow run .` with conda and for `--env-manager uv`.
name: hpt_mlflow
channels:
  - conda-forge
dependencies:"""


def mlproject(_: Path) -> str:
    """MLproject: an entry point per stage, a parameter per setting."""
    return MLPROJECT_HEAD + "\n" + "\n".join(map(_entry_point, STAGES.values()))


def conda_yaml(root: Path) -> str:
    """conda.yaml: the dependencies of pyproject.toml."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    packages = [f"      - {requirement}" for requirement in project["dependencies"]]
    return "\n".join([CONDA_HEAD, f"  - python{project['requires-python']}", "  - pip", "  - pip:", *packages]) + "\n"


def _entry_point(stage: Stage) -> str:
    fields = settings_of(stage.settings)
    parameters = ['working_dir: {type: path, default: "."}', *(_parameter(stage, field) for field in fields)]
    names = ["working_dir", *(field.name for field in fields)]
    options = [f"      --{name.replace('_', '-')} {{{name}}}" for name in names]
    head = [f"  {stage.name}:", "    parameters:", *(f"      {parameter}" for parameter in parameters)]
    return "\n".join([*head, "    command: >-", f"      python -m entrypoints.{stage.name}", *options]) + "\n"


def _parameter(stage: Stage, field: dataclasses.Field[Any]) -> str:
    """MLproject knows texts and numbers; a number without a default has an empty text for one."""
    is_number = value_type(stage.settings, field.name) in (int, float)
    default = field.default
    if default is None:
        text = '""'
    elif is_number:
        text = str(default)
    else:
        text = f'"{str(default).lower() if isinstance(default, bool) else default}"'
    return f"{field.name}: {{type: {'float' if is_number else 'string'}, default: {text}}}"


FILES: dict[str, Callable[[Path], str]] = {
    "MLproject": mlproject,
    "conda.yaml": conda_yaml,
    "hpt_mlflow/__init__.pyi": lambda _: stub_text(STAGES, _PLACES),
    "docs/reference.md": lambda _: reference_page({name: stage.settings for name, stage in STAGES.items()}),
}


if __name__ == "__main__":
    for name, content in FILES.items():
        Path(name).write_text(content(Path.cwd()))
