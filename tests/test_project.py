"""The entry points of the MLflow Project find the folder that the user stands in."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpt_mlflow.cli.project import calling_folder, is_relative, relative_options

ASK = "import os; from hpt_mlflow.cli.project import calling_folder; print(calling_folder(os.getpid(), 'ab'))"
linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are not shown here")


@linux
@pytest.mark.parametrize("shells", [0, 1, 2])
def test_it_is_the_folder_of_the_process_that_does_not_know_the_run(tmp_path, shells):
    command = shlex.join([sys.executable, "-c", ASK])
    for _ in range(shells):
        # What follows keeps bash from giving its place to the command.
        command = f"{shlex.join(['bash', '-c', command])}; true"
    user, project = tmp_path / "user", tmp_path / "project"
    user.mkdir()
    project.mkdir()
    start = (
        "import os, subprocess, sys; "
        f"sys.exit(subprocess.call(['bash', '-c', {command!r}], cwd={str(project)!r}, "
        "env={**os.environ, 'MLFLOW_RUN_ID': 'ab'}))"
    )
    done = subprocess.run([sys.executable, "-c", start], check=True, cwd=user, capture_output=True, text=True)
    assert done.stdout.strip() == str(user)


def test_where_processes_are_not_shown_it_is_unknown(tmp_path):
    assert calling_folder(os.getpid(), "ab", processes=tmp_path) is None


@linux
def test_a_process_whose_ancestors_all_know_the_run_has_no_caller(tmp_path):
    for process, parent in ((7, 5), (5, 1)):
        (tmp_path / str(process)).mkdir()
        (tmp_path / str(process) / "status").write_text(f"Name:\tx\nPPid:\t{parent}\n")
        (tmp_path / str(process) / "environ").write_bytes(b"A=b\0MLFLOW_RUN_ID=ab\0")
    assert calling_folder(7, "ab", processes=tmp_path) is None


RELATIVE = """
    . photos ./a:b folder:photos list:a.txt csv:a.csv?labels=A csv:/a.csv?root=b shards:a.tar shards:/a.tar::b.tar
    paper:resisc45?root=data torchvision:CIFAR10?root=data journal:a.journal sqlite:///a.db
"""
EVERYWHERE = """
    /photos ~/photos folder:/photos builtin:mnist paper:resisc45?root=/data torchvision:CIFAR10 csv:/a.csv?labels=A
    shards:/a.tar::/b.tar postgresql://u@h/db sqlite:////a.db torchvision:resnet50
"""


@pytest.mark.parametrize("address", RELATIVE.split())
def test_relative_addresses_are_known(address):
    assert is_relative(address)


@pytest.mark.parametrize("address", ["", *EVERYWHERE.split()])
def test_others_mean_the_same_everywhere(address):
    assert not is_relative(address)


def test_only_options_that_name_files_are_looked_at():
    words = ["--data", "photos", "--steps", "4", "--model-name", "birds", "--weights", "/w.pt"]
    assert relative_options(words) == [("data", "photos")]


def test_the_scripts_of_all_entry_points_are_there():
    scripts = {file.stem for file in (Path(__file__).parents[1] / "entrypoints").glob("[a-z]*.py")}
    assert scripts == {"main", "pretrain", "adapt", "evaluate", "tune", "study"}
